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
import tempfile

import fsspec
import numpy as np
from etils import epath

from td_jax.errors import InUse, UserError, failure_as_user_error, reason
from td_jax.files import lease

CONFIG, RESULT, ERRORS = 'config.json', 'result.json', 'errors.npz'
# The parts of a run that a caller brought; only such runs have this file.
PROVENANCE = 'made_of.json'
# The description of a run's data, and its arrays; a run on images has no arrays.
DATA, DATA_ARRAYS = 'data.json', 'data.npz'
# Why a run diverged, until it is started again.
DIVERGED = 'diverged.json'
LOCK = '.lock'
# Folders of a comparison: the workdirs of its search and their journals, and a copy of the best student.
SEARCH, JOURNALS, BEST = 'search', 'journals', 'best'
_BUCKETS = 'gs://'

# Another process may have written files since a bucket was last listed.
fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)


def resolve(path: str) -> epath.Path:
    """Resolves a path, ~ expanded, to an absolute one, or to a place in a bucket, gs://BUCKET/PATH.

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
def lock(path: epath.Path):
    """Makes the folder if it is missing and locks it for this process; in a bucket, by a lease.

    Yields:
      a function to call before each save, which makes sure that the lease is still held

    Raises:
      InUse: another process trains in it.
      UserError: it cannot be made or written.
    """
    if is_in_bucket(path):
        with lease.hold(path / LOCK) as renew:
            yield renew
        return
    with failure_as_user_error(f'workdir {path} cannot be written', 'choose another --workdir'):
        path.mkdir(parents=True, exist_ok=True)
        lock_file = open(path / LOCK, 'w')
    with lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUse(
                f'workdir {path} is in use by another process; wait for it or choose another --workdir.'
            ) from error
        yield lambda: None


def refuse_in_use(path: epath.Path):
    """Refuses a workdir in a bucket that another process has in use, at once; `lock` waits to make sure.

    Raises:
      InUse: its lease has not expired.
    """
    if is_in_bucket(path) and (state := lease.read(path / LOCK)).seconds_left:
        raise InUse(f'workdir {path} is in use by {state.holder}.')


def is_there(path: epath.Path) -> bool:
    """Whether there is a file or a folder.

    Raises:
      UserError: its bucket cannot be read.
    """
    with failure_as_user_error(f'{path} cannot be read'):
        return path.exists()


def holds_run(path: epath.Path) -> bool:
    """Whether a folder is the workdir of a run, from its first checkpoint on.

    Raises:
      UserError: its bucket cannot be read.
    """
    return is_there(path / CONFIG)


def holds_comparison(path: epath.Path) -> bool:
    """Whether a folder is the workdir of a comparison, from its search on.

    Raises:
      UserError: its bucket cannot be read.
    """
    return is_there(path / SEARCH) and is_there(path / JOURNALS)


def make_folder(name: str, path: epath.Path):
    """Makes the folder of the flag --NAME if it is missing.

    Raises:
      UserError: it cannot be made.
    """
    with failure_as_user_error(f'{name} {path} cannot be written', f'choose another --{name}'):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def atomic_write(path: epath.Path):
    """Gives a local path for a file or a folder, which becomes `path` if the block succeeds.

    A file or an object of a bucket is replaced whole, even if the machine stops or others read it meanwhile.
    A folder replaces only an empty one; in a bucket it is written file by file.

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


def _upload(local_path, path):
    """Copies a file or a folder to a bucket."""
    files = {path: local_path}
    if local_path.is_dir():
        files = {
            path / file.relative_to(local_path): file for file in local_path.rglob('*') if file.is_file()
        }
    for target, file in files.items():
        with failure_as_user_error(f'{target} cannot be written'):
            epath.Path(file).copy(target, overwrite=True)


def check_target(flag: str, path: epath.Path):
    """Refuses a file that a flag names and that cannot be written, as far as that is known in advance.

    Raises:
      UserError: its folder is missing.
    """
    if not is_in_bucket(path) and not path.parent.is_dir():
        raise UserError(f'{flag} {path} cannot be written: its folder is missing.')


def write(path: epath.Path, text: str):
    """Writes a text as UTF-8, whole or not at all, even if the machine stops.

    Raises:
      UserError: the disk is full, or the place cannot be written.
    """
    with atomic_write(path) as temporary:
        # In a file's name, Python reads bytes that it cannot decode as surrogates, which become bytes again.
        temporary.write_text(text, encoding='utf-8', errors='surrogateescape')


def write_arrays(path: epath.Path, arrays: dict[str, np.ndarray]):
    """Writes arrays by name as a compressed .npz, whole or not at all.

    Raises:
      UserError: the disk is full, or the place cannot be written.
      TypeError: an array of objects, which only the code that wrote it could read.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    if any(array.dtype.hasobject for array in arrays.values()):
        raise TypeError('arrays of objects are not written')
    with atomic_write(path) as temporary, temporary.open('wb') as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: epath.Path) -> dict[str, np.ndarray] | None:
    """Reads the arrays of a .npz by name; None where there is no file.

    Raises:
      UserError: it is not readable as that.
    """
    try:
        content = _read_bytes(path)
        if content is None:
            return None
        with np.load(io.BytesIO(content)) as archive:
            return dict(archive)
    # A damaged archive raises errors of many kinds; a lone .npy has no context.
    except Exception as error:
        raise UserError(f'{path} cannot be read as arrays ({reason(error)}).') from error


def read_text(path: epath.Path) -> str | None:
    """Reads the text of a file; None where there is none. Bytes that are not UTF-8 become U+FFFD.

    Raises:
      UserError: it is there but cannot be read.
    """
    with failure_as_user_error(f'{path} cannot be read'):
        content = _read_bytes(path)
    return None if content is None else content.decode(errors='replace')


def read_json(path: epath.Path) -> dict | None:
    """Reads the object in a JSON file; None where there is no file.

    Raises:
      UserError: it is not readable as JSON, or holds something else than an object.
    """
    remedy = 'repair or delete it, or choose another folder'
    with failure_as_user_error(f'{path} cannot be read', remedy):
        content = _read_bytes(path)
        value = {} if content is None else json.loads(content)
    if not isinstance(value, dict):
        raise UserError(f'{path} does not hold a JSON object; {remedy}.')
    return None if content is None else value


def _read_bytes(path):
    """Reads a file; None where there is none. The client of a bucket raises errors of its own."""
    try:
        return epath.Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
