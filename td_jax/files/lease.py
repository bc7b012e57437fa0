"""A lease on an object of a bucket: one process at a time holds it, and it ends unless it is renewed.

A bucket has no lock that is released when a process is killed. A lease is an object that is only ever
replaced on the precondition that it has the generation that was read (ifGenerationMatch of GCS, 0 for an
object that does not exist), so that of several processes one succeeds. A thread renews it, and each save of a
run makes sure that it is still held: a process that was suspended until its lease had expired writes nothing
more. The lease of a process that died on this machine ends at once.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import sys
import threading
import time
import urllib.parse
import uuid
from typing import NamedTuple

import fsspec
from etils import epath

from td_jax.errors import InUse, UserError, failure_as_user_error

# Seconds after which a lease that is not renewed has expired. Clocks must not differ by as much.
SECONDS = 180.0
# Seconds between renewals.
RENEWAL = 30.0
_BOUNDARY = 'td_jax_lease'


class State(NamedTuple):
    """What the object of a lease says."""

    generation: str  # of the object, '0' if there is none
    holder: str  # a process, '' if the lease is free
    token: str  # of this holding of the lease
    seconds_left: float  # until it expires, 0 if it is free or has expired


def read(path: epath.Path) -> State:
    """Reads a lease.

    Raises:
      UserError: it cannot be read.
    """
    system, place = fsspec.url_to_fs(os.fspath(path))
    with failure_as_user_error(f'{path} cannot be read'):
        try:
            info = system.info(place)
        except FileNotFoundError:
            return State('0', '', '', 0.0)
    metadata = info.get('metadata', {})
    holder, updated = metadata.get('holder', ''), datetime.datetime.fromisoformat(info['updated'])
    seconds_left = 0.0
    if holder and not _is_gone(metadata.get('process', '')):
        seconds_left = SECONDS - (time.time() - updated.timestamp())
    return State(info['generation'], holder, metadata.get('token', ''), max(0.0, seconds_left))


def _name_machine() -> str:
    """Names the machine's start and the container, within which a process has one number; '' if unknown."""
    try:
        start = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{start}/{os.stat("/proc/self/ns/pid").st_ino}'
    except OSError:
        return ''


def _is_gone(process):
    """Whether a process, MACHINE PID, has ended on this machine; of another one nothing is known."""
    machine, _, number = process.rpartition(' ')
    if not machine or machine != _name_machine():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _replace(path, generation, holder, token) -> str | None:
    """Replaces the object of a generation; returns the new generation, or None if it has another one."""
    system, place = fsspec.url_to_fs(os.fspath(path))
    bucket, key, _ = system.split_path(place)
    metadata = {'holder': holder, 'token': token, 'process': f'{_name_machine()} {os.getpid()}'}
    head = json.dumps({'name': key, 'metadata': metadata})
    parts = ('application/json; charset=UTF-8', head), ('text/plain', holder)
    body = ''.join(f'--{_BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n{text}\r\n' for kind, text in parts)
    with failure_as_user_error(f'{path} cannot be written'):
        try:
            response = system.call(
                'POST',
                f'{system.base.replace("/storage/", "/upload/storage/")}b/{urllib.parse.quote(bucket)}/o',
                uploadType='multipart',
                ifGenerationMatch=generation,
                headers={'Content-Type': f'multipart/related; boundary="{_BOUNDARY}"'},
                data=f'{body}--{_BOUNDARY}--'.encode(),
                json_out=True,
            )
        except FileExistsError:
            # Of a request whose answer was lost and that was repeated, the first may have succeeded.
            state = read(path)
            return state.generation if state.token == token else None
    return response['generation']


class _Lease:
    """A lease that this process holds."""

    def __init__(self, path, generation, holder, token):
        self._path, self._generation, self._holder, self._token = path, generation, holder, token
        self._mutex, self._is_released = threading.Lock(), threading.Event()
        threading.Thread(target=self._renew_until_released, daemon=True).start()

    def renew(self):
        """Renews the lease.

        Raises:
          InUse: it had expired, and another process has it.
          UserError: the bucket cannot be written.
        """
        with self._mutex:
            generation = self._generation and _replace(
                self._path, self._generation, self._holder, self._token
            )
            self._generation = generation
        if generation is None:
            holder = read(self._path).holder or 'another process'
            raise InUse(
                f'workdir {self._path.parent} was taken over by {holder}, because this process had not '
                f'renewed its lease for {SECONDS:.0f} s; it writes nothing more there.'
            )

    def _renew_until_released(self):
        while not self._is_released.wait(RENEWAL):
            # A failure to reach the bucket may pass; each save asks again.
            with contextlib.suppress(UserError):
                self.renew()

    def release(self):
        """Frees the lease unless another process has it; its object stays."""
        self._is_released.set()
        with self._mutex, contextlib.suppress(UserError):
            if self._generation:
                _replace(self._path, self._generation, '', self._token)
            self._generation = None


@contextlib.contextmanager
def hold(path: epath.Path):
    """Holds a lease and yields a function that renews it.

    If another process has it, waits until it is renewed, or has expired because that process is gone.

    Raises:
      InUse: another process renews it.
      UserError: the bucket cannot be read or written.
    """
    holder, token = f'process {os.getpid()} on {socket.gethostname()}', uuid.uuid4().hex
    last_generation = None
    while True:
        state = read(path)
        if not state.seconds_left:
            if generation := _replace(path, state.generation, holder, token):
                break
            continue
        if last_generation and last_generation != state.generation:
            raise InUse(
                f'workdir {path.parent} is in use by {state.holder}; wait for it or choose another --workdir.'
            )
        if not last_generation:
            print(
                f'td_jax: {path.parent} is in use by {state.holder}; waits up to {state.seconds_left:.0f} s '
                'to see whether that is alive.',
                file=sys.stderr,
                flush=True,
            )
        last_generation = state.generation
        time.sleep(min(state.seconds_left, RENEWAL / 10))
    lease = _Lease(path, generation, holder, token)
    try:
        yield lease.renew
    finally:
        lease.release()
