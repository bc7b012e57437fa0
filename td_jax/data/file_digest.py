"""Whether files are those of another day: their content, which is read once, and then what a folder says.

A content is known by MD5, which a bucket says of each of its objects without their being read. It notices
change; it is no secret that somebody could not forge.
"""

import base64
import concurrent.futures
import hashlib
import os
import posixpath
import time
from collections.abc import Iterable

import fsspec
from etils import epath

from td_jax.data.base import Files
from td_jax.errors import UserError, reason

# Files that are read side by side: each waits for its disk.
THREADS = 16
# Seconds that two writes may have the same time in: more than a tick of Linux's clock of files.
TICK = 0.02


def stamp(path: epath.Path) -> str:
    """What is another text after a file is written.

    Raises:
      UserError: it cannot be looked at.
    """
    return stamps([Files(os.fspath(path.parent), (path.name,))])


def stamps(parts: Iterable[Files]) -> str:
    """What is another text after any of some files is written.

    Raises:
      UserError: one cannot be looked at.
    """
    return _of_lines(_reading(files, _stamped) for files in parts)


def digest(files: Files, known: Iterable[dict] = ()) -> dict:
    """What some files are known by, {'count', 'md5', 'stamp'}: their names and contents.

    Args:
      files: which.
      known: what was found before of these or others. It counts where names, sizes and times of all files
        are as they were; else every file is read.

    Raises:
      UserError: one cannot be read.
    """
    return _reading(files, lambda files: _digest(files, known))


def _reading(files, read):
    try:
        return read(files)
    # The client of a bucket has errors of its own.
    except Exception as error:
        place = getattr(error, 'filename', None) or files.folder
        raise UserError(f'{place} cannot be read: {reason(error)}.') from error


def _digest(files, known):
    names, stamped = sorted(files.names), _stamped(files)
    for found in known:
        if found.get('stamp') == stamped:
            return found
    said = _md5_of_objects(files) if _is_in_bucket(files) else {}
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        contents = pool.map(lambda name: said.get(name) or _md5_of_file(f'{files.folder}/{name}'), names)
        lines = [f'{name} {content}' for name, content in zip(names, contents, strict=True)]
    return {'count': len(names), 'md5': _of_lines(lines), 'stamp': stamped}


def _stamped(files):
    names = sorted(files.names)
    if _is_in_bucket(files):
        objects = _objects(files)
        return _of_lines(f'{name} {objects[name].get("generation")}' for name in names)
    newest, stamped = 0, _md5()
    for name in names:
        found = os.stat(f'{files.folder}/{name}')
        newest = max(newest, found.st_ctime_ns)
        # Of a file that was replaced by one with its time put back, the second time is another one.
        stamped.update(_line(f'{name} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}'))
    if abs(time.time_ns() - newest) < 1e9 * TICK:
        # What is written from now on is written later.
        time.sleep(TICK)
    return stamped.hexdigest()


def _objects(files):
    """{name: what a bucket says of it} of files there."""
    system, root = fsspec.core.url_to_fs(files.folder)
    root, found = root.rstrip('/'), {}
    if len(files.names) == 1:
        return {name: system.info(f'{root}/{name}') for name in files.names}
    for inside in {posixpath.dirname(name) for name in files.names}:
        for path, said in system.find(f'{root}/{inside}'.rstrip('/'), detail=True).items():
            found[path.removeprefix(f'{root}/')] = said
    return found


def _md5_of_objects(files):
    """{name: MD5} of what a bucket says; of an object that was put together from parts, it does not."""
    said = {name: found.get('md5Hash') for name, found in _objects(files).items()}
    return {name: base64.b64decode(md5).hex() for name, md5 in said.items() if md5}


def _md5_of_file(path):
    with epath.Path(path).open('rb') as file:
        return hashlib.file_digest(file, _md5).hexdigest()


def _of_lines(lines):
    found = _md5()
    for line in lines:
        found.update(_line(line))
    return found.hexdigest()


def _line(text):
    # A name on a disk may be no UTF-8.
    return f'{text}\n'.encode(errors='surrogateescape')


def _md5():
    return hashlib.md5(usedforsecurity=False)


def _is_in_bucket(files):
    return '://' in files.folder
