"""The command line in real processes, which finish, are killed, stopped or refused."""

import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from td_jax import config
from td_jax.configs import digits
from td_jax.devices import processes
from td_jax.files import metric_log, workdir
from td_jax.training.run import describe, train
from tests import forked

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.fixture(scope='module')
def settings(small_config):
    """A config with every kind of randomness, and many saves."""
    return small_config(
        num_steps=24,
        log_every=4,
        eval_every=digits.get_config().eval_every,  # without effect; another value would be reported
        batch_size=9,
        optimizer__weight_decay=0.1,
        model__dropout=0.2,
        communication__dropout=0.1,
        td__noise_std=0.1,
    )


@pytest.fixture(scope='module')
def flags(settings):
    """The command line that sets `settings`."""
    plain = config.flatten(digits.get_config())
    overrides = {key: value for key, value in config.flatten(settings).items() if value != plain[key]}
    return ['--config=configs/digits.py', *(f'--config.{key}={value}' for key, value in overrides.items())]


def start(arguments, environment=None, program=('-m', 'td_jax.main'), cwd=ROOT):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), **(environment or {})}
    return forked.start([*program, *arguments], cwd, env)


def wait_for_end(process):
    """Waits for a process to end by itself: (exit code, stdout, stderr)."""
    out, err = process.communicate()
    return process.returncode, out, err


# A killed process must not leave half-written programs in the shared compilation cache.
ONLY_READS_COMPILED = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1e9'}


def start_until(action, moment, count, arguments):
    """Starts a process in which interrupted.py acts at a moment."""
    program = ('tests/interrupted.py', action, str(moment), str(count))
    return start(arguments, ONLY_READS_COMPILED, program)


@pytest.fixture(scope='module')
def compile_run(uninterrupted, settings, tmp_path_factory):
    """Trains such a run, so that all that it compiles is in the cache."""
    train(settings, tmp_path_factory.mktemp('compiled') / 'run')


@pytest.fixture(scope='module')
def uninterrupted(flags, tmp_path_factory):
    """(workdir, stdout, stderr) of an uninterrupted run, in a fresh process that compiles anew."""
    folder = tmp_path_factory.mktemp('runs') / 'new' / 'uninterrupted'
    completed = subprocess.run(
        [sys.executable, '-m', 'td_jax.main', *flags, f'--workdir={folder}'],
        cwd=ROOT,
        env={**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return folder, completed.stdout, completed.stderr


@pytest.fixture
def run_with_teacher(uninterrupted, tmp_path):
    """A workdir that already has its teacher."""
    shutil.copytree(uninterrupted[0] / 'teacher', tmp_path / 'run' / 'teacher')
    return tmp_path / 'run'


# --- A run that ends well --------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_shows_its_progress_and_ends_with_one_line(uninterrupted, settings, outcome):
    folder, out, err = uninterrupted
    result = outcome(folder)['result']
    assert out == describe(result) + '\n'
    assert out.startswith('td on digits 5, 6, 7, 8, 9: test accuracy 0.')
    assert out.endswith(' (2 seeds, 24 steps)\n')
    *progress, last = err.splitlines()
    assert all(line.startswith(('td digits', 'supervised digits')) for line in progress)
    assert last.startswith('td digits 5, 6, 7, 8, 9: step 24/24  loss ')
    assert last.endswith(' steps/s (all seeds)  0 s left')
    assert outcome(folder)['config'] == workdir.read_json(folder / 'config.json')
    assert config.differences(settings, outcome(folder)['config']) == {}


@pytest.mark.long
def test_the_same_command_prints_the_result_again(uninterrupted, flags, tmp_path):
    """With a relative --workdir, from a folder without configs/."""
    folder, out, _ = uninterrupted
    copied_run = shutil.copytree(folder, tmp_path / 'run')
    times = {path: path.stat().st_mtime_ns for path in copied_run.rglob('*')}
    _, *overrides = flags
    absolute = [f'--config={ROOT / "configs" / "digits.py"}', *overrides]
    assert wait_for_end(start([*absolute, '--workdir=run'], cwd=tmp_path)) == (0, out, '')
    assert {path: path.stat().st_mtime_ns for path in copied_run.rglob('*')} == times


# --- A run that is cut off -------------------------------------------------------------------------


def has_all_events(folder):
    """Whether the events hold every value of metrics.jsonl exactly once."""
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(folder), size_guidance={'tensors': 0}).Reload()
    actual = [(event.step, tag) for tag in events.Tags()['tensors'] for event in events.Tensors(tag)]
    expected = [(line['step'], name) for line in metric_log.read(folder) for name in line if name != 'step']
    return sorted(actual) == sorted(expected)


@pytest.mark.long
def test_twelve_kills_in_a_row_change_nothing(uninterrupted, compile_run, flags, settings, tmp_path, outcome):
    """At different moments: while it evaluates, inside a save, and again right after its start."""
    folder, chance = tmp_path / 'run', random.Random(0)
    arguments = [*flags, f'--workdir={folder}']
    saving = f'{folder}/checkpoints'
    moments = [
        *[(folder, chance.randrange(1, 200)) for _ in range(2)],
        ('td_jax.training.evaluation:iterate_batches', 1),
        (folder, chance.randrange(1, 6)),
        *[('.orbax-checkpoint-tmp', chance.randrange(1, 20)) for _ in range(2)],
        *[(saving, chance.randrange(1, 20)) for _ in range(3)],
        (folder, chance.randrange(1, 40)),
    ]
    # Between calls of Python: some time after the student's first progress,
    # while most of its steps are still to come.
    process = start(arguments, ONLY_READS_COMPILED)
    for line in process.stderr:
        if line.startswith('td digits'):
            break
    time.sleep(chance.uniform(0, 0.2))
    process.kill()
    process.communicate()
    for moment, count in moments:
        code, _, err = wait_for_end(start_until('kill', moment, count, arguments))
        assert code == -signal.SIGKILL, err
    # The last evaluation, when every step is done and saved.
    assert (
        wait_for_end(start_until('kill', 'td_jax.training.evaluation:iterate_batches', 1, arguments))[0]
        == -signal.SIGKILL
    )
    assert not (folder / 'result.json').exists()
    train(settings, folder)
    assert outcome(folder) == outcome(uninterrupted[0])
    assert has_all_events(folder)


@pytest.mark.long
def test_a_run_killed_while_it_saves_ends_the_same(
    uninterrupted, compile_run, run_with_teacher, flags, settings, outcome
):
    checkpoints = run_with_teacher / 'checkpoints'
    moments = (
        # Half of the state is written.
        (f'{checkpoints}/4.orbax-checkpoint-tmp/state', 3),
        # Everything is written, but not yet renamed.
        (f'{checkpoints}/6.orbax-checkpoint-tmp/commit_success.txt', 1),
        # The checkpoint is complete, but without its digests.
        (f'{checkpoints}/8/digests-0.json', 1),
        # The last checkpoint is saved, but not the result.
        ('td_jax.training.finished:write_errors', 1),
    )
    codes_and_steps = []
    for part, count in moments:
        arguments = [*flags, f'--workdir={run_with_teacher}']
        code, _, _ = wait_for_end(start_until('kill', part, count, arguments))
        codes_and_steps.append(
            (code, sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()))
        )
    killed = -signal.SIGKILL
    assert codes_and_steps == [(killed, [2]), (killed, [2, 4]), (killed, [6, 8]), (killed, [22, 24])]
    train(settings, run_with_teacher)
    assert outcome(run_with_teacher) == outcome(uninterrupted[0])
    assert has_all_events(run_with_teacher)


def is_interrupted(process):
    code, out, err = wait_for_end(process)
    assert (code, out) == (130, '')
    *progress, last = err.splitlines()
    assert [line for line in progress if not line.startswith(('td digits', 'continues at'))] == []
    return last == 'td_jax: interrupted; the same command continues.'


@pytest.mark.long
def test_control_c_is_one_line_and_the_same_command_continues(
    uninterrupted, run_with_teacher, flags, settings, outcome
):
    arguments = [*flags, f'--workdir={run_with_teacher}']
    process = start(arguments, ONLY_READS_COMPILED)
    assert process.stderr.readline().startswith('td digits 5, 6, 7, 8, 9: step 2/24')
    process.send_signal(signal.SIGINT)
    assert is_interrupted(process)
    # Again, in a save.
    part = f'{run_with_teacher}/checkpoints/22.orbax-checkpoint-tmp/state'
    assert is_interrupted(start_until('interrupt', part, 2, arguments))
    assert not (run_with_teacher / 'result.json').exists()
    train(settings, run_with_teacher)
    assert outcome(run_with_teacher) == outcome(uninterrupted[0])


@pytest.mark.long
def test_a_disk_that_is_full_at_the_last_save(uninterrupted, run_with_teacher, flags, settings, outcome):
    part = f'{run_with_teacher}/checkpoints/24.orbax-checkpoint-tmp'
    arguments = [*flags, f'--workdir={run_with_teacher}']
    code, out, err = wait_for_end(start_until('fill', part, 1, arguments))
    assert (code, out) == (2, '')
    *progress, last = err.splitlines()
    assert all(line.startswith('td digits') for line in progress), err
    assert last.startswith(
        f'td_jax: the checkpoint of step 24 could not be written to {run_with_teacher}/checkpoints'
    )
    assert not (run_with_teacher / 'result.json').exists()
    # With free space again, it continues from the checkpoint before.
    with pytest.MonkeyPatch.context() as patch:
        messages = []
        patch.setattr(processes, 'say', messages.append)
        train(settings, run_with_teacher)
    assert messages[0] == 'continues at step 22 of 24'
    assert outcome(run_with_teacher) == outcome(uninterrupted[0])


def run_in_a_mount(script, **folders):
    """Runs a shell script in a mount namespace of its own; skips where that is not allowed."""
    command = ['unshare', '--mount', '--map-root-user', 'sh', '-ec']
    try:
        completed = subprocess.run([*command, 'mount -t tmpfs none /mnt'], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip('there is no unshare here')
    if completed.returncode:
        pytest.skip('this machine does not let a process mount anything')
    settings = {**os.environ, 'PYTHONPATH': str(ROOT), **{name: str(path) for name, path in folders.items()}}
    return subprocess.run(
        [*command, script], cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )


@pytest.mark.long
def test_a_small_disk_that_fills_up(uninterrupted, run_with_teacher, flags, settings, tmp_path, outcome):
    """The disk has space for two checkpoints, but not for the third one that exists for a moment."""
    files = [path for path in uninterrupted[0].rglob('*') if path.is_file()]
    pages = 2 + sum(-(-path.stat().st_size // 4096) for path in files)
    completed = run_in_a_mount(
        """
        mkdir "$HERE"
        mount -t tmpfs -o size="$SIZE" none "$HERE"
        cp -r "$TAUGHT"/. "$HERE"
        status=0
        "$PYTHON" -m td_jax.main --workdir="$HERE" "$@" || status=$?
        cp -r "$HERE" "$THERE"
        exit $status
        """.replace('"$@"', shlex.join(flags)),
        HERE=tmp_path / 'small',
        THERE=tmp_path / 'found',
        TAUGHT=run_with_teacher,
        PYTHON=sys.executable,
        SIZE=4096 * pages,
    )
    assert completed.returncode == 2, completed.stderr
    *progress, last = completed.stderr.splitlines()
    assert [line for line in progress if not line.startswith('td digits')] == []
    assert last.startswith('td_jax: ')
    assert 'No space left on device' in last
    copied_run = tmp_path / 'found'
    assert not (copied_run / 'result.json').exists()
    assert any(path.name.isdigit() for path in (copied_run / 'checkpoints').iterdir())
    train(settings, copied_run)
    assert outcome(copied_run) == outcome(uninterrupted[0])


@pytest.mark.long
def test_a_checkpoint_folder_that_cannot_be_written(uninterrupted, flags, tmp_path):
    folder = shutil.copytree(uninterrupted[0], tmp_path / 'run')
    (folder / 'result.json').unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}
    completed = run_in_a_mount(
        """
        mount --bind "$HERE" "$HERE"
        mount -o remount,ro,bind "$HERE"
        exec "$PYTHON" -m td_jax.main --workdir="$WORKDIR" """
        + shlex.join(flags),
        HERE=folder / 'checkpoints',
        WORKDIR=folder,
        PYTHON=sys.executable,
    )
    assert completed.returncode == 2
    assert completed.stderr == (
        f'td_jax: {folder}/checkpoints cannot be written; make it so, or choose another --workdir.\n'
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()} == before


# --- Invalid input ---------------------------------------------------------------------------------


def read_refusal(process):
    """The error of a process that refuses, without the name of the program."""
    code, out, err = wait_for_end(process)
    assert (code, out) == (2, '')
    (line,) = err.splitlines()
    assert line.startswith('td_jax: ')
    return line.removeprefix('td_jax: ')


CONFIGS = {
    'raises.py': 'def get_config():\n    return 1 / 0\n',
    'wrong.py': 'from td_jax.configs import common\n\ndef get_config():\n    common.get_config().seed = ""\n',
    'broken.py': 'def get_config(:\n',
    'number.py': 'def get_config():\n    return 3\n',
    'forgotten.py': 'from td_jax.configs import common\n\ndef get_config():\n    common.get_config()\n',
}
DIGITS = '--config=configs/digits.py'


@pytest.mark.parametrize(
    ('arguments', 'parts'),
    [
        ([DIGITS, '--config.nun_steps=3'], ['nun_steps is not a key of the config. Did you mean num_steps?']),
        (
            [DIGITS, '--config.td.weights.interac', '3'],
            ['td.weights.interac is not a key of the config. Did you mean td.weights.interact?'],
        ),
        ([DIGITS, '-config.optimiser.name=sgd'], ['optimiser.name is not a key', 'Did you mean optimizer?']),
        (
            [DIGITS, '--config.dataset.zebra=0.1'],
            ['dataset.zebra is not a key', 'td_jax/configs/common.py declares every option.'],
        ),
        ([DIGITS, '--config.num_steps.most=3'], ['num_steps.most is not a key of the config: num_steps has']),
        ([DIGITS, '--config.model.hidden[0]=3'], ['model.hidden[0] cannot be set by itself', '=(32, 16)']),
        ([DIGITS, '--noconfig.dataset.zebra'], ['dataset.zebra is not a key of the config.']),
        ([DIGITS, '--config.=3'], ["'' is not a key of the config."]),
        ([DIGITS, '--config.num_steps=many'], ['--config.num_steps=many', "'many'"]),
        ([DIGITS, '--config.model.hidden=(3,'], ['--config.model.hidden=(3,']),
        ([DIGITS, '--workdri=runs'], ["Unknown command line flag 'workdri'. Did you mean: workdir"]),
        ([DIGITS, 'stray'], ['stray is not a flag; every flag starts with --.']),
        ([], ['--config is missing.']),
        ([DIGITS, '--workdir='], ['--workdir is missing.']),
        (['--config=none.py'], ['--config=none.py is not there.']),
        (
            ['--config=configs/digit.py'],
            ['--config=configs/digit.py is not there. Did you mean configs/digits'],
        ),
        (['--config=raises.py'], ['division by zero (ZeroDivisionError in ', 'raises.py, line 2)']),
        (['--config=wrong.py'], ['--config=', 'wrong.py', "Could not override field 'seed'"]),
        (['--config=broken.py'], ['invalid syntax', 'broken.py, line 1']),
        (['--config=number.py'], ['--config=number.py: get_config returns a value of type int']),
        (['--config=forgotten.py'], ['--config=forgotten.py: get_config returns None']),
        (['--config=forgotten.py', '--config.seed=3'], ['--config=forgotten.py: get_config returns None']),
        # Errors that need JAX are as short.
        ([DIGITS, '--config.seed=2147483648'], ['seed is 2147483648; it must be at most 2147483647.']),
        ([DIGITS, f'--config.num_steps={10**400}'], ['num_steps is 1000', 'it must be at most 2147483647.']),
        ([DIGITS, '--config.optimizer.learning_rate=1e308'], ['optimizer.learning_rate is 1e+308']),
        ([DIGITS, '--config.batch_size=51'], ['batch_size is 51, but digits 5, 6, 7, 8, 9 has 50 training']),
    ],
)
def test_invalid_input_is_one_line(arguments, parts, tmp_path):
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    message = read_refusal(start([f'--workdir={tmp_path / "run"}', *arguments], cwd=tmp_path))
    for part in parts:
        assert part in message
    assert 'ml_collections' not in message
    assert not (tmp_path / 'run').exists()


def test_a_workdir_in_use_is_refused_by_name(flags, tmp_path):
    with workdir.lock(tmp_path / 'run'):
        message = read_refusal(start([*flags, f'--workdir={tmp_path / "run"}']))
    assert message == (
        f'workdir {tmp_path / "run"} is in use by another process; wait for it or choose another --workdir.'
    )
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.lock']
