"""Repairs the folder in which JAX keeps compiled programs: removes those that are half written.

JAX writes a program as KEY-cache and, where the folder has a largest size, then KEY-atime, both under a
lock. A process that is killed, or a disk that is full, leaves a program that is cut off, which JAX reads with
a warning and never writes again, or a KEY-cache without KEY-atime, after which it writes no other one either.
"""

import contextlib
import os
import pathlib
import time
import zlib

import jax

# Suffixes of the names of JAX's files.
PROGRAM, LAST_USE = '-cache', '-atime'
# A file whose time says up to when programs were checked: JAX writes no program twice.
CHECK_MARK = '.td_jax_checked'
# In a folder without a lock, a program that was written to within so many seconds may still be growing.
MIN_AGE_SECONDS = 60
# The first bytes of a program compressed by Zstandard, which JAX uses where it is installed.
ZSTANDARD_MAGIC = b'\x28\xb5\x2f\xfd'


def repair():
    """Repairs the folder in which JAX keeps programs, if it is on a disk; ignores failures."""
    place = jax.config.jax_compilation_cache_dir
    if not place or '://' in place or not jax.config.jax_enable_compilation_cache:
        return
    folder = pathlib.Path(place)
    with contextlib.suppress(OSError, ImportError):
        if not folder.is_dir():
            return
        if jax.config.jax_compilation_cache_max_size == -1:
            _remove_cut_off(folder, MIN_AGE_SECONDS)
            return
        # JAX needs it for such a folder, too, and for no other.
        import filelock

        with filelock.FileLock(folder / '.lockfile', timeout=10):
            _remove_cut_off(folder, 0)
            _pair_files(folder)


def _remove_cut_off(folder, seconds):
    """Removes programs that are cut off, of those that were written since the last check.

    Args:
      folder: of the programs.
      seconds: for how long a program must not have been written to.
    """
    mark, until = folder / CHECK_MARK, time.time() - seconds
    since = mark.stat().st_mtime if mark.exists() else 0.0
    for path in folder.glob(f'*{PROGRAM}'):
        # Another process may have taken it away.
        with contextlib.suppress(FileNotFoundError):
            # The clock of a disk may lag a little behind.
            if since - 2 <= path.stat().st_mtime <= until + 2 and not is_whole(path):
                path.unlink()
    mark.touch()
    os.utime(mark, (until, until))


def _pair_files(folder):
    """Writes the missing times of last use, and removes those without a program."""
    programs, last_uses = (
        {path.name.removesuffix(end) for path in folder.glob(f'*{end}')} for end in (PROGRAM, LAST_USE)
    )
    for key in programs - last_uses:
        modified_ns = (folder / f'{key}{PROGRAM}').stat().st_mtime_ns
        (folder / f'{key}{LAST_USE}').write_bytes(modified_ns.to_bytes(8, 'little'))
    for key in last_uses - programs:
        (folder / f'{key}{LAST_USE}').unlink()


def is_whole(path: pathlib.Path) -> bool:
    """Whether a program can be decompressed; True where the package for that is not installed."""
    content = path.read_bytes()
    decompress = _zstandard() if content.startswith(ZSTANDARD_MAGIC) else zlib.decompress
    try:
        return decompress is None or bool(decompress(content))
    # Each way to compress has errors of its own.
    except Exception:
        return False


def _zstandard():
    """The function that decompresses by Zstandard, as JAX finds it, or None."""
    with contextlib.suppress(ImportError):
        from compression import zstd  # of Python 3.14

        return zstd.decompress
    with contextlib.suppress(ImportError):
        import zstandard

        return zstandard.ZstdDecompressor().decompress
    return None
