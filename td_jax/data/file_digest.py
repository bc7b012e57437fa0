"""Tells whether files have changed, by a digest of their content and by a stamp of their sizes and times.

The content is read once; while the stamp stays the same, it is not read again. The digest is MD5, which a
bucket stores with its objects. It detects changes, not forgeries.
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

# Files that are read concurrently, because each waits for its disk.
THREADS = 16
# Writes within so many seconds may get the same time: more than a tick of Linux's clock of files.
TICK = 0.02


def stamp(path: epath.Path) -> str:
    """A text that changes whenever a file is written.

    Raises:
      UserError: it cannot be looked at.
    """
    return combined_stamp([Files(os.fspath(path.parent), (path.name,))])


def combined_stamp(parts: Iterable[Files]) -> str:
    """A text that changes whenever any of some files is written.

    Raises:
      UserError: one cannot be looked at.
    """
    return _hash_lines(_refuse_unreadable(files, _stamp_files) for files in parts)


def digest(files: Files, previous: Iterable[dict] = ()) -> dict:
    """Computes the digest of names and contents of some files: {'count', 'md5', 'stamp'}.

    Args:
      files: the files.
      previous: earlier digests, of these or other files. One is returned if its names, sizes and times are
        unchanged; else every file is read.

    Raises:
      UserError: one cannot be read.
    """
    return _refuse_unreadable(files, lambda files: _digest(files, previous))


def _refuse_unreadable(files, read):
    try:
        return read(files)
    # The client of a bucket has errors of its own.
    except Exception as error:
        place = getattr(error, 'filename', None) or files.folder
        raise UserError(f'{place} cannot be read: {reason(error)}.') from error


def _digest(files, previous):
    names, current_stamp = sorted(files.names), _stamp_files(files)
    for description in previous:
        if description.get('stamp') == current_stamp:
            return description
    md5_of = _md5_of_objects(files) if _is_in_bucket(files) else {}
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        contents = pool.map(lambda name: md5_of.get(name) or _md5_of_file(f'{files.folder}/{name}'), names)
        lines = [f'{name} {content}' for name, content in zip(names, contents, strict=True)]
    return {'count': len(names), 'md5': _hash_lines(lines), 'stamp': current_stamp}


def _stamp_files(files):
    names = sorted(files.names)
    if _is_in_bucket(files):
        objects = _list_objects(files)
        return _hash_lines(f'{name} {objects[name].get("generation")}' for name in names)
    newest, md5 = 0, _md5()
    for name in names:
        stat = os.stat(f'{files.folder}/{name}')
        newest = max(newest, stat.st_ctime_ns)
        # The ctime reveals a file that was replaced by one whose mtime was set back.
        md5.update(_encode_line(f'{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}'))
    if abs(time.time_ns() - newest) < 1e9 * TICK:
        # Waits, so that later writes get later times.
        time.sleep(TICK)
    return md5.hexdigest()


def _list_objects(files):
    """Lists files in a bucket: {name: its metadata there}."""
    system, root = fsspec.core.url_to_fs(files.folder)
    root, objects = root.rstrip('/'), {}
    if len(files.names) == 1:
        return {name: system.info(f'{root}/{name}') for name in files.names}
    for subfolder in {posixpath.dirname(name) for name in files.names}:
        for path, info in system.find(f'{root}/{subfolder}'.rstrip('/'), detail=True).items():
            objects[path.removeprefix(f'{root}/')] = info
    return objects


def _md5_of_objects(files):
    """{name: MD5} as the bucket stores it; objects composed of parts have none."""
    hashes = {name: info.get('md5Hash') for name, info in _list_objects(files).items()}
    return {name: base64.b64decode(md5).hex() for name, md5 in hashes.items() if md5}


def _md5_of_file(path):
    with epath.Path(path).open('rb') as file:
        return hashlib.file_digest(file, _md5).hexdigest()


def _hash_lines(lines):
    md5 = _md5()
    for line in lines:
        md5.update(_encode_line(line))
    return md5.hexdigest()


def _encode_line(text):
    # A file name may not be UTF-8.
    return f'{text}\n'.encode(errors='surrogateescape')


def _md5():
    return hashlib.md5(usedforsecurity=False)


def _is_in_bucket(files):
    return '://' in files.folder
