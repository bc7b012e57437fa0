"""The command that writes a student's predictions."""

import numpy as np
import PIL.Image
import pytest

from td_jax.training.run import train


@pytest.fixture(scope='module')
def run_folder(small_config, tmp_path_factory):
    """The workdir of a finished run on digits."""
    folder = tmp_path_factory.mktemp('digits')
    train(small_config(method='supervised', num_steps=1), folder)
    return folder


def test_an_image_goes_in_and_a_class_comes_out(run_command, run_folder, tmp_path):
    PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / 'a.png')
    target = tmp_path / 'out.csv'
    code, out, err = run_command(
        'predict', f'--workdir={run_folder}', f'--input={tmp_path / "a.png"}', f'--output={target}'
    )
    assert (code, out, err) == (0, f'{target}\n1 image\n', '')
    header, row = target.read_text().splitlines()
    assert header == 'file,class,probability,p(5),p(6),p(7),p(8),p(9)'
    assert row.startswith('a.png,')


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        ([], 'give either --input, a file or a folder, or --user, an id.'),
        (['--input=a.csv'], '--output is missing.'),
        (['--input=a.csv', '--output=NEW/out.csv', '--top=3'], '--top is for --user'),
    ],
)
def test_invalid_input_is_one_line(run_command, run_folder, tmp_path, arguments, text):
    arguments = [argument.replace('NEW', str(tmp_path)) for argument in arguments]
    code, out, err = run_command('predict', f'--workdir={run_folder}', *arguments)
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('td_jax: ')
    assert text in err
    assert list(tmp_path.iterdir()) == []
