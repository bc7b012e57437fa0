"""The repair of a compilation cache in which a process left a half-written file."""

import os
import time
import zlib

import jax
import pytest

from td_jax.devices import compilation_cache
from tests import forked

# Compiles some programs in the cache folder.
PROGRAM = """
import sys
import jax
from td_jax.devices import platform

if sys.argv[1] == 'repair':
    platform.start()
for number in range(3):
    jax.jit(lambda x: x * 3 + number)(jax.numpy.arange(5.0)).block_until_ready()
"""


def compile_in(folder, most, mode='repair'):
    """(stderr of a process that compiles into a folder, {path: content} of the programs there)."""
    settings = {'DIR': str(folder), 'MAX_SIZE': str(most)}
    environment = {f'JAX_COMPILATION_CACHE_{name}': value for name, value in settings.items()}
    environment |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'JAX_PLATFORMS': 'cpu'}
    completed = forked.run(['-c', PROGRAM, mode], env={**os.environ, **environment})
    assert completed.returncode == 0, completed.stderr
    return completed.stderr, read_programs(folder)


def read_programs(folder):
    return {path: path.read_bytes() for path in sorted(folder.glob('*-cache'))}


def list_keys(folder):
    """(keys with a program, keys with a time of last use)."""
    return tuple(
        {path.name.removesuffix(end) for path in folder.glob(f'*{end}')} for end in ('-cache', '-atime')
    )


BOUNDED, UNBOUNDED = 2**30, -1


@pytest.mark.parametrize('most', [BOUNDED, UNBOUNDED])
def test_what_is_cut_off_is_written_anew(tmp_path, most):
    err, whole = compile_in(tmp_path, most)
    assert err == '' and len(whole) >= 3
    longest = max(whole, key=lambda path: len(whole[path]))
    longest.write_bytes(whole[longest][:-7])
    if most == UNBOUNDED:
        # Another process may still be writing it, so it stays.
        err, _ = compile_in(tmp_path, most)
        assert 'Error reading persistent compilation cache entry' in err
        old = time.time() - 2 * compilation_cache.MIN_AGE_SECONDS
        os.utime(longest, (old, old))
        (tmp_path / compilation_cache.CHECK_MARK).unlink()
    else:
        err, _ = compile_in(tmp_path, most, 'no repair')
        assert 'Error reading persistent compilation cache entry' in err
        longest.write_bytes(whole[longest][:-7])
    err, rewritten = compile_in(tmp_path, most)
    assert err == ''
    assert rewritten.keys() == whole.keys()
    assert len(rewritten[longest]) > len(whole[longest]) - 7 and zlib.decompress(rewritten[longest])
    # All others are as they were.
    assert {**rewritten, longest: b''} == {**whole, longest: b''}


def test_a_program_without_a_time_of_use_gets_one_and_a_time_without_a_program_goes(tmp_path):
    """A process was killed between writing, or removing, the program and its time of use."""
    err, whole = compile_in(tmp_path, BOUNDED)
    removed, other, *_ = whole
    removed.unlink()
    # A program of another command, which this one does not read.
    other_program = tmp_path / 'jit_other-0123-cache'
    other_program.write_bytes(whole[other])
    # JAX alone no longer writes to this folder.
    err, programs_after = compile_in(tmp_path, BOUNDED, 'no repair')
    assert 'Error writing persistent compilation cache entry' in err and removed not in programs_after
    err, programs_after = compile_in(tmp_path, BOUNDED)
    assert (err, programs_after.keys()) == ('', {*whole, other_program})
    assert programs_after[other_program] == whole[other]
    programs, used = list_keys(tmp_path)
    assert programs == used


def test_what_was_looked_at_once_is_not_read_again(tmp_path, monkeypatch):
    _, whole = compile_in(tmp_path, BOUNDED)
    paths_checked = []
    monkeypatch.setattr(compilation_cache, 'is_whole', lambda path: paths_checked.append(path) or True)
    old = time.time() - 100
    os.utime(tmp_path / compilation_cache.CHECK_MARK, (old, old))
    newest = next(iter(whole))
    for path in whole:
        os.utime(path, (old - 50, old - 50))
    os.utime(newest, (old + 50, old + 50))
    compilation_cache._remove_cut_off(tmp_path, 0)
    assert paths_checked == [newest]


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (zlib.compress(b'program'), True),
        (zlib.compress(b'program')[:-1], False),
        (b'', False),
        (b'neither', False),
        # td_jax does not require Zstandard; without it JAX cannot read these.
        (compilation_cache.ZSTANDARD_MAGIC + b'...', compilation_cache._zstandard() is None),
    ],
)
def test_a_program_is_whole_or_not(content, expected, tmp_path):
    path = tmp_path / 'key-cache'
    path.write_bytes(content)
    assert compilation_cache.is_whole(path) == expected


@pytest.mark.parametrize('place', ['gs://bucket/compiled', '/none/compiled', ''])
def test_what_is_no_folder_is_left_to_jax(place, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', place)
    try:
        compilation_cache.repair()
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
