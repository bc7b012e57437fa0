"""The command that makes a page of a folder of runs, from a run that was trained to a file."""

import pytest
from etils import epath

from td_jax.errors import UserError
from td_jax.reporting import page
from td_jax.training.run import train


@pytest.mark.long
def test_the_page_of_a_run_that_was_trained(small_config, tmp_path):
    config = small_config(num_steps=4, teacher__num_steps=2, dataset__split='validation', diagnostics=True)
    result = train(config, tmp_path / 'run')
    target = epath.Path(tmp_path / 'page.html')
    assert page.write(epath.Path(tmp_path / 'run'), target) == 2
    text = target.read_text()
    assert '1 run: 1 finished. 1 teacher: 1 finished.' in text
    for phrase in (
        f'{result["mean"]:.4f} ± ',
        'digits 5, 6, 7, 8, 9, validation accuracy',
        'digits 0, 1, 2, 3, 4',
        '<strong>training loss</strong>',
        '<strong>validation accuracy</strong>',
        'td</strong> Each term',
        'td, std</strong>',
        'interact ends at ',
    ):
        assert phrase in text, phrase


def test_the_command_writes_a_page(run_command, tmp_path):
    (tmp_path / 'runs' / 'a').mkdir(parents=True)
    (tmp_path / 'runs' / 'a' / 'metrics.jsonl').write_text('{"step": 3, "train_loss": 0.5}')
    target = tmp_path / 'page.html'
    target.write_text('an older one')
    code, out, err = run_command('report', f'--workdir={tmp_path / "runs"}', f'--output={target}')
    assert (code, out, err) == (0, f'{target}: 1 run\n', '')
    text = target.read_text(encoding='utf-8')
    assert text.startswith('<!DOCTYPE html>')
    assert 'nothing is saved yet, at step 3' in text


def test_invalid_input_is_one_line(run_command, tmp_path):
    target = tmp_path / 'page.html'
    code, out, err = run_command('report', f'--workdir={tmp_path}', f'--output={target}')
    assert (code, out) == (2, '')
    expected = 'holds no run of td_jax; name the workdir of a run, or a folder of several.'
    assert err == f'td_jax: --workdir {tmp_path} {expected}\n'
    assert not target.exists()


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('result.json', r'result\.json is no name of a page; let it end in \.html\.$'),
        ('folder.html', r'folder\.html is a folder; name a file in it\.$'),
        ('no/a.html', r'no/a\.html cannot be written: its folder is missing\.$'),
    ],
)
def test_a_place_where_no_page_goes_is_refused(tmp_path, name, message):
    (tmp_path / 'folder.html').mkdir()
    (tmp_path / 'result.json').write_text('{}')
    with pytest.raises(UserError, match=f'^--output {tmp_path}/{message}'):
        page.write(epath.Path(tmp_path), epath.Path(tmp_path / name))
    assert (tmp_path / 'result.json').read_text() == '{}'
