"""Many runs, one after the other, or several at a time in processes of their own, each kept to its cores."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
from etils import epath

from td_jax.devices import compiled, platform
from td_jax.errors import UserError
from td_jax.files import quiet, workdir

# The most that compiled programs take which are kept for later runs.
COMPILED_BYTES = 4 * 2**30


def each(
    function: Callable,
    tasks: Iterable,
    count: int,
    folder: epath.Path,
    what: str,
    kinds: Sequence[Hashable] = (),
    keep: Callable[[int, Any], None] = lambda number, result: None,
) -> list[Any]:
    """What a function gives for some tasks, in their order; how far it is, is said after each.

    Args:
      function: of one task; of a module, so that another process can import it. What it needs beyond its task
        it reads from disk, and what must not be lost it writes there.
      tasks: what it is called with.
      count: processes side by side; with 1, or a single task, it is called here.
      folder: gets what the processes print, `job_0.log` and so on. With one in a bucket, which no file can
        grow in, they print where this process does.
      what: the tasks, for a person, such as 'runs'.
      kinds: of each task; a process goes on with one of the same kind as its last, such as one of a program
        that it has compiled. None are given where all are of one.
      keep: called in this process with the number of each task and what it gave, as soon as it is over.

    Raises:
      UserError: of the first task that raised one; the others are stopped. Or a process died.
    """
    tasks, began = list(tasks), time.monotonic()
    count = min(count, len(tasks))
    if count <= 1:
        results = []
        for number, task in enumerate(tasks):
            results.append(function(task))
            keep(number, results[-1])
            _say(what, len(results), 1, len(tasks), began)
        return results
    context = multiprocessing.get_context('spawn')
    log_folder = None if workdir.is_in_bucket(folder) else folder
    # A pool of one each, so that it can be said which process a task is for.
    pools = [
        concurrent.futures.ProcessPoolExecutor(
            1, context, initializer=_settle, initargs=(cores, log_folder and str(log_folder / f'job_{i}.log'))
        )
        for i, cores in enumerate(shares(count) or [[]] * count)
    ]
    kinds, last = kinds or [None] * len(tasks), [None] * count
    waiting, running, results = list(range(len(tasks))), {}, {}
    try:
        while waiting or running:
            for place in sorted({*range(count)} - {place for _, place in running.values()}):
                if waiting:
                    number = _next(waiting, kinds, last, place)
                    waiting.remove(number)
                    last[place] = kinds[number]
                    running[pools[place].submit(function, tasks[number])] = number, place
            finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in finished:
                number, _ = running.pop(future)
                results[number] = future.result()
                keep(number, results[number])
                _say(what, len(results), count, len(tasks), began)
    except BrokenProcessPool as error:
        raise UserError(
            f'a process of --jobs={count} died, killed or out of memory; what it printed is '
            f'{f"in {log_folder}" if log_folder else "above"}. The same command resumes, with fewer jobs if '
            'memory was short.'
        ) from error
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        # None is left at work where a task failed; each run resumes from its last checkpoint.
        for process in multiprocessing.active_children():
            process.terminate()
    return [results[number] for number in range(len(tasks))]


def _next(waiting, kinds, last, place):
    """The task for a process: of its last one's kind, or of none that another one has, or the first."""
    others = last[:place] + last[place + 1 :]
    return min(waiting, key=lambda number: (kinds[number] != last[place], kinds[number] in others))


def shares(count: int) -> list[list[int]]:
    """The cores of this process in `count` parts, of one size but for one core; [] where they are unknown.

    With fewer cores than parts, some parts have the same core.
    """
    cores = _cores()
    return [cores[i::count] or [cores[i % len(cores)]] for i in range(count)] if cores else []


def _cores():
    """The numbers of the cores of this process, [] where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []


def prepare(count: int, folder: epath.Path) -> int:
    """Checks how many can run at once; compiled programs are kept in a folder `compiled` from now on.

    Where JAX_COMPILATION_CACHE_DIR is set, they are kept there; with runs in a bucket, nowhere.

    Args:
      count: how many are asked for; 0 for one on each core, or one alone where runs are on another device.
      folder: of all runs.

    Returns:
      how many run at once

    Raises:
      UserError: there are fewer cores, or the device cannot be started or is one that a process keeps for
        itself.
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
    if jax.config.jax_compilation_cache_dir or workdir.is_in_bucket(folder):
        return count
    # JAX reads the one now, and a new process the other.
    for name, value in (
        ('jax_compilation_cache_dir', str(folder / 'compiled')),
        ('jax_persistent_cache_min_compile_time_secs', 0),
        # A bounded cache has a lock, which processes side by side need.
        ('jax_compilation_cache_max_size', COMPILED_BYTES),
    ):
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    compiled.mend()
    return count


def _settle(cores, log):
    """Prepares a process: its cores, where it prints to, and that it ends with the one it works for."""
    if cores:
        # Before JAX counts them.
        os.sched_setaffinity(0, cores)
    # Ctrl-C is the business of the process that started this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if log:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file, stream.fileno())
    quiet.drop_late_news()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    with contextlib.suppress(OSError):
        os.kill(os.getpid(), signal.SIGKILL)


def _say(what, done, running, total, began):
    left = total - done
    running = min(running, left)
    seconds = (time.monotonic() - began) / done * left
    print(
        f'{what}: {done} done, {running} running, {left - running} waiting; about {_duration(seconds)} left',
        file=sys.stderr,
        flush=True,
    )


def _duration(seconds):
    minutes = round(seconds / 60)
    if minutes < 1:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 120 else f'{minutes / 60:.1f} h'
