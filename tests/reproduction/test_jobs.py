"""Tasks side by side, in real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import pytest
from etils import epath

from td_jax.errors import InUse, UserError
from td_jax.reproduction import jobs

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 0
ROOT = pathlib.Path(__file__).parents[2]


def test_one_after_the_other_in_this_process(capsys, tmp_path):
    finished_tasks = []
    assert jobs.run_tasks(finished_tasks.append, [3, 1, 2], 1, epath.Path(tmp_path), 'runs') == [None] * 3
    assert finished_tasks == [3, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(';')[0] for line in lines] == [
        'runs: 1 done, 1 running, 1 waiting',
        'runs: 2 done, 1 running, 0 waiting',
        'runs: 3 done, 0 running, 0 waiting',
    ]
    assert lines[-1].endswith('about 0 s left')
    # A local function cannot be sent to another process, so the only task runs here.
    assert jobs.run_tasks(lambda task: task + 1, [5], 2, epath.Path(tmp_path), 'runs') == [6]
    assert jobs.run_tasks(finished_tasks.append, [], 2, epath.Path(tmp_path), 'runs') == []


def test_what_another_worker_has_in_use_is_tried_again(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, 'PAUSE', 0.01)
    tasks_tried, results_kept = [], []

    def work(task):
        tasks_tried.append(task)
        if task == 1 and len(tasks_tried) < 4:
            raise InUse('in use')
        return -task

    def is_done(number):
        # Another worker does the third in the meantime.
        return number == 2 and bool(tasks_tried)

    results = jobs.run_tasks(
        work,
        [1, 2, 3],
        1,
        epath.Path(tmp_path),
        'runs',
        on_result=lambda *result: results_kept.append(result),
        is_done=is_done,
    )
    assert tasks_tried == [1, 2, 1, 1]
    assert results == [-1, -2, None]
    assert results_kept == [(1, -2), (0, -1)]


@pytest.mark.parametrize(
    ('text', 'environment', 'shard'),
    [
        ('1/1', {}, (0, 1)),
        ('3/10', {'JOB_COMPLETION_INDEX': '7'}, (2, 10)),
        ('auto/10', {'JOB_COMPLETION_INDEX': '7'}, (7, 10)),
        ('auto', {'SLURM_ARRAY_TASK_ID': '3', 'SLURM_ARRAY_TASK_COUNT': '4'}, (3, 4)),
        (
            'auto',
            {'SLURM_ARRAY_TASK_ID': '3', 'SLURM_ARRAY_TASK_COUNT': '4', 'SLURM_ARRAY_TASK_MIN': '1'},
            (2, 4),
        ),
        # --array=4-8:2
        (
            'auto',
            {
                'SLURM_ARRAY_TASK_ID': '6',
                'SLURM_ARRAY_TASK_COUNT': '3',
                'SLURM_ARRAY_TASK_MIN': '4',
                'SLURM_ARRAY_TASK_STEP': '2',
            },
            (1, 3),
        ),
        ('auto', {'SKYPILOT_JOB_RANK': '0', 'SKYPILOT_NUM_JOBS': '2'}, (0, 2)),
    ],
)
def test_shards_are_counted_from_one_and_by_schedulers_as_they_do(text, environment, shard):
    assert jobs.read_shard(text, environment) == shard


@pytest.mark.parametrize(
    ('text', 'environment', 'message'),
    [
        ('0/2', {}, '--shard=0/2 is none of N shards; write --shard=I/N with I from 1 to N.'),
        ('3/2', {}, '--shard=3/2 is none of N shards; '),
        (f'1/{"9" * 5000}', {}, f'--shard=1/{"9" * 5000} is none of N shards; '),
        (f'1/{10**18}', {}, '--shard=1/1000000000000000000 is none of N shards; '),
        ('1', {}, '--shard=1 is none of N shards; '),
        ('a/b', {}, '--shard=a/b is none of N shards; '),
        (
            'auto',
            {},
            '--shard=auto, but none of SLURM_ARRAY_TASK_ID, SKYPILOT_JOB_RANK, JOB_COMPLETION_INDEX is',
        ),
        (
            'auto',
            {'JOB_COMPLETION_INDEX': '1'},
            '--shard=auto, but JOB_COMPLETION_INDEX comes without a count; write --shard=auto/N.',
        ),
        (
            'auto/2',
            {'JOB_COMPLETION_INDEX': '2'},
            '--shard=auto/2 is none of N shards (JOB_COMPLETION_INDEX is 2); ',
        ),
    ],
)
def test_what_is_no_shard_is_refused(text, environment, message):
    with pytest.raises(UserError) as error_info:
        jobs.read_shard(text, environment)
    assert str(error_info.value).startswith(message)


@pytest.mark.parametrize(('items', 'count'), [(10, 3), (2, 5), (0, 2), (7, 7)])
def test_parts_are_equal_and_hold_everything(items, count):
    parts = [jobs.Shard(index, count).cut(range(items)) for index in range(count)]
    assert [item for part in parts for item in part] == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_is_over_is_kept_before_the_next_fails(tmp_path):
    results_kept = []
    with pytest.raises(ZeroDivisionError):
        jobs.run_tasks(
            lambda task: 6 // task,
            [3, 2, 0, 1],
            1,
            epath.Path(tmp_path),
            'runs',
            on_result=lambda number, result: results_kept.append((number, result)),
        )
    assert results_kept == [(0, 2), (1, 3)]


@pytest.mark.skipif(not CORES, reason='this system does not say what cores a process has')
@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_every_core_is_in_one_share(monkeypatch, count):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {4, 2, 9, 0, 5, 1, 8})
    shares = jobs.split_cores(count)
    assert len(shares) == count
    assert sorted(core for share in shares for core in share) == [0, 1, 2, 4, 5, 8, 9]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_jobs_than_cores_are_refused(tmp_path):
    cores = CORES or os.cpu_count()
    with pytest.raises(UserError, match=f'--jobs is {cores + 1}, but this process has {cores} cores'):
        jobs.prepare(cores + 1, epath.Path(tmp_path))


def test_none_named_is_one_on_each_core(monkeypatch, tmp_path):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(5), raising=False)
    assert [jobs.prepare(count, epath.Path(tmp_path)) for count in (0, 1, 3)] == [5, 1, 3]


def test_a_device_that_one_process_keeps_is_not_shared(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    assert jobs.prepare(0, epath.Path(tmp_path)) == 1
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(4), raising=False)
    with pytest.raises(UserError, match='--jobs is 2, but runs are on tpu'):
        jobs.prepare(2, epath.Path(tmp_path))


def start(tmp_path, code, **more):
    """Starts a script that can import the module `work`, which has the functions of tasks."""
    (tmp_path / 'work.py').write_text(
        textwrap.dedent("""
            import os, sys, time
            from td_jax.errors import InUse, UserError
            def cores(task):
                print('heard of', task)
                time.sleep(0.5)
                return task, os.getpid(), sorted(os.sched_getaffinity(0)) if CORES else []
            def compiled(task):
                import jax
                jax.jit(lambda x: x + task)(1.0)
                return os.environ.get('JAX_COMPILATION_CACHE_DIR')
            def refuse(task):
                if task == 2:
                    raise UserError(f'{task} is wrong.')
                time.sleep(60 * (task == 3))
                return task
            def busy(task):
                # Another worker has each once.
                if not os.path.exists(f'{task}.tried'):
                    open(f'{task}.tried', 'w').close()
                    raise InUse('in use')
                return -task
            def die(task):
                os.kill(os.getpid(), 9)
            def wait(task):
                open(f'{task}.pid', 'w').write(str(os.getpid()))
                time.sleep(600)
        """).replace('CORES', str(bool(CORES)))
    )
    (tmp_path / 'script.py').write_text(
        'import work\nfrom etils import epath\nfrom td_jax.errors import UserError\n'
        'from td_jax.reproduction import jobs\n'
        f'if __name__ == "__main__":\n{textwrap.indent(textwrap.dedent(code), "    ")}'
    )
    paths = os.pathsep.join((str(ROOT), str(tmp_path)))
    return subprocess.Popen(
        [sys.executable, 'script.py'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': paths, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


two_cores = pytest.mark.skipif(CORES < 2, reason='two processes side by side need two cores')


@two_cores
def test_side_by_side_each_on_its_cores_with_a_log_and_one_folder_of_programs(tmp_path):
    process = start(
        tmp_path,
        """
        here = epath.Path('.').absolute()
        jobs.prepare(2, here)
        print(jobs.run_tasks(work.cores, [5, 6, 7], 2, here, 'runs'))
        print(jobs.run_tasks(work.compiled, [1, 2], 2, here, 'runs'))
        """,
        JAX_COMPILATION_CACHE_DIR='',
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    first, second = map(eval, out.splitlines())
    assert [task for task, _, _ in first] == [5, 6, 7]
    shares = {process: cores for _, process, cores in first}
    assert len(shares) == 2
    assert sorted(shares.values()) == sorted(jobs.split_cores(2))
    logs = [(tmp_path / f'job_{place}.log').read_text() for place in range(2)]
    assert sorted(line for log in logs for line in log.splitlines()) == [f'heard of {i}' for i in (5, 6, 7)]
    assert second == [str(tmp_path / 'compiled')] * 2
    assert list((tmp_path / 'compiled').iterdir())
    assert 'runs: 3 done, 0 running, 0 waiting' in err


@pytest.mark.parametrize(
    ('last', 'place', 'chosen'),
    [
        ((None, None), 0, 0),
        # A kind that the other process does not do; then the kind that it did last; then any.
        (('a', None), 1, 2),
        (('a', 'b'), 0, 0),
        (('c', 'b'), 1, 2),
        (('c', 'a'), 0, 4),
        (('c', 'd'), 1, 0),
    ],
)
def test_a_process_goes_on_with_what_it_has_compiled(last, place, chosen):
    kinds = {0: 'a', 1: 'a', 2: 'b', 3: 'b', 4: 'c'}
    assert jobs._choose_task([0, 1, 2, 3, 4], kinds, list(last), place) == chosen


def test_a_process_takes_what_another_one_does_where_that_is_all_there_is():
    assert jobs._choose_task([3, 5], {3: 'a', 5: 'a'}, ['a', 'b'], 1) == 3


@two_cores
def test_processes_for_a_bucket_print_here(tmp_path):
    process = start(
        tmp_path,
        """
        print(len(jobs.run_tasks(work.cores, [5, 6], 2, epath.Path('gs://bucket/runs'), 'runs')))
        """,
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == ['2', 'heard of 5', 'heard of 6']
    assert not list(tmp_path.glob('*.log'))


@two_cores
def test_processes_try_again_what_another_worker_has_in_use(tmp_path):
    process = start(
        tmp_path,
        """
        jobs.PAUSE = 0.01
        here = epath.Path('.').absolute()
        is_done = lambda number: number == 2
        print(jobs.run_tasks(work.busy, [1, 2, 3], 2, here, 'runs', kinds=['a', 'a', 'b'], is_done=is_done))
        """,
    )
    out, err = process.communicate()
    assert (process.returncode, out) == (0, '[-1, -2, None]\n'), err
    assert {path.name for path in tmp_path.glob('*.tried')} == {'1.tried', '2.tried'}


@two_cores
def test_what_one_refuses_ends_all(tmp_path):
    """Another task, which would sleep for a minute, is stopped."""
    process = start(
        tmp_path,
        """
        try:
            jobs.run_tasks(work.refuse, [1, 3, 2, 4], 2, epath.Path('.').absolute(), 'runs')
        except UserError as error:
            print(error)
        """,
    )
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (0, '2 is wrong.\n'), err


@two_cores
def test_a_process_that_dies_is_one_line(tmp_path):
    process = start(
        tmp_path,
        """
        try:
            jobs.run_tasks(work.die, [1, 2], 2, epath.Path('.').absolute(), 'runs')
        except UserError as error:
            print(error)
        """,
    )
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    assert out.startswith('a process of --jobs=2 died, killed or out of memory; ')
    assert out.count('\n') == 1


@two_cores
@pytest.mark.long
def test_processes_end_with_the_one_they_work_for(tmp_path):
    process = start(tmp_path, "jobs.run_tasks(work.wait, [1, 2], 2, epath.Path('.').absolute(), 'runs')")
    files = [tmp_path / '1.pid', tmp_path / '2.pid']
    while not all(path.exists() and path.read_text() for path in files):
        assert process.poll() is None
    children = [int(path.read_text()) for path in files]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for child in children:
        while is_alive(child):
            pass


def is_alive(process):
    """Whether a process runs; a zombie does not."""
    try:
        state = pathlib.Path(f'/proc/{process}/stat').read_text().rpartition(') ')[2][0]
    except OSError:
        return False
    return state != 'Z'
