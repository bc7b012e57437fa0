"""The journals of a search: what each run gave, a line of JSON, appended as soon as the run is over.

A run is known by its name, which has the digest of its config in it: what is read back cannot be of a run
with other options. No line needs another one, so that a journal may be cut or joined between any two.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys

from td_jax.errors import UserError, reason

SUFFIX = '.jsonl'


class Journal:
    """The curves of one method's runs: those of a file, and what is appended to it.

    Attributes:
      curves: {name of a run: {step: value}}; that of a run that diverged is empty.
      data: {name of a run: what its data are known by}, '' where its line does not say.
    """

    def __init__(self, path: pathlib.Path):
        """Reads a journal, which need not be there; a torn last line is cut off, with a word.

        The caller holds its lock.

        Raises:
          UserError: as `read`; or it cannot be written.
        """
        self._path = path
        self.curves, length = read(path)
        self.data = {str(found['run']): str(found.get('data', '')) for found in _lines(path)[0]}
        with _refusing(path, 'written'):
            if path.exists() and path.stat().st_size > length:
                os.truncate(path, length)
                print(
                    f'td_jax: the last line of {path} is torn, of a call that was killed as it wrote; it is '
                    'cut off, and its run is looked at again.',
                    file=sys.stderr,
                    flush=True,
                )

    def append(self, run: str, curve: dict[int, float], about: dict):
        """Keeps the curve of a run, here and on disk.

        Args:
          run: its name.
          curve: {step: value}.
          about: what else stands in its line, for a person.

        Raises:
          UserError: the disk is full, or the place cannot be written.
        """
        line = json.dumps({'run': run, **about, 'curve': curve}).encode() + b'\n'
        with _refusing(self._path, 'written'), open(self._path, 'ab') as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.curves[run], self.data[run] = curve, about.get('data', '')


def read(path: pathlib.Path) -> tuple[dict[str, dict[int, float]], int]:
    """The curves in a journal, and up to which byte it is whole; ({}, 0) where there is none.

    Raises:
      UserError: a whole line does not read back as what was written, or the file cannot be read.
    """
    found, length = _lines(path)
    return {str(line['run']): line['curve'] for line in found}, length


def _lines(path):
    """(the whole lines of a journal, their curves as numbers, up to which byte it is whole)."""
    with _refusing(path, 'read'):
        content = path.read_bytes() if path.exists() else b''
    # What was written whole ends with a newline.
    length = content.rfind(b'\n') + 1
    lines = []
    for number, line in enumerate(content[:length].split(b'\n')[:-1], 1):
        try:
            found = json.loads(line)
            curve = {int(step): float(value) for step, value in found['curve'].items()}
            lines.append({**found, 'run': found['run'], 'curve': curve})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f'{path} is damaged in line {number}; delete that line, and its run is looked at again.'
            ) from error
    return lines, length


@contextlib.contextmanager
def locked(folder: pathlib.Path, name: str):
    """Keeps the journals of one search for this process alone, until it ends, however it ends.

    Args:
      folder: of the journals; it is there.
      name: of the search.

    Raises:
      UserError: another process has them, or the folder cannot be written.
    """
    path = folder / f'.{name}.lock'
    with _refusing(path, 'written'):
        lock = open(path, 'a+')
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            who = lock.read() or 'another process'
            raise UserError(
                f'the journals of {name} in {folder} are in use by {who}; wait for it, or choose another '
                'folder.'
            ) from error
        lock.truncate(0)
        lock.write(f'process {os.getpid()} on {socket.gethostname()}')
        lock.flush()
        yield


@contextlib.contextmanager
def _refusing(path, what):
    try:
        yield
    except OSError as error:
        raise UserError(f'{path} cannot be {what} ({reason(error)}); choose another folder.') from error
