"""The journals of a search: a line of JSON for each run, appended as soon as the run ends.

The name of a run has the digest of its config, so that a line cannot be taken for a run with other options.
Lines are independent: a journal may be cut or joined between any two. Each of several workers has a journal
of its own, such as digits-td.2of3.jsonl next to digits-td.jsonl, and reads those of all. In a bucket, where
no file can grow, it is written anew with each line.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import socket
import sys

from etils import epath

from td_jax.errors import UserError, failure_as_user_error
from td_jax.files import lease, workdir

SUFFIX = '.jsonl'
_WAY_OUT = 'choose another folder'


class Journal:
    """The curves of one method's runs, of all workers; this one's are stored in a file.

    Attributes:
      curves: {name of a run: {step: value}}; empty for a run that diverged.
      data: {name of a run: the digest of its data}, '' if unknown.
      teachers: {name of a run: the fingerprint of its public teacher}, '' without one.
    """

    def __init__(self, path: epath.Path, is_writer: bool = True):
        """Reads journals, if they exist; a writer cuts off a torn last line of its own, with a message.

        A writer must hold the lock.

        Raises:
          UserError: raised by `read`, or it cannot be written.
        """
        self._path, self.curves, self.data, self.teachers = epath.Path(path), {}, {}, {}
        self.refresh()
        _, length = read(path)
        if workdir.is_in_bucket(path) or not is_writer:
            return
        with failure_as_user_error(f'{path} cannot be written', _WAY_OUT):
            if path.exists() and os.path.getsize(path) > length:
                os.truncate(path, length)
                print(
                    f'td_jax: the last line of {path} is torn, of a call that was killed as it wrote; it is '
                    'cut off, and its run is looked at again.',
                    file=sys.stderr,
                    flush=True,
                )

    def refresh(self):
        """Reads what all workers have written by now.

        Raises:
          UserError: raised by `read`.
        """
        name, _, _ = self._path.name.partition('.')
        with failure_as_user_error(f'{self._path.parent} cannot be read', _WAY_OUT):
            paths = sorted(self._path.parent.glob(f'{name}.*')) if self._path.parent.exists() else []
        for path in paths:
            if not re.fullmatch(rf'(\.\d+of\d+)?{SUFFIX}', path.name.removeprefix(name)):
                continue
            for line in _read_lines(path)[0]:
                self.curves[str(line['run'])] = line['curve']
                self.teachers[str(line['run'])] = str(line.get('teacher', ''))
                self.data[str(line['run'])] = str(line.get('data', ''))

    def append(self, run: str, curve: dict[int, float], details: dict):
        """Appends the curve of a run, in memory and on disk.

        Args:
          run: its name.
          curve: {step: value}.
          details: other entries of its line.

        Raises:
          UserError: the disk is full, or the place cannot be written.
        """
        line = json.dumps({'run': run, **details, 'curve': curve}).encode() + b'\n'
        if workdir.is_in_bucket(self._path):
            workdir.write(self._path, (workdir.read_text(self._path) or '') + line.decode())
        else:
            with (
                failure_as_user_error(f'{self._path} cannot be written', _WAY_OUT),
                open(self._path, 'ab') as file,
            ):
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self.curves[run], self.data[run] = curve, details.get('data', '')
        self.teachers[run] = details.get('teacher', '')


def read(path: pathlib.Path) -> tuple[dict[str, dict[int, float]], int]:
    """Reads the curves of a journal, and the length of its whole lines in bytes; ({}, 0) if there is none.

    Raises:
      UserError: a whole line is damaged, or the file cannot be read.
    """
    lines, length = _read_lines(path)
    return {str(line['run']): line['curve'] for line in lines}, length


def _read_lines(path):
    """Reads the whole lines of a journal, with their curves as numbers, and their length in bytes."""
    if workdir.is_in_bucket(path):
        content = (workdir.read_text(path) or '').encode()
    else:
        with failure_as_user_error(f'{path} cannot be read', _WAY_OUT):
            content = path.read_bytes() if path.exists() else b''
    # A whole line ends with a newline.
    length = content.rfind(b'\n') + 1
    lines = []
    for number, line in enumerate(content[:length].split(b'\n')[:-1], 1):
        try:
            record = json.loads(line)
            curve = {int(step): float(value) for step, value in record['curve'].items()}
            lines.append({**record, 'run': record['run'], 'curve': curve})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f'{path} is damaged in line {number}; delete that line, and its run is looked at again.'
            ) from error
    return lines, length


@contextlib.contextmanager
def lock(folder: pathlib.Path, name: str):
    """Locks the journals of a search; the lock ends with the context or the process.

    Args:
      folder: of the journals; must exist.
      name: of the search.

    Raises:
      UserError: another process holds the lock, or the folder cannot be written.
    """
    path = folder / f'.{name}.lock'
    if workdir.is_in_bucket(folder):
        with lease.hold(path):
            yield
        return
    with failure_as_user_error(f'{path} cannot be written', _WAY_OUT):
        file = open(path, 'a+')
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read() or 'another process'
            raise UserError(
                f'the journals of {name} in {folder} are in use by {owner}; wait for it, or choose another '
                'folder.'
            ) from error
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        yield
