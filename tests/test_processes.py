"""Several real processes on one machine, and runs that are asked to stop."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from td_jax import command_line, processes, workdir
from td_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
# A run of a few seconds that saves, validates and logs on its way.
FLAGS = (
    '--config=configs/digits.py',
    '--config.num_seeds=2',
    '--config.num_steps=8',
    '--config.batch_size=16',
    '--config.log_every=4',
    '--config.save_every=4',
    '--config.eval_every=4',
    '--config.dataset.split=validation',
    '--config.model.hidden=(8,4)',
    '--config.teacher.model.hidden=(16,8)',
    '--config.teacher.num_steps=4',
    '--config.communication.hidden=16',
    '--config.communication.message=8',
)


def launch(folder, *flags, devices=1):
    """A process of td_jax.main with some CPU devices."""
    settings = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    }
    return subprocess.Popen(
        [sys.executable, '-m', 'td_jax.main', f'--workdir={folder}', *FLAGS, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=settings,
    )


def free_port():
    with socket.socket() as found:
        found.bind(('localhost', 0))
        return found.getsockname()[1]


def launch_several(folder, count, *flags, devices=1):
    port = free_port()
    return [
        launch(
            folder,
            f'--coordinator=localhost:{port}',
            f'--num_processes={count}',
            f'--process_id={i}',
            *flags,
            devices=devices,
        )
        for i in range(count)
    ]


def finish(*running, code=0):
    """(stdout, stderr) of processes that end with a code."""
    outputs = [process.communicate(timeout=300) for process in running]
    for process, (out, err) in zip(running, outputs, strict=True):
        assert process.returncode == code, (out, err)
    return outputs


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The workdir of the same run in one process on one device."""
    folder = tmp_path_factory.mktemp('alone') / 'run'
    finish(launch(folder))
    return folder


def assert_same_run(found, expected, outcome, rtol=2e-4):
    """Two runs agree to float32 rounding, which a few steps make larger."""
    ours, theirs = (json.loads((folder / workdir.RESULT).read_text()) for folder in (found, expected))
    np.testing.assert_allclose(ours['values'], theirs['values'], atol=0.02)
    assert ours['seeds'] == theirs['seeds']
    ours, theirs = (outcome(folder)['metrics'] for folder in (found, expected))
    assert [line['step'] for line in ours] == [line['step'] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if 'accuracy' not in name:
                assert value == pytest.approx(b[name], rel=rtol, abs=1e-6), name


@pytest.mark.parametrize('mesh', [(), ('--config.mesh.data=1', '--config.mesh.fsdp=4')])
def test_four_devices_compute_what_one_computes(alone, tmp_path, outcome, mesh):
    ((_, err),) = finish(launch(tmp_path / 'run', *mesh, devices=4))
    assert '4 cpu devices of 1 process: mesh data=' in err
    assert_same_run(tmp_path / 'run', alone, outcome)


def test_two_processes_compute_what_one_computes_and_one_of_them_speaks(alone, tmp_path, outcome):
    running = launch_several(tmp_path / 'run', 2, devices=2)
    (out, err), (silent, noise) = finish(*running)
    assert 'td on digits' in out
    assert 'step 8/8' in err
    # Gloo, which carries the sums between processes, says hello on stdout.
    assert 'td on digits' not in silent
    assert 'step' not in noise
    assert_same_run(tmp_path / 'run', alone, outcome)

    # The same command with one process more finds it finished.
    (again, _), _ = finish(*launch_several(tmp_path / 'run', 2, devices=1))
    assert again.splitlines()[-1] == out.splitlines()[-1]


def test_a_run_goes_on_with_other_processes_and_devices(alone, tmp_path, outcome):
    folder = tmp_path / 'run'
    finish(*launch_several(folder, 2, '--config.num_steps=4', devices=2))
    ((_, err),) = finish(launch(folder, devices=1))
    assert 'continues at step 4 of 8' in err
    mine, theirs = outcome(folder), outcome(alone)
    assert mine['step'] == theirs['step']
    mine, theirs = (json.loads((f / workdir.RESULT).read_text())['values'] for f in (folder, alone))
    np.testing.assert_allclose(mine, theirs, atol=0.02)


def test_a_mistake_ends_every_process_with_one_line(tmp_path):
    running = launch_several(tmp_path / 'run', 2, '--config.batch_size=15', devices=1)
    for _, err in finish(*running, code=2):
        lines = [line for line in err.splitlines() if line.startswith('td_jax:')]
        (line,) = lines
        assert 'batch_size is 15' in line
        assert '2 devices' in line
        assert 'Traceback' not in err
    assert not (tmp_path / 'run').exists()


def wait_for(path, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


LONG = ('--config.num_steps=400', '--config.save_every=300', '--config.log_every=400')


def test_a_terminated_run_saves_and_says_call_me_again(tmp_path, outcome):
    folder = tmp_path / 'run'
    process = launch(folder, *LONG)
    wait_for(folder / 'teacher' / workdir.RESULT, process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    ((_, err),) = finish(process, code=command_line.CALL_AGAIN)
    assert err.splitlines()[-1].startswith('td_jax: stopped at step ')
    assert 'Traceback' not in err
    assert not (folder / workdir.RESULT).exists()
    ((_, err),) = finish(launch(folder, *LONG))
    assert 'continues at step' in err

    finish(launch(tmp_path / 'undisturbed', *LONG))
    assert outcome(folder)['arrays'] == outcome(tmp_path / 'undisturbed')['arrays']


def test_when_one_process_is_terminated_all_stop_at_one_step(tmp_path):
    folder = tmp_path / 'run'
    running = launch_several(folder, 2, *LONG)
    wait_for(folder / 'teacher' / workdir.RESULT, running[0])
    time.sleep(1)
    running[1].send_signal(signal.SIGTERM)
    outputs = finish(*running, code=command_line.CALL_AGAIN)
    (first,), (second,) = (
        [line for line in err.splitlines() if line.startswith('td_jax: stopped at')] for _, err in outputs
    )
    assert first == second
    finish(*launch_several(folder, 2, *LONG))
    assert json.loads((folder / workdir.RESULT).read_text())['steps'] == 400


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('localhost:1', None, 0, False), '--num_processes is missing'),
        (('localhost:1', 2, None, False), '--process_id is missing'),
        ((None, 2, 0, False), '--coordinator is missing'),
        (('localhost:1', 2, 2, False), '--process_id is 2'),
        (('localhost:1', 2, -1, False), '--process_id is -1'),
        (('localhost:1', 2, 0, True), '--distributed'),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(UserError) as caught:
        processes.start(*arguments)
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)
