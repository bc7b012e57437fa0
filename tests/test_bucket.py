"""Every command with a run in a bucket (gs://), on a local server of the GCS API."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing import event_accumulator

from td_jax import config
from td_jax.configs import digits
from td_jax.errors import Diverged, InUse, UserError
from td_jax.files import checkpoints, lease, metric_log, workdir
from td_jax.reporting import page
from td_jax.reproduction import cells
from td_jax.training import run as run_lib
from td_jax.training.run import describe, train
from tests import forked

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.long


@pytest.fixture(scope='module')
def settings(small_config):
    """A config with several saves."""
    return small_config(num_steps=8, eval_every=digits.get_config().eval_every)


@pytest.fixture(scope='module')
def flags(settings):
    """The command line that sets `settings`."""
    defaults = config.flatten(digits.get_config())
    overrides = {key: value for key, value in config.flatten(settings).items() if value != defaults[key]}
    return ['--config=configs/digits.py', *(f'--config.{key}={value}' for key, value in overrides.items())]


@pytest.fixture(scope='module')
def folder_run(settings, tmp_path_factory):
    """The workdir of the same run on the disk, and its result."""
    folder = tmp_path_factory.mktemp('local') / 'run'
    return folder, train(settings, folder)


@pytest.fixture(scope='module')
def bucket_run(settings, bucket):
    """The workdir of the run in the bucket."""
    place = epath.Path(f'{bucket}/finished/run')
    train(settings, place)
    return place


def run_to_end(*arguments):
    """Runs a command to its end: (exit code, stdout, stderr)."""
    completed = forked.run(
        [*arguments],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1e9'},
    )
    return completed.returncode, completed.stdout, completed.stderr


def read_events(place, folder):
    """[(step, name)] of a run's events in a bucket, copied into a folder."""
    folder.mkdir()
    for path in place.glob(metric_log.EVENTS):
        path.copy(folder / path.name)
    accumulator = event_accumulator.EventAccumulator(str(folder), size_guidance={'tensors': 0}).Reload()
    return sorted(
        (event.step, tag) for tag in accumulator.Tags()['tensors'] for event in accumulator.Tensors(tag)
    )


def test_a_run_in_a_bucket_is_the_run_in_a_folder(folder_run, bucket_run, outcome, tmp_path):
    assert outcome(bucket_run) == outcome(folder_run[0])
    assert outcome(bucket_run / 'teacher') == outcome(folder_run[0] / 'teacher')
    lines = metric_log.read(bucket_run)
    assert read_events(bucket_run, tmp_path / 'events') == sorted(
        (line['step'], name) for line in lines for name in line if name != 'step'
    )


def test_the_same_command_finds_it_finished(bucket_run, folder_run, flags):
    code, out, err = run_to_end('-m', 'td_jax.main', *flags, f'--workdir={bucket_run}')
    assert (code, out) == (0, describe(folder_run[1]) + '\n'), err
    assert 'Traceback' not in err


def test_a_run_in_a_bucket_killed_in_a_save_goes_on_bit_for_bit(
    folder_run, place, settings, flags, outcome, monkeypatch
):
    monkeypatch.setattr(lease, 'SECONDS', 3.0)
    moments = (
        # All arrays are written, but not the file that marks the state as complete.
        (f'{place}/checkpoints/2/state/commit_success.txt', 1),
        # The same for the whole checkpoint.
        (f'{place}/checkpoints/4/commit_success.txt', 1),
        # The checkpoint is complete, but without its digests.
        (f'{place}/checkpoints/6/digests-0.json', 1),
    )
    codes_and_steps = []
    for part, count in moments:
        program = ('tests/interrupted.py', 'kill', part, str(count))
        code, _, err = run_to_end(*program, *flags, f'--workdir={place}')
        names = {path.name for path in (place / 'checkpoints').iterdir()}
        whole_steps = sorted(
            int(name)
            for name in names
            if name.isdigit() and (place / 'checkpoints' / name / 'commit_success.txt').exists()
        )
        codes_and_steps.append((code, whole_steps))
    killed = -signal.SIGKILL
    assert codes_and_steps == [(killed, []), (killed, [2]), (killed, [4, 6])], err
    train(settings, place)
    assert outcome(place) == outcome(folder_run[0])
    assert len(list(place.glob(metric_log.EVENTS))) == 1


def test_a_run_whose_lease_another_process_has_writes_nothing_more(place, settings, monkeypatch):
    steps_saved, save = [], checkpoints.Checkpoints.save

    def take_over_after_saving(self, step, *arguments):
        save(self, step, *arguments)
        if self._folder.parent == place:
            self.wait()
            steps_saved.append(step)
            path = place / workdir.LOCK
            assert lease._replace(path, lease.read(path).generation, 'process 7 on elsewhere', 'other')
            workdir.write(place / metric_log.FILE, 'theirs')

    monkeypatch.setattr(checkpoints.Checkpoints, 'save', take_over_after_saving)
    with pytest.raises(InUse, match=f'^workdir {place} was taken over by process 7 on elsewhere, because'):
        train(settings, place)
    assert steps_saved == [2]
    assert workdir.read_json(place / workdir.RESULT) is None
    assert workdir.read_json(place / workdir.CONFIG) is not None
    assert workdir.read_text(place / metric_log.FILE) == 'theirs'


def test_a_teacher_is_read_from_a_bucket(bucket_run, folder_run, settings, tmp_path, outcome):
    """A run on disk with this teacher has the result of the run that trained the teacher itself."""
    other = settings.copy_and_resolve_references()
    other.teacher.checkpoint = f'{bucket_run}/teacher'
    train(other, tmp_path / 'run')
    ours, theirs = outcome(tmp_path / 'run'), outcome(folder_run[0])
    assert ours.pop('config')['teacher'].pop('checkpoint') == f'{bucket_run}/teacher'
    del theirs['config']
    assert ours == theirs


def test_a_student_is_exported_to_the_bucket(bucket_run, place):
    target = place / 'student'
    code, out, err = run_to_end(
        '-m', 'td_jax.export', f'--workdir={bucket_run}', '--format=stablehlo', f'--output={target}'
    )
    assert code == 0, err
    assert out.splitlines()[0] == str(target)
    assert (target / 'student.stablehlo').stat().length > 1000
    code, out, err = run_to_end(
        '-m', 'td_jax.export', f'--workdir={bucket_run}', '--format=stablehlo', f'--output={target}'
    )
    assert (code, out) == (2, '')
    assert err.splitlines()[-1].startswith(f'td_jax: {target} is there already')


def test_a_comparison_is_drawn_in_the_bucket(bucket_run, place):
    code, _, err = run_to_end('-m', 'td_jax.cka', f'--workdir={bucket_run}', f'--output={place}')
    assert code == 0, err
    assert {'.json', '.png'} <= {path.suffix for path in place.iterdir()}


def test_a_page_of_runs_in_a_bucket_is_that_of_the_folder(bucket_run, folder_run, place):
    texts = []
    for root, target in (
        (bucket_run, place / 'report.html'),
        (epath.Path(folder_run[0]), epath.Path(folder_run[0]) / 'a.html'),
    ):
        assert page.write(root, target) == 2
        texts.append(target.read_text())
        target.unlink()
    assert texts[0] == texts[1]
    with pytest.raises(UserError, match=f'^--workdir {place} '):
        page.write(place, place / 'report.html')


def test_cells_of_a_table_are_kept_in_the_bucket(small_config, place):
    cell = small_config(num_steps=2, teacher__num_steps=1, num_seeds=1)
    result = cells.run_one(place, cell)
    assert cells.read_cell(place, [cell]).items() >= result.items()
    assert cells.run_one(place, cell) == result
    assert np.isfinite(result['mean'])


def test_a_divergence_is_noted_in_the_bucket(place):
    with pytest.raises(Diverged), run_lib._lock_workdir(place):
        raise Diverged('not finite')
    assert workdir.read_json(place / workdir.DIVERGED) == {'reason': 'not finite'}
    with run_lib._lock_workdir(place):
        assert workdir.read_json(place / workdir.DIVERGED) is None


def test_a_comparison_in_the_bucket_is_no_run(small_config, place):
    for name in (workdir.SEARCH, workdir.JOURNALS):
        assert not workdir.holds_comparison(place)
        workdir.write(place / name / 'a file', '')
    with pytest.raises(UserError, match=r' is a workdir of td_jax\.compare; choose another --workdir'):
        train(small_config(method='supervised'), place)


@pytest.mark.parametrize(
    'address',
    [
        'gs://nobody-made-this/run',
        *(pytest.param(a, marks=pytest.mark.long) for a in ('s3://bucket/run', 'gs://')),
    ],
)
def test_a_place_that_cannot_be_is_one_line(bucket, flags, address):
    code, out, err = run_to_end('-m', 'td_jax.main', *flags, f'--workdir={address}')
    assert (code, out) == (2, '')
    (line,) = err.splitlines()
    assert line.startswith('td_jax: ')
    assert address in line


def test_a_config_of_another_run_in_the_bucket_is_refused(bucket_run, flags):
    code, out, err = run_to_end('-m', 'td_jax.main', *flags, '--config.seed=7', f'--workdir={bucket_run}')
    assert (code, out) == (2, '')
    (line,) = err.splitlines()
    assert line.startswith(f'td_jax: {bucket_run} holds a run with another config: seed')
    assert workdir.read_json(bucket_run / workdir.RESULT)['steps'] == 8


def test_the_workers_of_a_pod_train_into_the_bucket(place, flags, tmp_path, free_port):
    """launch/worker.sh as launch/tpu_vm.sh calls it, on two workers that Slurm's variables connect."""
    workers = [tmp_path / f'worker-{i}' for i in range(2)]
    for i, folder in enumerate(workers):
        (folder / '.venv' / 'bin').mkdir(parents=True)
        shutil.copytree(ROOT / 'launch', folder / 'launch')
        for name in ('td_jax', 'configs'):
            (folder / name).symlink_to(ROOT / name)
        python = folder / '.venv' / 'bin' / 'python'
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        slurm = {'JOB_ID': free_port, 'STEP_NODELIST': 'localhost', 'NTASKS': 2, 'PROCID': i, 'LOCALID': i}
        subprocess.run(
            ['bash', 'launch/worker.sh', 'start', *flags, '--config.batch_size=16', f'--workdir={place}'],
            cwd=folder,
            env={
                **{name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'},
                **{f'SLURM_{name}': str(value) for name, value in slurm.items()},
                'JAX_COORDINATOR_PORT': str(free_port),
                'JAX_PLATFORMS': 'cpu',
            },
            check=True,
        )
    logs = []
    for folder in workers:
        subprocess.run(['bash', 'launch/worker.sh', 'follow'], cwd=folder, capture_output=True, check=True)
        completed = subprocess.run(
            ['bash', 'launch/worker.sh', 'code'], cwd=folder, capture_output=True, text=True, check=True
        )
        logs.append((folder / '.run' / 'log').read_text())
        assert completed.stdout == 'td_jax: 0\n', logs
    result = workdir.read_json(place / workdir.RESULT)
    assert result['steps'] == 8
    assert describe(result) in logs[0]
    assert describe(result) not in logs[1]
    assert (place / 'checkpoints' / '8' / 'commit_success.txt').exists()
    assert np.isfinite(result['mean'])


@pytest.fixture
def free_port():
    with socket.socket() as free_socket:
        free_socket.bind(('localhost', 0))
        return free_socket.getsockname()[1]
