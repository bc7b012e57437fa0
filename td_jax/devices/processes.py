"""The processes of a run: how they find each other, which one prints, and how all of them stop.

With one process, the usual case, all of this does nothing. Of several, process 0 alone writes files and
prints, and sends the others what it reads or refuses.
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

# Seconds without a heartbeat after which a process counts as lost.
HEARTBEAT_SECONDS = 40
# Seconds that a process waits for the others before it ends.
SHUTDOWN_SECONDS = 60
# The status, at the beginning, of an error of JAX where another process does not answer.
LOST_STATUS = re.compile(r'(UNAVAILABLE|DEADLINE_EXCEEDED): ')
# Texts of errors by which another process is lost: of Gloo or NCCL, which carry sums between processes, and
# of JAX's coordination service. Other libraries may wrap them.
LOST = re.compile(
    r'\bgloo\b.*failed: .*(connection|broken pipe|timed out|timeout|socket|read error|write error)'
    r'|\bnccl\b.*remote process exited'
    r'|heartbeat timeout|failed to send rpc to coordination service|deadline_exceeded: barrier timed out',
    re.IGNORECASE | re.DOTALL,
)

# Whether this process got SIGTERM or Ctrl-C, and how often all processes asked whether to stop.
_stop_state = {'asked': False, 'interrupted': False, 'calls': 0}


def start(coordinator: str | None, num_processes: int | None, process_id: int | None, cluster: bool):
    """Joins the other processes of a run, before anything asks for a device.

    Args:
      coordinator: HOST:PORT of process 0, with num_processes and process_id; None for a single process.
      num_processes: number of processes.
      process_id: number of this one, from 0.
      cluster: whether the three come from the cluster: a TPU pod, Slurm, GKE.

    Raises:
      UserError: flags that do not fit each other, or processes that did not find each other.
    """
    flags = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
    missing = [name for name, value in flags.items() if value is None]
    if cluster and len(missing) < len(flags):
        raise UserError(
            '--distributed finds the other processes by itself; leave out --coordinator and others.'
        )
    if missing and len(missing) < len(flags):
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
def end_together():
    """Ends this process at once, with one line, when the run loses another process within the block.

    A computation with the lost process raises an error; without one, JAX notices within HEARTBEAT_SECONDS and
    aborts. The loss of process 0 is noticed at once. The exit code is CALL_AGAIN.
    """
    if jax.process_count() == 1:
        yield
        return
    atexit.register(_shut_down)
    # JAX aborts in a thread of its own, where Python's handlers of signals are never called. After the
    # devices were asked for, whose libraries have handlers, too.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    try:
        yield
        _exit_status['code'] = 0
    except Exception as error:
        if is_loss(error):
            _exit_after_loss('')
        if isinstance(error, UserError):
            _exit_status['code'] = 2
        raise
    finally:
        _ending_lock.acquire(blocking=False)


# Held once it is known how this process ends; later events print nothing and do not change its exit code.
_ending_lock = threading.Lock()
_exit_status = {'code': CALL_AGAIN}


def _exit_after_loss(doubt):
    if _ending_lock.acquire(blocking=False):
        print(
            f'td_jax: another process of the run is gone{doubt}; the same command continues.',
            file=sys.stderr,
            flush=True,
        )
    # Neither waits for the others nor for a save that they have a part in.
    os._exit(_exit_status['code'])


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_):
    _exit_after_loss(', or JAX failed (TF_CPP_MIN_LOG_LEVEL=0 shows how)')


def is_loss(error: BaseException) -> bool:
    """Whether an error was caused by one that JAX raises when another process does not answer.

    Orbax and others wrap such an error in one of their own, with its message in the text.
    """
    while error is not None:
        is_of_jax = isinstance(error, jax.errors.JaxRuntimeError)
        if (is_of_jax and LOST_STATUS.match(str(error))) or LOST.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _shut_down():
    """Waits for the others to end before JAX does so itself, which would print its errors."""
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def say(line: str):
    """Prints a line on stderr, in process 0 alone."""
    if is_main():
        print(line, file=sys.stderr, flush=True)


def check_together(check: Callable[[], Any]):
    """Returns `check()` of this process; if it refuses in one process, all processes refuse.

    Args:
      check: a function that waits for no other process.

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
    refusals = gather(refusal)
    if fault:
        raise fault
    for process, message in enumerate(refusals):
        if message is not None:
            raise UserError(f'{message} (process {process})')
    return value


def call_on_main(make: Callable[[], Any]):
    """Calls `make()` in process 0 alone and returns its result, as JSON holds it, in every process.

    Raises:
      UserError: in every process, where `make` raises one in process 0.
    """
    if jax.process_count() == 1:
        return make()
    encoded, fault = b'', None
    if is_main():
        try:
            encoded = json.dumps({'value': make()}).encode()
        except UserError as error:
            encoded = json.dumps({'error': str(error)}).encode()
        # Anything else must not leave the others waiting, either.
        except Exception as error:
            fault, encoded = error, json.dumps({'error': f'{type(error).__name__}: {error}'}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(encoded))))
    content = np.zeros(size, np.uint8)
    content[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    outcome = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(content))))
    if fault:
        raise fault
    if 'error' in outcome:
        raise UserError(outcome['error'])
    return outcome['value']


def gather(value) -> list:
    """Gathers a value of every process, as JSON holds it: a list in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    encoded = json.dumps(value).encode()
    sizes = multihost_utils.process_allgather(np.array(len(encoded)))
    content = np.zeros(sizes.max(), np.uint8)
    content[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = multihost_utils.process_allgather(content)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def broadcast(tree):
    """Sends process 0's tree of numbers and numpy arrays to every process; all have one of this structure."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def handle_signals():
    """Makes SIGTERM, which precedes the end of a machine, and Ctrl-C ask the run to stop.

    For a process of its own: it changes handlers of signals and the hook of unraisable errors.
    """
    _stop_state.update(asked=False, interrupted=False)
    sys.unraisablehook = _ignore_interrupts(sys.unraisablehook)
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, lambda *_: _stop_state.update(asked=True))
        # Unless this process was started so that it ignores Ctrl-C.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)


def _interrupt(*_):
    """Raises KeyboardInterrupt, here and where the run next asks whether to stop.

    Python may handle Ctrl-C within a finalizer, say, which swallows the exception.
    """
    _stop_state['interrupted'] = True
    raise KeyboardInterrupt


def _ignore_interrupts(hook):
    """Wraps a hook of unraisable errors so that it ignores a Ctrl-C, which is raised again later."""

    def filtered_hook(unraisable):
        if not (_stop_state['interrupted'] and unraisable.exc_type is KeyboardInterrupt):
            hook(unraisable)

    return filtered_hook


def is_asked_to_stop() -> bool:
    """Whether the run is to stop now; all processes ask equally often and get the same answer."""
    if jax.process_count() == 1:
        if _stop_state['interrupted']:
            raise KeyboardInterrupt
        return _stop_state['asked']
    # JAX stops all processes at the call after the latest that any of them has made; it counts by ones.
    _stop_state['calls'] += 1
    return multihost_utils.reached_preemption_sync_point(_stop_state['calls'])
