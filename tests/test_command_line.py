"""Flags that every command refuses, in one line and before its work."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = """
from absl import flags
from td_jax import command_line
flags.DEFINE_list('tables', ['3'], '')
flags.DEFINE_list('methods', None, '')
flags.DEFINE_float('device_tflops', 1.0, '', lower_bound=1e-6)
flags.DEFINE_integer('examples', 1, '')
command_line.run(lambda: print('ran'), required=('tables',))
"""


def run_command(code, *arguments, stdout=subprocess.PIPE, timeout=None):
    """Runs a program in the repository's root."""
    return subprocess.run(
        [sys.executable, '-c', code, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=timeout,
    )


@pytest.mark.parametrize(
    ('flag', 'text'),
    [
        ('--tables=3,', '--tables=3, has an empty name in its list; take a comma away.'),
        ('--tables=3,,4', '--tables=3,,4 has an empty name in its list; take a comma away.'),
        ('--tables=3, ,4', '--tables=3,,4 has an empty name in its list; take a comma away.'),
        ('--tables=,', '--tables=, has an empty name in its list; take a comma away.'),
        ('--tables=', '--tables is missing.'),
        ('--methods=', '--methods is empty; name something, or leave it out.'),
        ('--device_tflops=nan', '--device_tflops is nan; it must be a finite number.'),
        ('--device_tflops=inf', '--device_tflops is inf; it must be a finite number.'),
        ('--device_tflops=0', 'flag --device_tflops=0: 0.0 is not number >= 1e-06'),
        ('--examples=three', 'flag --examples=three: invalid literal'),
        ('tables', 'tables is not a flag; every flag starts with --.'),
    ],
)
def test_invalid_input_is_one_line(flag, text):
    completed = run_command(COMMAND, flag)
    assert (completed.returncode, completed.stdout, completed.stderr.count('\n')) == (2, '', 1)
    assert completed.stderr.startswith(f'td_jax: {text}')


WAITS = """
import threading, time
from td_jax import command_line
from td_jax.errors import UserError
Waiting = type('Waiting', (threading.Thread,), {'__module__': MODULE})
Waiting(target=time.sleep, args=(SECONDS,)).start()
print('told')
command_line.END
"""


@pytest.mark.parametrize(
    ('end', 'code', 'message'),
    [
        ("fail(UserError('the disk is full.'))", 2, 'the disk is full.'),
        ('end_interrupted()', 130, 'interrupted; the same command continues.'),
    ],
)
@pytest.mark.parametrize(('module', 'seconds'), [('orbax.futures', 600), ('td_jax.files', 1)])
def test_a_process_that_ends_does_not_wait_for_orbax(module, seconds, end, code, message):
    """A process does not wait for unfinished threads of Orbax, but for all others."""
    program = WAITS.replace('MODULE', repr(module)).replace('SECONDS', str(seconds)).replace('END', end)
    completed = run_command(program, timeout=60)
    assert (completed.returncode, completed.stdout, completed.stderr) == (
        code,
        'told\n',
        f'td_jax: {message}\n',
    )


def test_what_is_right_is_run():
    completed = run_command(COMMAND, '--tables=3,4', '--device_tflops=2.5')
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, 'ran\n', '')


@pytest.mark.parametrize('lines', [1, 100_000])
def test_a_reader_that_goes_ends_a_command_without_a_traceback(lines):
    reading, writing = os.pipe()
    os.close(reading)
    command = COMMAND.replace("lambda: print('ran')", f"lambda: print('ran\\n' * {lines})")
    completed = run_command(command, stdout=writing)
    os.close(writing)
    assert (completed.returncode, completed.stderr) == (141, '')


def test_another_broken_pipe_is_raised():
    command = COMMAND.replace("lambda: print('ran')", 'lambda: exec("raise BrokenPipeError(32)")')
    completed = run_command(command)
    assert completed.returncode == 1
    assert completed.stderr.splitlines()[-1] == 'BrokenPipeError: 32'


def test_an_option_without_effect_is_reported():
    """The line comes before any other; the run is then refused because of its batch size."""
    options = {'method': 'ld', 'td.rounds': 3, 'num_steps': 5, 'batch_size': 10_000}
    completed = subprocess.run(
        [
            *(sys.executable, '-m', 'td_jax.main', '--config=configs/digits.py', '--workdir=never'),
            *(f'--config.{key}={value}' for key, value in options.items()),
        ],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 2
    warning, error = completed.stderr.splitlines()
    assert warning == 'td.rounds has no effect: method is ld'
    assert error.startswith('td_jax: batch_size is 10000')
    assert not (ROOT / 'never').exists()
