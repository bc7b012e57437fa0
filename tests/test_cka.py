"""The command that compares representations, from a run to a picture."""

import json

import numpy as np
import pytest

from td_jax.training.run import train


@pytest.fixture(scope='module')
def runs(small_config, tmp_path_factory):
    """{method: workdir} of finished runs, which all have the teacher of the first one."""
    root, teacher = tmp_path_factory.mktemp('runs'), {}
    for method in ('td', 'ld'):
        config = small_config(method=method, num_steps=2, teacher__num_steps=1, **teacher)
        train(config, root / method)
        teacher = {'teacher__checkpoint': str(root / 'td' / 'teacher')}
    return root


@pytest.mark.long
def test_the_command_writes_numbers_and_a_picture(run_command, runs, tmp_path):
    output = tmp_path / 'new' / 'folder'
    code, out, err = run_command('cka', f'--workdir={runs / "td"},{runs / "ld"}', f'--output={output}')
    assert (code, err) == (0, '')
    content = json.loads((output / 'cka.json').read_text())
    assert sorted(path.name for path in output.iterdir()) == ['cka.json', 'cka.png']
    assert (content['examples'], content['split'], content['left_out']) == (20, 'test', {})
    assert content['examples_by_class'] == dict.fromkeys('56789', 20)
    assert content['estimator'].startswith('linear CKA, debiased')
    assert content['versions'].keys() == {'jax', 'flax', 'numpy', 'td_jax'}
    ours, theirs = ('s_g', 'e_g', 'm_g'), ('s_h', 'e_h', 'm_h')
    pairs = {
        'td': [f'{g},{h}' for g in ours for h in theirs],
        'ld': [f'{g},{h}' for g in ours[:2] for h in theirs[:2]],
    }
    for method, names in pairs.items():
        assert list(content['cka'][method]) == list('56789')
        for row in content['cka'][method].values():
            assert list(row) == names
            assert all(-1 <= value <= 1 for value in row.values())
        assert list(content['by_seed'][method]) == ['0', '1']
        for name in names:
            by_class = [row[name] for row in content['cka'][method].values()]
            by_seed = [row[name] for row in content['by_seed'][method].values()]
            assert np.mean(by_class) == pytest.approx(np.mean(by_seed))
    picture = (output / 'cka.png').read_bytes()
    assert picture[:8] == b'\x89PNG\r\n\x1a\n'
    width, height = (int.from_bytes(picture[i : i + 4], 'big') for i in (16, 20))
    assert width > 300
    assert height > 300
    lines = out.splitlines()
    assert lines[:2] == ['| student, teacher | td | ld | ld less td, paired |', '| --- | --- | --- | --- |']
    mean = np.mean([row['s_g,s_h'] for row in content['by_seed']['td'].values()])
    assert lines[2].startswith(f'| s_g, s_h | {mean:.3f} ± ')
    assert lines[10].startswith('| m_g, m_h | ')
    assert lines[10].endswith(' |  |  |')
    assert lines[-2:] == [str(output / 'cka.json'), str(output / 'cka.png')]


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--workdir=RUN', '--examples=3'], '--examples is 3; debiased CKA needs at least 4'),
        (
            ['--workdir=RUN', '--estimator=biased', '--examples=2'],
            'is 2; biased CKA needs at least 3',
        ),
        (['--workdir=RUN', '--estimator=unbiased'], '--estimator=unbiased'),
        (['--workdir=RUN', '--output=RUN/config.json'], 'is no folder'),
        (['--workdir=RUN,'], 'RUN, has an empty name in its list'),
        (['--workdir=RUN', '--seed_index=2'], '--seed_index is 2, but RUN has 2 seeds, counted from 0.'),
        (['--workdir=RUN', '--seed_index=-1'], '--seed_index=-1'),
        (['--workdir=RUN/teacher'], 'is a run of supervised without a teacher'),
    ],
)
def test_invalid_input_is_one_line(run_command, runs, tmp_path, arguments, text):
    folder = runs / 'td'
    before = sorted(folder.rglob('*'))
    code, out, err = run_command('cka', *(argument.replace('RUN', str(folder)) for argument in arguments))
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('td_jax: ')
    assert text.replace('RUN', str(folder)) in err
    assert sorted(folder.rglob('*')) == before
