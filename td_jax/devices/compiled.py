"""The folder in which JAX keeps compiled programs: what was left half written there is taken away.

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

# What JAX ends the names of its files with.
PROGRAM, LAST_USE = '-cache', '-atime'
# Its time says up to when programs have been looked at: JAX writes none a second time.
CHECKED = '.td_jax_checked'
# In a folder without a lock, a program that was written to since so many seconds may be half written now.
SECONDS = 60
# What begins one that was compressed by Zstandard, which JAX takes where it is installed.
ZSTANDARD = b'\x28\xb5\x2f\xfd'


def mend():
    """Repairs the folder that JAX is told to keep programs in, if it is on a disk; a failure is no matter."""
    place = jax.config.jax_compilation_cache_dir
    if not place or '://' in place or not jax.config.jax_enable_compilation_cache:
        return
    folder = pathlib.Path(place)
    with contextlib.suppress(OSError, ImportError):
        if not folder.is_dir():
            return
        if jax.config.jax_compilation_cache_max_size == -1:
            _remove_cut_off(folder, SECONDS)
            return
        # JAX needs it for such a folder, too, and for no other.
        import filelock

        with filelock.FileLock(folder / '.lockfile', timeout=10):
            _remove_cut_off(folder, 0)
            _pair(folder)


def _remove_cut_off(folder, seconds):
    """Removes programs that are cut off, of those that were written since somebody looked at them.

    Args:
      folder: of the programs.
      seconds: for how long one must not have been written to.
    """
    mark, until = folder / CHECKED, time.time() - seconds
    since = mark.stat().st_mtime if mark.exists() else 0.0
    for path in folder.glob(f'*{PROGRAM}'):
        # Another process may have taken it away.
        with contextlib.suppress(FileNotFoundError):
            # The clock of a disk may lag a little behind.
            if since - 2 <= path.stat().st_mtime <= until + 2 and not is_whole(path):
                path.unlink()
    mark.touch()
    os.utime(mark, (until, until))


def _pair(folder):
    """Gives every program a time of its last use, and takes away such times of no program."""
    programs, used = (
        {path.name.removesuffix(end) for path in folder.glob(f'*{end}')} for end in (PROGRAM, LAST_USE)
    )
    for key in programs - used:
        written = (folder / f'{key}{PROGRAM}').stat().st_mtime_ns
        (folder / f'{key}{LAST_USE}').write_bytes(written.to_bytes(8, 'little'))
    for key in used - programs:
        (folder / f'{key}{LAST_USE}').unlink()


def is_whole(path: pathlib.Path) -> bool:
    """Whether a program can be decompressed; True where only what is not installed here could tell."""
    content = path.read_bytes()
    decompress = _zstandard() if content.startswith(ZSTANDARD) else zlib.decompress
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
