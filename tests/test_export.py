"""The command that writes the student of a run."""

import pytest

from td_jax.training.run import train


@pytest.fixture(scope='module')
def mlp_run(small_config, tmp_path_factory):
    """The workdir of a finished TD run between MLPs."""
    folder = tmp_path_factory.mktemp('mlp')
    train(small_config(num_steps=2, teacher__num_steps=1), folder)
    return folder


def test_the_command_reports_size_and_speed_next_to_the_teachers(run_command, mlp_run, tmp_path):
    """Counts by hand: 64 pixels; layers of 5 and 3 units (student) and 7 and 11 (teacher); 5 labels each."""
    path = tmp_path / 'student.bin'
    code, out, err = run_command('export', f'--workdir={mlp_run}', '--format=stablehlo', f'--output={path}')
    assert (code, err) == (0, '')
    first, empty, header, student, teacher, where = out.splitlines()
    assert (first, empty) == (str(path), '')
    assert header.split('  ')[-2:] == ['ms an image, 1 at once', 'ms an image, 32 at once']
    assert student.split()[:2] == ['student', str(64 * 5 + 5 + 5 * 3 + 3 + 3 * 5 + 5)]
    assert teacher.split()[:2] == ['teacher', str(64 * 7 + 7 + 7 * 11 + 11 + 11 * 5 + 5)]
    assert all(float(ms) > 0 for line in (student, teacher) for ms in line.split()[2:])
    assert where.startswith('(on ')


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--workdir=RUN'], '--format is missing'),
        (['--workdir=RUN', '--format=tflite'], 'npz|safetensors|stablehlo|onnx|saved_model'),
        (['--workdir=RUN', '--format=stablehlo', '--seed_index=2'], 'has 2 seeds'),
        (['--workdir=RUN', '--format=stablehlo', '--output=RUN/no/file'], 'its folder is missing'),
        (['--workdir=RUN/no', '--format=stablehlo'], 'is not the workdir of a finished run'),
    ],
)
def test_invalid_input_is_one_line(run_command, mlp_run, arguments, text):
    before = sorted(mlp_run.rglob('*'))
    code, out, err = run_command('export', *(argument.replace('RUN', str(mlp_run)) for argument in arguments))
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('td_jax: ')
    assert text in err
    assert sorted(mlp_run.rglob('*')) == before
