"""Several real processes on one machine, and runs that are asked to stop."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from td_jax import command_line
from td_jax.devices import processes
from td_jax.errors import UserError
from td_jax.files import checkpoints, lease, workdir
from td_jax.training import finished
from tests import forked

ROOT = pathlib.Path(__file__).parents[2]
# A run of a few seconds that saves, validates and logs on its way, and is the same but for rounding if sums
# change their order, as by comparable_config.
FLAGS = (
    '--config=configs/digits.py',
    '--config.diagnostics=False',
    '--config.num_seeds=2',
    '--config.num_steps=8',
    '--config.batch_size=16',
    '--config.log_every=4',
    '--config.save_every=4',
    '--config.eval_every=4',
    '--config.dataset.split=validation',
    '--config.model.hidden=(64,32)',
    '--config.optimizer.name=sgd',
    '--config.optimizer.learning_rate=0.01',
    '--config.teacher.model.hidden=(64,32)',
    '--config.teacher.optimizer.name=sgd',
    '--config.teacher.optimizer.learning_rate=0.01',
    '--config.teacher.num_steps=4',
    '--config.communication.hidden=16',
    '--config.communication.message=16',
)


def plain_environment():
    """The environment of a person's shell, without what JAX has set in this process."""
    left = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    return {**left, 'JAX_PLATFORMS': 'cpu'}


def fresh(arguments, env):
    """What forked.start does, in a process that shares nothing with this one: what it says, it says."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
    )


def launch(folder, *more, devices=1, flags=FLAGS, environment=None, start=forked.start):
    """A process of td_jax.main with some CPU devices."""
    settings = {**plain_environment(), **(environment or {}), 'JAX_NUM_CPU_DEVICES': str(devices)}
    return start(['-m', 'td_jax.main', f'--workdir={folder}', *flags, *more], env=settings)


def free_port():
    with socket.socket() as found:
        found.bind(('localhost', 0))
        return found.getsockname()[1]


def launch_several(folder, count, *more, devices=1, flags=FLAGS, environments=None, start=forked.start):
    """Several processes of one run, each with an environment of its own where they are given."""
    port = free_port()
    return [
        launch(
            folder,
            f'--coordinator=localhost:{port}',
            f'--num_processes={count}',
            f'--process_id={i}',
            *more,
            devices=devices,
            flags=flags,
            environment=environments and environments[i],
            start=start,
        )
        for i in range(count)
    ]


def finish(*running, code=0):
    """(stdout, stderr) of processes that end with a code."""
    try:
        # A bound for processes that wait for each other, not for a machine that is busy.
        outputs = [process.communicate(timeout=1800) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
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
    errors = [finished.read_errors(epath.Path(folder)) for folder in (found, expected)]
    # Of examples that stream, none are kept.
    if errors != [None, None]:
        for kept, result in zip(errors, (ours, theirs), strict=True):
            np.testing.assert_allclose(kept.values.mean(axis=1), result['values'], rtol=1e-6)
        # In the same order, though an image on the border may be right in one of them alone.
        assert np.mean(errors[0].values == errors[1].values) > 0.9
    ours, theirs = (outcome(folder)['metrics'] for folder in (found, expected))
    assert [line['step'] for line in ours] == [line['step'] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if 'accuracy' not in name:
                assert value == pytest.approx(b[name], rel=rtol, abs=1e-6), name


@pytest.mark.long
@pytest.mark.parametrize(('devices', 'data', 'fsdp'), [(2, 2, 1), (4, 1, 4), (4, 2, 2)])
def test_several_devices_compute_what_one_computes(alone, tmp_path, outcome, devices, data, fsdp):
    mesh = f'--config.mesh.data={data}', f'--config.mesh.fsdp={fsdp}'
    ((_, err),) = finish(launch(tmp_path / 'run', *mesh, devices=devices))
    assert f'{devices} cpu devices of 1 process: mesh data={data} ' in err
    assert_same_run(tmp_path / 'run', alone, outcome)


@pytest.mark.long
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


@pytest.mark.long
def test_processes_that_see_other_data_are_refused_together(tmp_path):
    """One path, which is another file for each; then the same file twice."""
    homes = [tmp_path / name for name in ('first', 'second')]
    for home, user in zip(homes, ('u3', 'zed'), strict=True):
        home.mkdir()
        users = [f'u{i % 7}'.replace('u3', user) for i in range(60)]
        rows = [f'{name},i{i % 5},{i % 3},{i}' for i, name in enumerate(users)]
        (home / 'own.csv').write_text('\n'.join(['user,item,rating,timestamp', *rows, '']))
    flags = (
        *('--config=configs/ratings.py', '--config.method=supervised', '--config.dataset.path=~/own.csv'),
        *('--config.num_steps=2', '--config.batch_size=8', '--config.model.hidden=(8,4)'),
    )
    environments = [{'HOME': str(home)} for home in homes]
    outputs = finish(*launch_several(tmp_path / 'run', 2, flags=flags, environments=environments), code=2)
    line = (
        'td_jax: a process sees other data than process 0 ("there"): user: u3 -> zed. Give all of them the '
        'same data. (process 1)\n'
    )
    assert [err for _, err in outputs] == [line, line]
    assert not (tmp_path / 'run').exists()
    shutil.copy(homes[0] / 'own.csv', homes[1] / 'own.csv')
    finish(*launch_several(tmp_path / 'run', 2, flags=flags, environments=environments))
    shutil.copyfile(homes[0] / 'own.csv', tmp_path / 'kept.csv')
    for home in homes:
        (home / 'own.csv').write_text((tmp_path / 'kept.csv').read_text().replace('u3', 'zed'))
    outputs = finish(*launch_several(tmp_path / 'run', 2, flags=flags, environments=environments), code=2)
    assert all(
        'was trained on other data than own.csv all is now: user: u3 -> zed.' in err for _, err in outputs
    )


@pytest.fixture(scope='session')
def last_parameters(read_back):
    """A function (workdir) -> {name: array}, the parameters of its newest checkpoint."""

    def read(folder):
        _, arrays, _ = read_back(folder / 'checkpoints')
        return {name: array for name, array in arrays.items() if name.startswith('params/')}

    return read


@pytest.mark.long
def test_a_run_goes_on_with_other_processes_and_devices(alone, tmp_path, last_parameters):
    """Four devices, then two processes with two each, then one."""
    folder = tmp_path / 'run'
    finish(launch(folder, '--config.num_steps=2', devices=4))
    (_, err), _ = finish(*launch_several(folder, 2, '--config.num_steps=5', devices=2))
    assert 'continues at step 2 of 5' in err
    ((_, err),) = finish(launch(folder, devices=1))
    assert 'continues at step 5 of 8' in err
    mine, theirs = last_parameters(folder), last_parameters(alone)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        np.testing.assert_allclose(array, theirs[name], atol=1e-5, err_msg=name)


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_every_process_at_its_step(tmp_path):
    running = launch_several(tmp_path / 'run', 2, '--config.optimizer.learning_rate=1e18')
    said = []
    for _, err in finish(*running, code=2):
        (line,) = (line for line in err.splitlines() if line.startswith('td_jax:'))
        assert 'Traceback' not in err
        said.append(re.search(r'the loss of td on .* is not finite at step (\d+);', line)[0])
    assert said[0] == said[1]


# The golden checkpoint as the teacher, its first block and all around it as the student, on what streams.
STREAM = (
    '--config=configs/vit_imagenet.py',
    '--config.diagnostics=False',
    '--config.num_steps=4',
    '--config.batch_size=16',
    '--config.eval_batch_size=32',
    '--config.log_every=2',
    '--config.save_every=2',
    '--config.compute_dtype=float32',
    '--config.dataset.image_size=32',
    '--config.dataset.shuffle_buffer=64',
    '--config.optimizer.warmup_steps=1',
    '--config.communication.hidden=16',
    '--config.communication.message=8',
    f'--config.teacher.pretrained={ROOT}/tests/golden/vit_tiny_prelogits.npz',
    '--config.model.layers=1',
    '--config.model.split=1',
    '--config.teacher.model.layers=6',
    *(
        f'--config.{model}.{key}={value}'
        for model in ('model', 'teacher.model')
        for key, value in {'patch': 8, 'width': 48, 'mlp': 96, 'heads': 4}.items()
    ),
)


@pytest.mark.long
def test_two_processes_share_a_stream_and_a_public_teacher(imagenet_data, tmp_path, outcome, last_parameters):
    """Each example once: were one read twice or never, the sums of a step would differ."""
    finish(launch(tmp_path / 'alone', flags=STREAM))
    finish(*launch_several(tmp_path / 'run', 2, flags=STREAM))
    assert_same_run(tmp_path / 'run', tmp_path / 'alone', outcome)
    for name, array in last_parameters(tmp_path / 'run').items():
        np.testing.assert_allclose(array, last_parameters(tmp_path / 'alone')[name], atol=1e-5, err_msg=name)


def test_a_mistake_ends_every_process_with_one_line(tmp_path):
    running = launch_several(tmp_path / 'run', 2, '--config.batch_size=15', devices=1)
    for _, err in finish(*running, code=2):
        lines = [line for line in err.splitlines() if line.startswith('td_jax:')]
        (line,) = lines
        assert 'batch_size is 15' in line
        assert '2 devices' in line
        assert 'Traceback' not in err
    assert not (tmp_path / 'run').exists()


def refusals(running):
    """The one line of each process, which say the same."""
    lines = []
    for _, err in finish(*running, code=2):
        assert 'Traceback' not in err
        (line,) = (line for line in err.splitlines() if line.startswith('td_jax: '))
        lines.append(line)
    return lines


@pytest.mark.long
@pytest.mark.parametrize('blind', [0, 1])
def test_a_teacher_that_one_process_cannot_see_ends_all_of_them(alone, tmp_path, blind):
    homes = [tmp_path if process == blind else alone for process in range(2)]
    running = launch_several(
        tmp_path / 'run',
        2,
        '--config.teacher.checkpoint=~/teacher',
        environments=[{'HOME': str(home)} for home in homes],
    )
    first, second = refusals(running)
    assert first == second
    assert first == (
        f'td_jax: teacher.checkpoint {tmp_path}/teacher is not the workdir of a finished run: config.json or '
        f'result.json is missing. (process {blind})'
    )
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_a_public_teacher_that_one_process_cannot_see_ends_all_of_them(tmp_path):
    (tmp_path / 'sees').mkdir()
    shutil.copy(ROOT / 'tests' / 'golden' / 'vit_tiny.npz', tmp_path / 'sees')
    running = launch_several(
        tmp_path / 'run',
        2,
        '--config.teacher.pretrained=~/vit_tiny.npz',
        '--config.teacher.model.name=vit',
        environments=[{'HOME': str(tmp_path / name)} for name in ('sees', 'is_blind')],
    )
    first, second = refusals(running)
    assert first == second
    assert 'vit_tiny.npz' in first
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
@pytest.mark.usefixtures('movielens_data')
def test_data_that_one_process_cannot_read_ends_all_of_them(tmp_path):
    name = 'movielens/100k-ratings'
    there = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
    shutil.copytree(there / name, tmp_path / 'data' / name)
    for file in (tmp_path / 'data').rglob('*.tfrecord*'):
        file.write_bytes(file.read_bytes()[:1000])
    running = launch_several(
        tmp_path / 'run',
        2,
        flags=('--config=configs/movielens.py', '--config.num_seeds=1', '--config.num_steps=2'),
        environments=[{}, {'TFDS_DATA_DIR': str(tmp_path / 'data')}],
    )
    first, second = refusals(running)
    assert first == second
    assert first.startswith(f'td_jax: dataset {name} cannot be read: ')
    assert first.endswith('(process 1)')
    assert not (tmp_path / 'run').exists()


# What two processes make of one that refuses or fails.
AGREE = """
import sys
from td_jax.devices import processes
from td_jax.errors import UserError

processes.start(sys.argv[1], 2, int(sys.argv[2]), False)
import jax

me = jax.process_index()

def fails(error):
    raise error

def told(call):
    try:
        return call()
    except Exception as error:
        return f'{type(error).__name__}: {error}'

print(told(lambda: processes.check_together(lambda: f'value {me}')))
print(told(lambda: processes.check_together(lambda: me and fails(UserError('no ä')))))
print(told(lambda: processes.check_together(lambda: fails(UserError(f'no {me}')))))
print(told(lambda: processes.check_together(lambda: me and fails(ValueError('a fault')))))
print(told(lambda: processes.call_on_main(lambda: f'value {me}')))
print(told(lambda: processes.call_on_main(lambda: fails(UserError(f'no {me}')))))
print(told(lambda: processes.call_on_main(lambda: fails(ValueError(f'a fault {me}')))))
"""


def test_what_one_process_refuses_all_of_them_hear():
    port = free_port()
    running = [
        forked.start(['-c', AGREE, f'localhost:{port}', str(i)], env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
        for i in range(2)
    ]
    said = [out.splitlines()[-7:] for out, _ in finish(*running)]
    first, second = said
    assert first[0] == 'value 0'
    assert second[0] == 'value 1'
    assert first[1] == second[1] == 'UserError: no ä (process 1)'
    assert first[2] == second[2] == 'UserError: no 0 (process 0)'
    # A fault is raised as it is where it happened.
    assert first[3] == 'UserError: ValueError: a fault (process 1)'
    assert second[3] == 'ValueError: a fault'
    assert first[4] == second[4] == 'value 0'
    assert first[5] == second[5] == 'UserError: no 0'
    assert first[6] == 'ValueError: a fault 0'
    assert second[6] == 'UserError: ValueError: a fault 0'


def wait_for(path, process, seconds=1800):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


LONG = ('--config.num_steps=160', '--config.save_every=120', '--config.log_every=160')


@pytest.mark.long
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


@pytest.mark.long
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
    assert json.loads((folder / workdir.RESULT).read_text())['steps'] == 160


@pytest.mark.long
@pytest.mark.parametrize('killed', [0, 1])
def test_when_one_process_dies_the_others_end_with_one_line(tmp_path, read_back, killed):
    folder = tmp_path / 'run'
    flags = ('--config.num_steps=100000', '--config.save_every=8')
    running = launch_several(folder, 2, *flags, start=fresh)
    wait_for(folder / 'checkpoints' / '8', running[0])
    running[killed].kill()
    out, err = running[1 - killed].communicate(timeout=60)
    assert running[1 - killed].returncode == command_line.CALL_AGAIN, (out, err)
    running[killed].communicate()
    said = [line for line in err.splitlines() if not line.startswith(('td digits', 'supervised', *DEVICES))]
    assert len(said) == 1
    assert said[0].startswith('td_jax: another process of the run is gone')
    assert said[0].endswith('; the same command continues.')
    # There is something to continue from.
    assert read_back(folder / 'checkpoints')[0] >= 8


# What a process says at the start of its devices.
DEVICES = ('2 cpu devices of 2 processes:', 'MB a device:')

WAITS = """
import sys, time
import td_jax
td_jax.silence_cpp()
from td_jax.devices import processes
processes.HEARTBEAT_SECONDS = 12
processes.start(sys.argv[1], 2, int(sys.argv[2]), False)
with processes.end_together():
    processes.gather('there')
    print('there', flush=True)
    time.sleep(200)
"""


@pytest.mark.long
@pytest.mark.parametrize('killed', [0, 1])
def test_a_process_that_computes_nothing_with_the_others_hears_of_a_death(killed):
    port = free_port()
    running = [fresh(['-c', WAITS, f'localhost:{port}', str(i)], env=plain_environment()) for i in range(2)]
    for process in running:
        while process.stdout.readline() != 'there\n':
            assert process.poll() is None, process.communicate()
    running[killed].kill()
    _, err = running[1 - killed].communicate(timeout=60)
    running[killed].communicate()
    assert running[1 - killed].returncode == command_line.CALL_AGAIN
    assert err == (
        'td_jax: another process of the run is gone, or JAX failed (TF_CPP_MIN_LOG_LEVEL=0 shows how); '
        'the same command continues.\n'
    )


@pytest.mark.long
def test_two_processes_save_one_cut_state_in_a_bucket_and_one_goes_on(alone, place, last_parameters):
    """Every process writes its shards to the bucket, and the one that goes on reads all of them."""
    mesh = '--config.mesh.data=1', '--config.mesh.fsdp=-1'
    finish(*launch_several(place, 2, *mesh, '--config.num_steps=5'))
    # Process 0 had a lease, and has freed it.
    assert lease.read(place / '.lock').generation != '0' and not lease.read(place / '.lock').seconds_left
    for process in range(2):
        assert (place / 'checkpoints' / '5' / checkpoints.DIGESTS.format(process=process)).exists()
        assert (place / 'checkpoints' / '5' / 'state' / f'ocdbt.process_{process}').is_dir()
    ((_, err),) = finish(launch(place, *mesh))
    assert 'continues at step 5 of 8' in err
    mine, theirs = last_parameters(place), last_parameters(alone)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        # AdamW turns the rounding of a tiny gradient into a difference of a step, 0.001.
        np.testing.assert_allclose(array, theirs[name], atol=3e-3, err_msg=name)
        assert np.median(np.abs(array - theirs[name])) < 1e-5, name


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


def test_a_lost_process_is_known_by_what_others_say_of_it():
    """An error of JAX, also where somebody else tells it on in words alone; nothing else is taken for one."""
    closed = '[external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:8104'
    lost = [
        # As JAX 0.10 raises them where one of two processes was killed.
        jax.errors.JaxRuntimeError(f'UNKNOWN: Gloo all-reduce failed: {closed}'),
        ValueError(f'UNKNOWN: Gloo AllGather failed: {closed}'),
        jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: Barrier timed out. Id: b::0. This usually happens'),
        jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: GetKeyValue() timed out with key: k and duration: 2s'),
        jax.errors.JaxRuntimeError('UNAVAILABLE: failed to connect to all addresses'),
        jax.errors.JaxRuntimeError('ABORTED: Failed to send RPC to coordination service.'),
        UserError(f'cannot be written: Gloo AllGather failed: {closed}'),
        UserError('the checkpoint of step 8 could not be written'),
    ]
    lost[-1].__cause__ = lost[0]
    for error in lost:
        assert processes.is_loss(error), error
    for error in (
        jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory'),
        # What every start would raise again.
        jax.errors.JaxRuntimeError(
            'INVALID_ARGUMENT: %opt-barrier.3 = (f32[8]) opt-barrier(%tuple) is wrong'
        ),
        jax.errors.JaxRuntimeError('INTERNAL: the connection of these layers is unavailable at the barrier'),
        jax.errors.JaxRuntimeError(
            'UNKNOWN: Gloo AllGather failed: [enforce fail at external/gloo/gloo/transport/tcp/pair.cc:446] '
            'op.preamble.length <= op.nbytes. 8 vs 4'
        ),
        UserError('the connection to hf://a/b is closed'),
        ValueError('UNAVAILABLE: Error reading "gs://b/run/checkpoints"'),
        ValueError('no'),
    ):
        assert not processes.is_loss(error), error


SWALLOWS = """
import signal
from td_jax.devices import processes

signal.signal(signal.SIGINT, signal.default_int_handler)

class Finalized:
    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error

class Interrupted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

processes.handle_signals()
Interrupted()
try:
    processes.is_asked_to_stop()
except KeyboardInterrupt:
    print('heard')
Finalized(ValueError('mine'))
"""


def test_control_c_in_a_finalizer_is_no_traceback():
    done = subprocess.run(
        [sys.executable, '-c', SWALLOWS], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (0, 'heard\n'), done.stderr
    # Other errors are as before.
    assert done.stderr.splitlines()[-1] == 'ValueError: mine'
    assert 'KeyboardInterrupt' not in done.stderr


def test_control_c_that_a_finalizer_swallowed_is_heard_by_the_run():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        processes.handle_signals()
        assert not processes.is_asked_to_stop()
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            processes.is_asked_to_stop()
        # A run that was asked before is over.
        processes.handle_signals()
        assert not processes.is_asked_to_stop()
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
