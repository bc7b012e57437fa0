"""Named arrays in a folder that several processes share: made once, memory-mapped, and limited in size.

An entry is a folder KEY with a .npy per array and an about.json, written under another name and then renamed:
it is whole or not there. KEY is the digest of a description of everything that the arrays depend on, and
about.json repeats that description. An entry that is damaged or of another description is made again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from etils import epath

from td_jax.devices import processes
from td_jax.errors import UserError, failure_as_user_error, reason
from td_jax.files import workdir

ABOUT = 'about.json'
# The lock of the folder, held while entries are written or removed.
_FOLDER_LOCK = '.lock'


def get_or_make(
    folder: epath.Path,
    description: Mapping,
    make: Callable[[], Mapping[str, np.ndarray]],
    *,
    limit: int,
    what: str,
) -> dict[str, np.ndarray]:
    """Returns the arrays of an entry, and makes them where they are not there.

    Of several processes that ask for one entry, the first makes it and the others wait. Where an entry cannot
    be written, a message says so and the arrays are returned all the same. An entry that was not used for the
    longest time is removed where the folder would become too large.

    Args:
      folder: of all entries, made if missing; not in a bucket.
      description: what the arrays depend on, as JSON holds it.
      make: computes {name: array}; names are valid in file names.
      limit: the largest size of the folder, in bytes.
      what: a name of the arrays for messages, such as "the teacher's outputs".

    Returns:
      {name: array}, memory-mapped and read-only where they come from the folder

    Raises:
      UserError: the folder cannot be made or written.
    """
    if workdir.is_in_bucket(folder):
        raise UserError(f'{folder} is in a bucket, where nothing can be locked; name a folder for {what}.')
    folder = pathlib.Path(folder)
    workdir.make_folder('teacher_outputs', folder)
    entry = folder / _digest(description)
    with _lock(_lock_of(entry), f'waits for another process that makes {what}'):
        arrays = _read(entry, description, what)
        if arrays is not None:
            processes.say(f'{what}: read from {entry}')
            return arrays
        arrays = {name: np.asarray(array) for name, array in make().items()}
        size = sum(array.nbytes for array in arrays.values())
        if size > limit:
            processes.say(
                f'{what}: not kept: {_format_size(size)}, but {folder} may have {_format_size(limit)} in all'
            )
            return arrays
        try:
            _write(entry, description, arrays, limit - size)
            processes.say(f'{what}: kept in {entry}, {_format_size(size)}')
        except (OSError, UserError) as error:
            processes.say(f'{what}: not kept: {reason(error)}')
        return arrays


def _format_size(size):
    return f'{size / 1e9:,.1f} GB' if size >= 1e8 else f'{size / 1e6:,.3g} MB'


def _digest(description):
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]


def _lock_of(entry):
    return entry.parent / f'{entry.name}.lock'


@contextlib.contextmanager
def _lock(path, message='', *, waits=True):
    """Holds the lock of a file, which ends with this process at the latest.

    Where another process holds it, it says a message and waits, or yields False without `waits`.
    """
    with failure_as_user_error(f'{path} cannot be written', 'choose another folder'):
        file = open(path, 'a')
    with file:
        is_held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            is_held = waits
            if waits:
                processes.say(message)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield is_held


# --- Reading ---------------------------------------------------------------------------------------


def _read(entry, description, what):
    """The arrays of an entry; None where it is missing, damaged or of something else."""
    if not entry.exists():
        return None
    try:
        about = workdir.read_json(entry / ABOUT)
        # As JSON holds it: tuples are lists.
        if about is None or about['description'] != json.loads(json.dumps(description)):
            raise ValueError(f'its {ABOUT} is missing or describes something else')
        arrays = {name: _read_array(entry, name, metadata) for name, metadata in about['arrays'].items()}
    # A damaged file raises errors of many kinds.
    except Exception as error:
        processes.say(f'{what}: {entry} is damaged and is made again: {reason(error)}')
        shutil.rmtree(entry, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(entry / ABOUT)
    return arrays


def _read_array(entry, name, metadata):
    path = entry / f'{name}.npy'
    with path.open('rb') as file:
        if hashlib.file_digest(file, 'sha256').hexdigest() != metadata['sha256']:
            raise ValueError(f'{path.name} is not as it was written')
    array = np.asarray(np.load(path, mmap_mode='r'))
    return array.view(jnp.dtype(metadata['type']))


# --- Writing ---------------------------------------------------------------------------------------


def _write(entry, description, arrays, others_limit):
    """Writes an entry, after old ones are removed so that the others take at most so many bytes."""
    folder = entry.parent
    with _lock(folder / _FOLDER_LOCK, f'waits for another process that writes to {folder}'):
        _remove_old(folder, others_limit)
        with workdir.atomic_write(epath.Path(entry)) as temporary:
            temporary.mkdir()
            metadata_by_name = {
                name: _write_array(temporary / f'{name}.npy', array) for name, array in arrays.items()
            }
            text = json.dumps({'description': description, 'arrays': metadata_by_name}, indent=1)
            (temporary / ABOUT).write_text(text + '\n')


def _write_array(path, array):
    # NumPy's files do not know the types of JAX, such as bfloat16.
    is_known = array.dtype.kind != 'V'
    np.save(path, array if is_known else array.view(f'uint{8 * array.dtype.itemsize}'))
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return {'type': str(array.dtype), 'shape': list(array.shape), 'sha256': digest}


def _remove_old(folder, limit):
    """Removes what a killed process left, and entries, the longest unused first, until a limit is kept."""
    entries = []
    for path in folder.iterdir():
        if path.is_dir() and path.name.startswith('.'):
            # Whoever writes holds the lock of the folder.
            shutil.rmtree(path, ignore_errors=True)
        elif (path / ABOUT).is_file():
            entries.append(((path / ABOUT).stat().st_mtime, path))
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for _, path in entries}
    total = sum(sizes.values())
    for _, path in sorted(entries):
        if total <= limit:
            break
        with _lock(_lock_of(path), waits=False) as is_unused:
            if is_unused:
                # Arrays that another process has mapped stay there for it.
                shutil.rmtree(path, ignore_errors=True)
                total -= sizes[path]
