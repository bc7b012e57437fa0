"""The files of a run, other than its checkpoints and metrics, in a folder or in a bucket.

A path is an etils.epath.Path, which reads and writes both. Nothing is ever half-written.
"""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import posixpath
import re
import sys
import tempfile

import fsspec
import numpy as np
from etils import epath

from td_jax.errors import UserError, reason

CONFIG, RESULT, ERRORS = 'config.json', 'result.json', 'errors.npz'
# What a caller brought that a run is made of; only such runs have it.
MADE_OF = 'made_of.json'
# What a run was trained on, and the arrays that belong to it; a run on images has no arrays.
DATA, DATA_ARRAYS = 'data.json', 'data.npz'
# Why a run diverged, until it is started again.
DIVERGED = 'diverged.json'
_BUCKETS = 'gs://'

# Another process may have written what a listing of a bucket did not show a moment ago.
fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)


def resolve(path: str) -> epath.Path:
    """The absolute path of a folder, ~ expanded, or that of a place in a bucket, gs://BUCKET/PATH.

    Raises:
      UserError: it is another address, it names no bucket, or ~ names a user that is not there.
    """
    scheme = re.match(r'([A-Za-z][A-Za-z0-9+.-]*://)(.*)', path)
    if scheme is None:
        try:
            return epath.Path(pathlib.Path(path).expanduser().absolute())
        except RuntimeError as error:
            raise UserError(f'{path} has no home directory behind its ~.') from error
    if scheme[1] != _BUCKETS:
        raise UserError(f'{path} is neither a folder nor in a bucket; write FOLDER/PATH or gs://BUCKET/PATH.')
    bucket, _, inside = scheme[2].partition('/')
    if not bucket:
        raise UserError(f'{path} names no bucket; write gs://BUCKET/PATH.')
    # As in a folder, so that one place has one name.
    inside = posixpath.normpath(f'/{inside}').lstrip('/')
    return epath.Path(f'{_BUCKETS}{bucket}/{inside}')


def is_in_bucket(path) -> bool:
    """Whether a path is a place in a bucket."""
    return os.fspath(path).startswith(_BUCKETS)


@contextlib.contextmanager
def opened(path: epath.Path):
    """Makes the folder if it is missing and keeps it for this process alone.

    A bucket has nothing that would let go of a lock when a process is killed: that there is none is said.

    Raises:
      UserError: it cannot be made or written, or another process trains in it.
    """
    if is_in_bucket(path):
        print(
            f'td_jax: {path} is in a bucket and has no lock; start no second run with it.',
            file=sys.stderr,
            flush=True,
        )
        yield
        return
    with _told('workdir', path):
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / '.lock', 'w')
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f'workdir {path} is in use by another process; wait for it or choose another --workdir.'
            ) from error
        yield


def make_folder(name: str, path: epath.Path):
    """Makes the folder of the flag --NAME if it is missing.

    Raises:
      UserError: it cannot be made.
    """
    with _told(name, path):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _told(name, path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f'{name} {path} cannot be written ({reason(error)}); choose another --{name}.'
        ) from error


@contextlib.contextmanager
def whole(path: epath.Path):
    """A local path to write a file or a folder at, which becomes `path` if the block succeeds.

    A file is then there whole, even if the machine stops, and takes the place of one that was there; so does
    an object of a bucket, whatever reads it meanwhile. A folder takes the place of an empty one at most. In a
    bucket it comes file by file.

    Raises:
      UserError: the disk is full, or the place cannot be written.
    """
    place = None if is_in_bucket(path) else path.parent
    try:
        with tempfile.TemporaryDirectory(prefix='.', dir=place) as folder:
            temporary = pathlib.Path(folder) / path.name
            yield temporary
            if place is None:
                _upload(temporary, path)
                return
            for file in [temporary] if temporary.is_file() else temporary.rglob('*'):
                if file.is_file():
                    with file.open('rb') as content:
                        os.fsync(content.fileno())
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {reason(error)}.') from error


def _upload(made, path):
    """Copies a file or a folder to a bucket."""
    files = {path: made}
    if made.is_dir():
        files = {path / file.relative_to(made): file for file in made.rglob('*') if file.is_file()}
    for target, file in files.items():
        try:
            epath.Path(file).copy(target, overwrite=True)
        # The client of the bucket has errors of its own for a name, a right or a line that is missing.
        except Exception as error:
            raise UserError(f'{target} cannot be written: {reason(error)}.') from error


def check_target(flag: str, path: epath.Path):
    """Refuses a file that a flag names and that cannot be written, as far as can be told before.

    Raises:
      UserError: its folder is missing.
    """
    if not is_in_bucket(path) and not path.parent.is_dir():
        raise UserError(f'{flag} {path} cannot be written: its folder is missing.')


def write(path: epath.Path, text: str):
    """Writes a file whole or not at all, even if the machine stops.

    Raises:
      UserError: the disk is full, or the place cannot be written.
    """
    with whole(path) as temporary:
        temporary.write_text(text)


def write_arrays(path: epath.Path, arrays: dict[str, np.ndarray]):
    """Writes arrays by name as a compressed .npz, whole or not at all.

    Raises:
      UserError: the disk is full, or the place cannot be written.
      TypeError: an array of objects, which only the code that made it could read.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    if any(array.dtype.hasobject for array in arrays.values()):
        raise TypeError('arrays of objects are not written')
    with whole(path) as temporary, temporary.open('wb') as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: epath.Path) -> dict[str, np.ndarray] | None:
    """The arrays of a .npz by name, or None where there is no file.

    Raises:
      UserError: it is not readable as that.
    """
    try:
        content = _content(path)
        if content is None:
            return None
        with np.load(io.BytesIO(content)) as found:
            return dict(found)
    # A damaged archive raises errors of many kinds; a lone .npy has no context.
    except Exception as error:
        raise UserError(f'{path} cannot be read as arrays ({reason(error)}).') from error


def read_text(path: epath.Path) -> str | None:
    """The text of a file, or None where there is none; what is no UTF-8 comes as U+FFFD.

    Raises:
      UserError: it is there but cannot be read.
    """
    try:
        content = _content(path)
    except Exception as error:
        raise UserError(f'{path} cannot be read: {reason(error)}.') from error
    return None if content is None else content.decode(errors='replace')


def read_json(path: epath.Path) -> dict | None:
    """The object in a JSON file, or None where there is no file.

    Raises:
      UserError: it is not readable as JSON, or holds something else than an object.
    """
    try:
        content = _content(path)
        found = {} if content is None else json.loads(content)
    except Exception as error:
        raise UserError(
            f'{path} cannot be read ({reason(error)}); repair or delete it, or choose another folder.'
        ) from error
    if not isinstance(found, dict):
        raise UserError(f'{path} does not hold a JSON object; repair or delete it, or choose another folder.')
    return None if content is None else found


def _content(path):
    """The bytes of a file, or None where there is none; the client of a bucket raises errors of its own."""
    try:
        return epath.Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
