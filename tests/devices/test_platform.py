"""A platform that JAX cannot start: one line from every command and from Python, which names no file."""

import importlib.util
import os
import pathlib

import jax
import pytest

from td_jax.devices import platform
from td_jax.errors import UserError
from td_jax.training.run import train
from tests import forked

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
WAY_OUT = 'Unset it to use what is there, or set JAX_PLATFORMS=cpu.'
UNKNOWN = "td_jax: JAX_PLATFORMS is nonsense, which JAX cannot start: Backend 'nonsense' is not in the list"
DIGITS = '--config=td_jax/configs/digits.py'


@pytest.fixture(scope='module')
def good_run(small_config, tmp_path_factory):
    """The workdir of a finished run."""
    folder = tmp_path_factory.mktemp('good') / 'run'
    train(small_config(method='supervised', num_seeds=1, num_steps=1), folder)
    return folder


def run_on_platform(name, arguments, **environment):
    """(exit code, stdout, stderr) of a process on a platform."""
    completed = forked.run(arguments, env={**os.environ, 'JAX_PLATFORMS': name, **environment})
    return completed.returncode, completed.stdout, completed.stderr


@pytest.mark.parametrize(
    ('command', 'arguments'),
    [
        ('main', [DIGITS, '--workdir=HERE/new']),
        ('inspect', [str(GOLDEN / 'vit_tiny.npz')]),
        ('tune', ['--config=digits', '--workdir=HERE/new', '--journals=HERE', '--output=HERE/chosen.json']),
        ('reproduce', ['--tables=digits', '--workdir=HERE/new']),
        ('reproduce', ['--tables=4', '--workdir=HERE/new', '--dry_run']),
        ('predict', ['--workdir=RUN', '--input=HERE', '--output=HERE/predicted.csv']),
        ('export', ['--workdir=RUN', '--format=stablehlo', '--output=HERE/exported']),
        ('cka', ['--workdir=RUN', '--output=HERE/cka']),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_platform_that_is_none_is_one_line(command, arguments, good_run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in good_run.rglob('*')}
    words = [word.replace('HERE', str(tmp_path)).replace('RUN', str(good_run)) for word in arguments]
    code, out, err = run_on_platform('nonsense', ['-m', f'td_jax.{command}', *words])
    assert (code, out, err.count('\n')) == (2, '', 1), err
    assert err.startswith(UNKNOWN) and err.endswith(f'{WAY_OUT}\n')
    # No file is written, and the run is not touched.
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in good_run.rglob('*')} == before


@pytest.mark.parametrize('command', ['main', 'predict'])
def test_a_platform_whose_plugin_is_missing_is_one_line(command, good_run, tmp_path):
    """JAX fails with an assertion that has no message."""
    if any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)):
        pytest.skip('JAX has CUDA here')
    words = {'main': [DIGITS], 'predict': ['--input=.', f'--output={tmp_path / "out.csv"}']}[command]
    folder = {'main': tmp_path / 'new', 'predict': good_run}[command]
    code, out, err = run_on_platform('cuda', ['-m', f'td_jax.{command}', f'--workdir={folder}', *words])
    assert (code, out) == (2, '')
    assert err == (
        'td_jax: JAX_PLATFORMS is cuda, which JAX cannot start: what JAX needs for it is not installed. '
        f'{WAY_OUT}\n'
    )


def test_what_uses_no_device_of_this_machine_does_without(good_run, tmp_path):
    page = tmp_path / 'page.html'
    code, out, err = run_on_platform(
        'nonsense', ['-m', 'td_jax.report', f'--workdir={good_run}', f'--output={page}']
    )
    assert (code, out, err) == (0, f'{page}: 1 run\n', '')
    words = ['--tables=digits', f'--workdir={tmp_path}', '--only_show']
    assert run_on_platform('nonsense', ['-m', 'td_jax.reproduce', *words])[::2] == (0, '')


PYTHON = """
import sys
import td_jax
from td_jax.configs import digits
from td_jax.errors import UserError

for call in (lambda: td_jax.train(digits.get_config(), sys.argv[1]), lambda: td_jax.load(sys.argv[2])):
    try:
        call()
    except UserError as error:
        print(error)
"""


def test_from_python_it_is_a_user_error(good_run, tmp_path):
    code, out, err = run_on_platform('nonsense', ['-c', PYTHON, tmp_path / 'new', good_run])
    assert (code, err) == (0, '')
    trained, loaded = out.splitlines()
    assert trained == loaded and f'td_jax: {trained}'.startswith(UNKNOWN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('platforms', 'error', 'expected'),
    [
        (
            'tpu',
            RuntimeError(
                "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process 7.\n"
                "Not attempting to load libtpu. (set JAX_PLATFORMS='' to automatically choose one)"
            ),
            'JAX_PLATFORMS is tpu, which JAX cannot start: ABORTED: The TPU is already in use by process 7. '
            f'Not attempting to load libtpu. {WAY_OUT}',
        ),
        (
            None,
            RuntimeError('No devices.'),
            'JAX cannot start a device: No devices. Set JAX_PLATFORMS=cpu to do without.',
        ),
    ],
)
def test_an_error_of_jax_is_reported_in_one_line(platforms, error, expected, monkeypatch):
    def raise_error():
        raise error

    monkeypatch.setattr(jax, 'devices', raise_error)
    before = jax.config.jax_platforms
    try:
        jax.config.update('jax_platforms', platforms)
        with pytest.raises(UserError) as error_info:
            platform.start()
    finally:
        jax.config.update('jax_platforms', before)
    assert str(error_info.value) == expected
