"""Runs many tasks: one after the other, or in parallel processes that have cores of their own.

Several workers, on one machine or many, may share a folder of runs, which is their queue: the lock of a run's
folder keeps two of them from training it, and a worker comes back later to what another has in use.
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import jax
from etils import epath

from td_jax import quantities
from td_jax.devices import compilation_cache, platform
from td_jax.errors import InUse, UserError
from td_jax.files import quiet, workdir

# Size limit of the cache of compiled programs.
COMPILED_BYTES = 4 * 2**30
# Seconds after which a task that another worker has in use is tried again.
PAUSE = 2.0
# The variables by which schedulers tell a task its index and the number of tasks.
SCHEDULERS = (
    ('SLURM_ARRAY_TASK_ID', 'SLURM_ARRAY_TASK_COUNT'),
    ('SKYPILOT_JOB_RANK', 'SKYPILOT_NUM_JOBS'),
    ('JOB_COMPLETION_INDEX', ''),
)
# The first index of a Slurm array and the difference between two.
_ARRAY = ('MIN', '0'), ('STEP', '1')


class Shard(NamedTuple):
    """One of several workers that share a folder of runs."""

    index: int  # from 0
    count: int

    def __str__(self):
        return f'{self.index + 1}of{self.count}'

    def cut(self, items: Sequence) -> Sequence:
        """The shard's part of consecutive items."""
        return items[len(items) * self.index // self.count : len(items) * (self.index + 1) // self.count]


def read_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """Reads the value of --shard: I/N, or `auto` for what a scheduler says, of both or of I alone.

    Raises:
      UserError: it is neither, or there is no such scheduler.
    """
    if not text:
        return None
    index, slash, count = text.partition('/')
    numbers, origin = (index, '1', '1', count), ''
    if index == 'auto':
        name, count_name = next((names for names in SCHEDULERS if names[0] in environment), ('', ''))
        if not name:
            raise UserError(
                f'--shard={text}, but none of {", ".join(name for name, _ in SCHEDULERS)} is set; write '
                '--shard=I/N with I from 1 to N.'
            )
        if not slash and count_name not in environment:
            raise UserError(f'--shard=auto, but {name} comes without a count; write --shard=auto/N.')
        # The indices of a Slurm array may begin anywhere and have gaps.
        first, step = (environment.get(f'SLURM_ARRAY_TASK_{part}', default) for part, default in _ARRAY)
        numbers, origin = (
            (environment[name], first, step, count or environment[count_name]),
            f' ({name} is {environment[name]})',
        )
    if all(number.isdecimal() and len(number) <= quantities.MOST_DIGITS for number in numbers):
        number, first, step, total = map(int, numbers)
        place, rest = divmod(number - first, step)
        if not rest and 0 <= place < total:
            return Shard(place, total)
    raise UserError(f'--shard={text} is none of N shards{origin}; write --shard=I/N with I from 1 to N.')


def run_tasks(
    function: Callable,
    tasks: Iterable,
    count: int,
    folder: epath.Path,
    what: str,
    kinds: Sequence[Hashable] = (),
    on_result: Callable[[int, Any], None] = lambda number, result: None,
    is_done: Callable[[int], bool] = lambda number: False,
) -> list[Any]:
    """Calls a function for each task and returns the results in order; reports the progress.

    A task that raises InUse is tried again after the others, until no other worker has it.

    Args:
      function: of one task. Other processes must be able to import it. It reads other inputs from disk, and
        writes there what must not be lost.
      tasks: the arguments, one for each call.
      count: parallel processes; with 1, or a single task, the function is called in this process.
      folder: for the output of the processes, `job_0.log` and so on. A file in a bucket cannot grow; with a
        folder in one, they print where this process does.
      what: a name of the tasks for messages, such as 'runs'.
      kinds: of each task; a process prefers a task of the same kind as its last one, such as one with the
        program that it has compiled. Empty if all are of one kind.
      on_result: called in this process with the number and the result of each task as soon as it ends.
      is_done: whether another worker has done a task by now; then its result is None.

    Raises:
      UserError: raised by a task, and the others are stopped; or a process died.
    """
    tasks, start, results = list(tasks), time.monotonic(), {}
    count, waiting = min(count, len(tasks)), list(range(len(tasks)))

    def settle(number, call):
        """Keeps the result of a task; False if another worker has it in use."""
        try:
            results[number] = call()
        except InUse:
            waiting.append(number)
            # If all that is left is in use, this is how often it is looked at.
            time.sleep(PAUSE)
            return False
        on_result(number, results[number])
        _report_progress(what, len(results), count, len(tasks), start)
        return True

    def take(choose):
        """Takes a waiting task that no other worker has done by now; None if there is none."""
        while waiting:
            number = choose()
            waiting.remove(number)
            if not is_done(number):
                return number
            results[number] = None
        return None

    if count <= 1:
        while (number := take(lambda: waiting[0])) is not None:
            settle(number, functools.partial(function, tasks[number]))
        return [results[number] for number in range(len(tasks))]
    context = multiprocessing.get_context('spawn')
    log_folder = None if workdir.is_in_bucket(folder) else folder
    # One pool for each process, so that a task can be given to a certain one.
    pools = [
        concurrent.futures.ProcessPoolExecutor(
            1,
            context,
            initializer=_init_worker,
            initargs=(cores, log_folder and str(log_folder / f'job_{i}.log')),
        )
        for i, cores in enumerate(split_cores(count) or [[]] * count)
    ]
    kinds, last_kinds, running = kinds or [None] * len(tasks), [None] * count, {}
    try:
        while waiting or running:
            for place in sorted({*range(count)} - {place for _, place in running.values()}):
                choose = functools.partial(_choose_task, waiting, kinds, last_kinds, place)
                if (number := take(choose)) is not None:
                    last_kinds[place] = kinds[number]
                    running[pools[place].submit(function, tasks[number])] = number, place
            finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in finished:
                number, place = running.pop(future)
                if not settle(number, future.result):
                    # Else the process would prefer this task again.
                    last_kinds[place] = None
    except BrokenProcessPool as error:
        raise UserError(
            f'a process of --jobs={count} died, killed or out of memory; what it printed is '
            f'{f"in {log_folder}" if log_folder else "above"}. The same command resumes, with fewer jobs if '
            'memory was short.'
        ) from error
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        # If a task failed, all processes end; each run resumes from its last checkpoint.
        for process in multiprocessing.active_children():
            process.terminate()
    return [results[number] for number in range(len(tasks))]


def _choose_task(waiting, kinds, last_kinds, place):
    """The task for a process: of its last kind, else of a kind that no other process has, else the first."""
    others = last_kinds[:place] + last_kinds[place + 1 :]
    return min(waiting, key=lambda number: (kinds[number] != last_kinds[place], kinds[number] in others))


def split_cores(count: int) -> list[list[int]]:
    """Splits the cores of this process into `count` parts of nearly equal size; [] if they are unknown.

    With fewer cores than parts, some parts share a core.
    """
    cores = _cores()
    return [cores[i::count] or [cores[i % len(cores)]] for i in range(count)] if cores else []


def _cores():
    """The numbers of the cores of this process, [] if the system does not report them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []


def count_processes(count: int) -> int:
    """The number of tasks that can run at once, from what was requested.

    Args:
      count: requested number; 0 for one per core, or a single one if runs use another device than the CPU.

    Raises:
      UserError: there are fewer cores, or the device cannot be started or cannot be shared by processes.
    """
    platform.start()
    cores = len(_cores()) or os.cpu_count()
    if not count:
        count = cores if jax.default_backend() == 'cpu' else 1
    if count > cores:
        raise UserError(f'--jobs is {count}, but this process has {cores} cores; choose at most as many.')
    if count > 1 and jax.default_backend() != 'cpu':
        raise UserError(
            f'--jobs is {count}, but runs are on {jax.default_backend()}, which one process keeps for '
            'itself; leave --jobs out, or set JAX_PLATFORMS=cpu.'
        )
    return count


def prepare(count: int, folder: epath.Path) -> int:
    """Counts as `count_processes` does, and caches compiled programs in a folder `compiled`.

    If JAX_COMPILATION_CACHE_DIR is set, that is the cache; with runs in a bucket, there is none.

    Args:
      count: as of `count_processes`.
      folder: of all runs.

    Returns:
      the number of tasks at once

    Raises:
      UserError: as of `count_processes`.
    """
    count = count_processes(count)
    if jax.config.jax_compilation_cache_dir or workdir.is_in_bucket(folder):
        return count
    # This process reads jax.config, and a new one the environment.
    for name, value in (
        ('jax_compilation_cache_dir', str(folder / 'compiled')),
        ('jax_persistent_cache_min_compile_time_secs', 0),
        # Parallel processes need a lock, which only a bounded cache has.
        ('jax_compilation_cache_max_size', COMPILED_BYTES),
    ):
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    compilation_cache.repair()
    return count


def _init_worker(cores, log):
    """Prepares a new process: its cores, its log, and that it ends with its parent."""
    if cores:
        # Must precede JAX, which counts them once.
        os.sched_setaffinity(0, cores)
    # The parent handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if log:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file, stream.fileno())
    quiet.silence_failed_saves()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    with contextlib.suppress(OSError):
        os.kill(os.getpid(), signal.SIGKILL)


def _report_progress(what, done, running, total, start):
    left = total - done
    running = min(running, left)
    seconds = (time.monotonic() - start) / done * left
    print(
        f'{what}: {done} done, {running} running, {left - running} waiting; '
        f'about {quantities.describe_duration(seconds)} left',
        file=sys.stderr,
        flush=True,
    )
