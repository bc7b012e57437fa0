"""The processes of a run: how they find each other, which one speaks, and how all of them stop.

One process is the usual case, and all of this then does nothing. Of several, process 0 alone writes files
and prints; what it reads or refuses, the others learn from it.
"""

import atexit
import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from td_jax.errors import CALL_AGAIN, UserError

# Seconds without a sign of life after which the other processes give a process up.
HEARTBEAT_SECONDS = 40
# Seconds that a process waits for the others before it ends.
SHUTDOWN_SECONDS = 60
# The status, at the beginning, of an error of JAX where another process does not answer.
LOST_STATUS = re.compile(r'(UNAVAILABLE|DEADLINE_EXCEEDED): ')
# What errors say of it, those of JAX and of others that tell them on: of what carries the sums between
# processes, Gloo or NCCL, that a connection ended; and the service by which they know of each other.
LOST = re.compile(
    r'\bgloo\b.*failed: .*(connection|broken pipe|timed out|timeout|socket|read error|write error)'
    r'|\bnccl\b.*remote process exited'
    r'|heartbeat timeout|failed to send rpc to coordination service|deadline_exceeded: barrier timed out',
    re.IGNORECASE | re.DOTALL,
)

# Whether this process heard SIGTERM or Ctrl-C, and how often all of them asked whether to stop.
_stop = {'asked': False, 'interrupted': False, 'calls': 0}


def start(coordinator: str | None, num_processes: int | None, process_id: int | None, cluster: bool):
    """Joins the other processes of a run, before anything asks for a device.

    Args:
      coordinator: HOST:PORT of process 0, with num_processes and process_id; None for a single process.
      num_processes: how many.
      process_id: which this is, from 0.
      cluster: whether the three are to be found out from the cluster: a TPU pod, Slurm, GKE.

    Raises:
      UserError: flags that do not fit each other, or processes that did not find each other.
    """
    named = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
    missing = [name for name, value in named.items() if value is None]
    if cluster and len(missing) < len(named):
        raise UserError(
            '--distributed finds the other processes by itself; leave out --coordinator and others.'
        )
    if missing and len(missing) < len(named):
        raise UserError(
            f'--{missing[0]} is missing; --coordinator, --num_processes and --process_id go together.'
        )
    if missing and not cluster:
        return
    if not cluster and not 0 <= process_id < num_processes:
        raise UserError(
            f'--process_id is {process_id}; with --num_processes={num_processes} it is less, from 0.'
        )
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f'the processes of the run did not find each other: {reason[:300]}') from error


@contextlib.contextmanager
def ending_together():
    """Within it a process whose run has lost another process ends at once, with one line.

    A computation with the lost one raises an error, or, where none is on its way, JAX notices within
    HEARTBEAT_SECONDS and aborts. Process 0 is noticed at once. The exit code is CALL_AGAIN.
    """
    if jax.process_count() == 1:
        yield
        return
    atexit.register(_leave)
    # JAX aborts in a thread of its own, where Python's handlers of signals are never called. After the
    # devices were asked for, whose libraries have handlers, too.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    try:
        yield
        _exit['code'] = 0
    except Exception as error:
        if is_loss(error):
            _end_lost('')
        if isinstance(error, UserError):
            _exit['code'] = 2
        raise
    finally:
        _over.acquire(blocking=False)


# Held once it is known how this process ends; what comes after is no news, and does not change its code.
_over = threading.Lock()
_exit = {'code': CALL_AGAIN}


def _end_lost(doubt):
    if _over.acquire(blocking=False):
        print(
            f'td_jax: another process of the run is gone{doubt}; the same command continues.',
            file=sys.stderr,
            flush=True,
        )
    # Neither waits for the others nor for a save that they have a part in.
    os._exit(_exit['code'])


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_):
    _end_lost(', or JAX failed (TF_CPP_MIN_LOG_LEVEL=0 shows how)')


def is_loss(error: BaseException) -> bool:
    """Whether an error came of one that JAX raises where another process does not answer.

    Orbax and others tell such an error on as one of their own, with what it said in the text.
    """
    while error is not None:
        is_of_jax = isinstance(error, jax.errors.JaxRuntimeError)
        if (is_of_jax and LOST_STATUS.match(str(error))) or LOST.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _leave():
    """Waits for the others to end, too, before JAX does, which would print what it raises."""
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def say(line: str):
    """Prints a line on stderr, of several processes only once."""
    if is_main():
        print(line, file=sys.stderr, flush=True)


def together(check: Callable[[], Any]):
    """What `check()` gives in this process; where it refuses in one process, all of them refuse.

    Args:
      check: waits for no other process.

    Raises:
      UserError: in every process, that of the first process that raised one.
    """
    if jax.process_count() == 1:
        return check()
    value, fault, refusal = None, None, None
    try:
        value = check()
    except UserError as error:
        refusal = str(error)
    # Anything else must not leave the others waiting, either.
    except Exception as error:
        fault, refusal = error, f'{type(error).__name__}: {error}'
    refusals = from_all(refusal)
    if fault:
        raise fault
    for process, said in enumerate(refusals):
        if said is not None:
            raise UserError(f'{said} (process {process})')
    return value


def from_main(make: Callable[[], Any]):
    """What `make()` gives in process 0, as JSON holds it, in every process; it runs there alone.

    Raises:
      UserError: in every process, where `make` raises one in process 0.
    """
    if jax.process_count() == 1:
        return make()
    said, fault = b'', None
    if is_main():
        try:
            said = json.dumps({'value': make()}).encode()
        except UserError as error:
            said = json.dumps({'error': str(error)}).encode()
        # Anything else must not leave the others waiting, either.
        except Exception as error:
            fault, said = error, json.dumps({'error': f'{type(error).__name__}: {error}'}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(said))))
    content = np.zeros(size, np.uint8)
    content[: len(said)] = np.frombuffer(said, np.uint8)
    outcome = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(content))))
    if fault:
        raise fault
    if 'error' in outcome:
        raise UserError(outcome['error'])
    return outcome['value']


def from_all(value) -> list:
    """What every process gives, as JSON holds it, in the order of the processes, in every process."""
    if jax.process_count() == 1:
        return [value]
    said = json.dumps(value).encode()
    sizes = multihost_utils.process_allgather(np.array(len(said)))
    content = np.zeros(sizes.max(), np.uint8)
    content[: len(said)] = np.frombuffer(said, np.uint8)
    rows = multihost_utils.process_allgather(content)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def same_everywhere(tree):
    """A tree of numbers and numpy arrays as process 0 has it, in every process; all have one of this form."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def hear_signals():
    """From now on SIGTERM, which a machine gets before it is taken away, and Ctrl-C ask the run to stop.

    For a process that is a run's own: it changes handlers of signals and the hook of errors that nobody can
    catch.
    """
    _stop.update(asked=False, interrupted=False)
    sys.unraisablehook = _except_heard(sys.unraisablehook)
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, lambda *_: _stop.update(asked=True))
        # Unless the one who started this process lets it ignore Ctrl-C.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)


def _interrupt(*_):
    """Raises KeyboardInterrupt, here and where the run next asks whether to stop.

    Python may hear Ctrl-C within a finalizer, say, which swallows what is raised in it.
    """
    _stop['interrupted'] = True
    raise KeyboardInterrupt


def _except_heard(hook):
    """A hook of errors that nobody can catch, which drops a Ctrl-C that the run is told of again."""

    def dropping(found):
        if not (_stop['interrupted'] and found.exc_type is KeyboardInterrupt):
            hook(found)

    return dropping


def is_asked_to_stop() -> bool:
    """Whether the run is to stop now; every process asks as often, and all hear the same."""
    if jax.process_count() == 1:
        if _stop['interrupted']:
            raise KeyboardInterrupt
        return _stop['asked']
    # JAX lets all of them stop at the call after the last that one of them had made; it counts by ones.
    _stop['calls'] += 1
    return multihost_utils.reached_preemption_sync_point(_stop['calls'])
