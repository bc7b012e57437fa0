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
# A run of a few seconds that saves, validates and logs on its way. Like comparable_config, it is the same but
# for rounding if sums change their order.
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


def make_plain_environment():
    """The environment without the variables that JAX and TensorFlow have set in this process."""
    variables = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    return {**variables, 'JAX_PLATFORMS': 'cpu'}


def start_fresh(arguments, env):
    """Like forked.start, but in a fresh process, with all that it prints."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
    )


def launch(folder, *more, devices=1, flags=FLAGS, environment=None, start=forked.start):
    """Starts td_jax.main on `devices` CPU devices."""
    settings = {**make_plain_environment(), **(environment or {}), 'JAX_NUM_CPU_DEVICES': str(devices)}
    return start(['-m', 'td_jax.main', f'--workdir={folder}', *flags, *more], env=settings)


def find_free_port():
    with socket.socket() as free_socket:
        free_socket.bind(('localhost', 0))
        return free_socket.getsockname()[1]


def launch_several(folder, count, *more, devices=1, flags=FLAGS, environments=None, start=forked.start):
    """Starts several processes of one run, each with its own environment if `environments` are given."""
    port = find_free_port()
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


def wait_for_ends(*running, code=0):
    """[(stdout, stderr)] of processes, which must end with an exit code."""
    try:
        # A timeout for processes that wait for each other, long enough for a busy machine.
        outputs = [process.communicate(timeout=1800) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for process, (out, err) in zip(running, outputs, strict=True):
        assert process.returncode == code, (out, err)
    return outputs


@pytest.fixture(scope='module')
def run_of_one(tmp_path_factory):
    """The workdir of the same run in one process on one device."""
    folder = tmp_path_factory.mktemp('alone') / 'run'
    wait_for_ends(launch(folder))
    return folder


def assert_same_run(actual, expected, outcome, rtol=2e-4):
    """Asserts that two runs agree up to float32 rounding, which grows over the steps."""
    ours, theirs = (json.loads((folder / workdir.RESULT).read_text()) for folder in (actual, expected))
    np.testing.assert_allclose(ours['values'], theirs['values'], atol=0.02)
    assert ours['seeds'] == theirs['seeds']
    errors = [finished.read_errors(epath.Path(folder)) for folder in (actual, expected)]
    # Streams keep no errors per example.
    if errors != [None, None]:
        for run_errors, result in zip(errors, (ours, theirs), strict=True):
            np.testing.assert_allclose(run_errors.values.mean(axis=1), result['values'], rtol=1e-6)
        # Examples have the same order; rounding may change the predicted class of a few.
        assert np.mean(errors[0].values == errors[1].values) > 0.9
    ours, theirs = (outcome(folder)['metrics'] for folder in (actual, expected))
    assert [line['step'] for line in ours] == [line['step'] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if 'accuracy' not in name:
                assert value == pytest.approx(b[name], rel=rtol, abs=1e-6), name


@pytest.mark.long
@pytest.mark.parametrize(('devices', 'data', 'fsdp'), [(2, 2, 1), (4, 1, 4), (4, 2, 2)])
def test_several_devices_compute_what_one_computes(run_of_one, tmp_path, outcome, devices, data, fsdp):
    mesh = f'--config.mesh.data={data}', f'--config.mesh.fsdp={fsdp}'
    ((_, err),) = wait_for_ends(launch(tmp_path / 'run', *mesh, devices=devices))
    assert f'{devices} cpu devices of 1 process: mesh data={data} ' in err
    assert_same_run(tmp_path / 'run', run_of_one, outcome)


@pytest.mark.long
def test_two_processes_compute_what_one_computes_and_one_of_them_speaks(run_of_one, tmp_path, outcome):
    running = launch_several(tmp_path / 'run', 2, devices=2)
    (out, err), (second_out, second_err) = wait_for_ends(*running)
    assert 'td on digits' in out
    assert 'step 8/8' in err
    # Gloo, which sums over processes, prints on stdout.
    assert 'td on digits' not in second_out
    assert 'step' not in second_err
    assert_same_run(tmp_path / 'run', run_of_one, outcome)

    # The same command with other devices finds the run finished.
    (again, _), _ = wait_for_ends(*launch_several(tmp_path / 'run', 2, devices=1))
    assert again.splitlines()[-1] == out.splitlines()[-1]


@pytest.mark.long
def test_processes_that_see_other_data_are_refused_together(tmp_path):
    """The same path with different files; then with equal files."""
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
    outputs = wait_for_ends(
        *launch_several(tmp_path / 'run', 2, flags=flags, environments=environments), code=2
    )
    line = (
        'td_jax: a process sees other data than process 0 ("there"): user: u3 -> zed. Give all of them the '
        'same data. (process 1)\n'
    )
    assert [err for _, err in outputs] == [line, line]
    assert not (tmp_path / 'run').exists()
    shutil.copy(homes[0] / 'own.csv', homes[1] / 'own.csv')
    wait_for_ends(*launch_several(tmp_path / 'run', 2, flags=flags, environments=environments))
    shutil.copyfile(homes[0] / 'own.csv', tmp_path / 'kept.csv')
    for home in homes:
        (home / 'own.csv').write_text((tmp_path / 'kept.csv').read_text().replace('u3', 'zed'))
    outputs = wait_for_ends(
        *launch_several(tmp_path / 'run', 2, flags=flags, environments=environments), code=2
    )
    assert all(
        'was trained on other data than own.csv all is now: user: u3 -> zed.' in err for _, err in outputs
    )


@pytest.fixture(scope='session')
def read_last_parameters(read_back):
    """A function (workdir) -> {name: array}, the parameters in the newest checkpoint."""

    def read(folder):
        _, arrays, _ = read_back(folder / 'checkpoints')
        return {name: array for name, array in arrays.items() if name.startswith('params/')}

    return read


@pytest.mark.long
def test_a_run_continues_with_other_processes_and_devices(run_of_one, tmp_path, read_last_parameters):
    """Four devices, then two processes with two each, then one."""
    folder = tmp_path / 'run'
    wait_for_ends(launch(folder, '--config.num_steps=2', devices=4))
    (_, err), _ = wait_for_ends(*launch_several(folder, 2, '--config.num_steps=5', devices=2))
    assert 'continues at step 2 of 5' in err
    ((_, err),) = wait_for_ends(launch(folder, devices=1))
    assert 'continues at step 5 of 8' in err
    ours, theirs = read_last_parameters(folder), read_last_parameters(run_of_one)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=1e-5, err_msg=name)


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_every_process_at_its_step(tmp_path):
    running = launch_several(tmp_path / 'run', 2, '--config.optimizer.learning_rate=1e18')
    reasons = []
    for _, err in wait_for_ends(*running, code=2):
        (line,) = (line for line in err.splitlines() if line.startswith('td_jax:'))
        assert 'Traceback' not in err
        reasons.append(re.search(r'the loss of td on .* is not finite at step (\d+);', line)[0])
    assert reasons[0] == reasons[1]


# The golden checkpoint is the teacher, and its first block, embeddings and head are the student, on a stream.
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
def test_two_processes_share_a_stream_and_a_public_teacher(
    imagenet_data, tmp_path, outcome, read_last_parameters
):
    """Each example is read once: otherwise the sums of a step would differ."""
    wait_for_ends(launch(tmp_path / 'alone', flags=STREAM))
    wait_for_ends(*launch_several(tmp_path / 'run', 2, flags=STREAM))
    assert_same_run(tmp_path / 'run', tmp_path / 'alone', outcome)
    for name, array in read_last_parameters(tmp_path / 'run').items():
        np.testing.assert_allclose(
            array, read_last_parameters(tmp_path / 'alone')[name], atol=1e-5, err_msg=name
        )


def test_invalid_input_ends_every_process_with_one_line(tmp_path):
    running = launch_several(tmp_path / 'run', 2, '--config.batch_size=15', devices=1)
    for _, err in wait_for_ends(*running, code=2):
        lines = [line for line in err.splitlines() if line.startswith('td_jax:')]
        (line,) = lines
        assert 'batch_size is 15' in line
        assert '2 devices' in line
        assert 'Traceback' not in err
    assert not (tmp_path / 'run').exists()


def read_refusals(running):
    """The one-line error of each process."""
    lines = []
    for _, err in wait_for_ends(*running, code=2):
        assert 'Traceback' not in err
        (line,) = (line for line in err.splitlines() if line.startswith('td_jax: '))
        lines.append(line)
    return lines


@pytest.mark.long
@pytest.mark.parametrize('blind', [0, 1])
def test_a_teacher_that_one_process_cannot_see_ends_all_of_them(run_of_one, tmp_path, blind):
    homes = [tmp_path if process == blind else run_of_one for process in range(2)]
    running = launch_several(
        tmp_path / 'run',
        2,
        '--config.teacher.checkpoint=~/teacher',
        environments=[{'HOME': str(home)} for home in homes],
    )
    first, second = read_refusals(running)
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
    first, second = read_refusals(running)
    assert first == second
    assert 'vit_tiny.npz' in first
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
@pytest.mark.usefixtures('movielens_data')
def test_data_that_one_process_cannot_read_ends_all_of_them(tmp_path):
    name = 'movielens/100k-ratings'
    data_dir = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
    shutil.copytree(data_dir / name, tmp_path / 'data' / name)
    for file in (tmp_path / 'data').rglob('*.tfrecord*'):
        file.write_bytes(file.read_bytes()[:1000])
    running = launch_several(
        tmp_path / 'run',
        2,
        flags=('--config=configs/movielens.py', '--config.num_seeds=1', '--config.num_steps=2'),
        environments=[{}, {'TFDS_DATA_DIR': str(tmp_path / 'data')}],
    )
    first, second = read_refusals(running)
    assert first == second
    assert first.startswith(f'td_jax: dataset {name} cannot be read: ')
    assert first.endswith('(process 1)')
    assert not (tmp_path / 'run').exists()


# Prints what each of two processes gets if one of them refuses or fails.
AGREE = """
import sys
from td_jax.devices import processes
from td_jax.errors import UserError

processes.start(sys.argv[1], 2, int(sys.argv[2]), False)
import jax

me = jax.process_index()

def fails(error):
    raise error

def attempt(call):
    try:
        return call()
    except Exception as error:
        return f'{type(error).__name__}: {error}'

print(attempt(lambda: processes.check_together(lambda: f'value {me}')))
print(attempt(lambda: processes.check_together(lambda: me and fails(UserError('no ä')))))
print(attempt(lambda: processes.check_together(lambda: fails(UserError(f'no {me}')))))
print(attempt(lambda: processes.check_together(lambda: me and fails(ValueError('a fault')))))
print(attempt(lambda: processes.call_on_main(lambda: f'value {me}')))
print(attempt(lambda: processes.call_on_main(lambda: fails(UserError(f'no {me}')))))
print(attempt(lambda: processes.call_on_main(lambda: fails(ValueError(f'a fault {me}')))))
"""


def test_what_one_process_refuses_all_of_them_report():
    port = find_free_port()
    running = [
        forked.start(['-c', AGREE, f'localhost:{port}', str(i)], env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
        for i in range(2)
    ]
    lines_of_each = [out.splitlines()[-7:] for out, _ in wait_for_ends(*running)]
    first, second = lines_of_each
    assert first[0] == 'value 0'
    assert second[0] == 'value 1'
    assert first[1] == second[1] == 'UserError: no ä (process 1)'
    assert first[2] == second[2] == 'UserError: no 0 (process 0)'
    # The process that failed raises its own error.
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
    ((_, err),) = wait_for_ends(process, code=command_line.CALL_AGAIN)
    assert err.splitlines()[-1].startswith('td_jax: stopped at step ')
    assert 'Traceback' not in err
    assert not (folder / workdir.RESULT).exists()
    ((_, err),) = wait_for_ends(launch(folder, *LONG))
    assert 'continues at step' in err

    wait_for_ends(launch(tmp_path / 'undisturbed', *LONG))
    assert outcome(folder)['arrays'] == outcome(tmp_path / 'undisturbed')['arrays']


@pytest.mark.long
def test_when_one_process_is_terminated_all_stop_at_one_step(tmp_path):
    folder = tmp_path / 'run'
    running = launch_several(folder, 2, *LONG)
    wait_for(folder / 'teacher' / workdir.RESULT, running[0])
    time.sleep(1)
    running[1].send_signal(signal.SIGTERM)
    outputs = wait_for_ends(*running, code=command_line.CALL_AGAIN)
    (first,), (second,) = (
        [line for line in err.splitlines() if line.startswith('td_jax: stopped at')] for _, err in outputs
    )
    assert first == second
    wait_for_ends(*launch_several(folder, 2, *LONG))
    assert json.loads((folder / workdir.RESULT).read_text())['steps'] == 160


@pytest.mark.long
@pytest.mark.parametrize('killed', [0, 1])
def test_when_one_process_dies_the_others_end_with_one_line(tmp_path, read_back, killed):
    folder = tmp_path / 'run'
    flags = ('--config.num_steps=100000', '--config.save_every=8')
    running = launch_several(folder, 2, *flags, start=start_fresh)
    wait_for(folder / 'checkpoints' / '8', running[0])
    running[killed].kill()
    out, err = running[1 - killed].communicate(timeout=60)
    assert running[1 - killed].returncode == command_line.CALL_AGAIN, (out, err)
    running[killed].communicate()
    lines = [line for line in err.splitlines() if not line.startswith(('td digits', 'supervised', *DEVICES))]
    assert len(lines) == 1
    assert lines[0].startswith('td_jax: another process of the run is gone')
    assert lines[0].endswith('; the same command continues.')
    # There is a checkpoint to continue from.
    assert read_back(folder / 'checkpoints')[0] >= 8


# Lines that a process prints when its devices start.
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
    port = find_free_port()
    running = [
        start_fresh(['-c', WAITS, f'localhost:{port}', str(i)], env=make_plain_environment())
        for i in range(2)
    ]
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
def test_two_processes_save_one_cut_state_in_a_bucket_and_one_continues(
    run_of_one, place, read_last_parameters
):
    """Every process writes its shards to the bucket, and the one that continues reads all of them."""
    mesh = '--config.mesh.data=1', '--config.mesh.fsdp=-1'
    wait_for_ends(*launch_several(place, 2, *mesh, '--config.num_steps=5'))
    # Process 0 has released its lease.
    assert lease.read(place / '.lock').generation != '0' and not lease.read(place / '.lock').seconds_left
    for process in range(2):
        assert (place / 'checkpoints' / '5' / checkpoints.DIGESTS.format(process=process)).exists()
        assert (place / 'checkpoints' / '5' / 'state' / f'ocdbt.process_{process}').is_dir()
    ((_, err),) = wait_for_ends(launch(place, *mesh))
    assert 'continues at step 5 of 8' in err
    ours, theirs = read_last_parameters(place), read_last_parameters(run_of_one)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
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
    with pytest.raises(UserError) as error_info:
        processes.start(*arguments)
    assert words in str(error_info.value)
    assert '\n' not in str(error_info.value)


def test_a_lost_process_is_known_by_what_others_say_of_it():
    """Errors of JAX count, even if another error only quotes them; other errors do not."""
    closed = '[external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:8104'
    losses = [
        # As raised by JAX 0.10 if one of two processes was killed.
        jax.errors.JaxRuntimeError(f'UNKNOWN: Gloo all-reduce failed: {closed}'),
        ValueError(f'UNKNOWN: Gloo AllGather failed: {closed}'),
        jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: Barrier timed out. Id: b::0. This usually happens'),
        jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: GetKeyValue() timed out with key: k and duration: 2s'),
        jax.errors.JaxRuntimeError('UNAVAILABLE: failed to connect to all addresses'),
        jax.errors.JaxRuntimeError('ABORTED: Failed to send RPC to coordination service.'),
        UserError(f'cannot be written: Gloo AllGather failed: {closed}'),
        UserError('the checkpoint of step 8 could not be written'),
    ]
    losses[-1].__cause__ = losses[0]
    for error in losses:
        assert processes.is_loss(error), error
    for error in (
        jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory'),
        # An error that every start would raise again.
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
    completed = subprocess.run(
        [sys.executable, '-c', SWALLOWS], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (completed.returncode, completed.stdout) == (0, 'heard\n'), completed.stderr
    # Other errors are printed as usual.
    assert completed.stderr.splitlines()[-1] == 'ValueError: mine'
    assert 'KeyboardInterrupt' not in completed.stderr


def test_control_c_that_a_finalizer_swallowed_stops_the_run():
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
        # A new run ignores the request to stop the last one.
        processes.handle_signals()
        assert not processes.is_asked_to_stop()
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
