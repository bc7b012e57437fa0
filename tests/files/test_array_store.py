"""Arrays that processes share: made once, whole, as described, and within a limit of space."""

import json
import mmap
import os
import shutil
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.errors import UserError
from td_jax.files import array_store
from tests import forked

NUMBERS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
ARRAYS = {'lower': NUMBERS, 'upper': NUMBERS.astype(jnp.bfloat16), 'labels': np.arange(7, dtype=np.int8)}


def get_or_make(folder, description=None, arrays=ARRAYS, limit=10**6):
    """(arrays, whether they were made)."""
    calls = []

    def make():
        calls.append(True)
        return arrays

    result = array_store.get_or_make(folder, description or {'of': 'a'}, make, limit=limit, what='states')
    return result, bool(calls)


def list_entries(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


def test_arrays_are_made_once_and_come_back_bit_for_bit(tmp_path, capsys):
    assert get_or_make(tmp_path / 'new' / 'store')[1]
    arrays, was_made = get_or_make(tmp_path / 'new' / 'store')
    assert not was_made and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].tobytes()) == (array.dtype, array.tobytes())
        # They are read from disk, and cannot be changed.
        assert not arrays[name].flags.writeable
    base = arrays['lower']
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    # NumPy alone can read the file.
    (entry,) = list_entries(tmp_path / 'new' / 'store')
    np.testing.assert_array_equal(np.load(entry / 'lower.npy'), NUMBERS)
    stored_line, read_line = capsys.readouterr().err.splitlines()
    assert (
        stored_line == f'states: kept in {entry}, 0.000217 MB' and read_line == f'states: read from {entry}'
    )


def test_another_description_is_another_entry(tmp_path):
    other = {'lower': NUMBERS + 1}
    get_or_make(tmp_path)
    assert get_or_make(tmp_path, {'of': 'b', 'pair': (1, 2)}, other)[1]
    assert not get_or_make(tmp_path)[1]
    arrays, was_made = get_or_make(tmp_path, {'of': 'b', 'pair': (1, 2)}, other)
    assert not was_made
    np.testing.assert_array_equal(arrays['lower'], other['lower'])


def flip_a_byte(entry):
    content = bytearray((entry / 'upper.npy').read_bytes())
    content[-3] ^= 1
    (entry / 'upper.npy').write_bytes(content)


def cut_file(entry):
    (entry / 'lower.npy').write_bytes((entry / 'lower.npy').read_bytes()[:-8])


def replace_entry(entry):
    """Replaces the description by another one; the file is whole, with its digest."""
    about = json.loads((entry / array_store.ABOUT).read_text())
    about['description'] = {'of': 'b'}
    (entry / array_store.ABOUT).write_text(json.dumps(about))


@pytest.mark.parametrize(
    ('damage', 'why'),
    [
        (flip_a_byte, 'upper.npy is not as it was written'),
        (cut_file, 'lower.npy is not as it was written'),
        (replace_entry, 'its about.json is missing or describes something else'),
        (lambda entry: (entry / 'lower.npy').unlink(), 'No such file or directory'),
        (lambda entry: (entry / array_store.ABOUT).unlink(), 'its about.json is missing'),
        (lambda entry: (entry / array_store.ABOUT).write_text('{'), 'about.json cannot be read'),
    ],
)
def test_what_is_damaged_or_foreign_is_made_again(tmp_path, capsys, damage, why):
    get_or_make(tmp_path)
    (entry,) = list_entries(tmp_path)
    damage(entry)
    capsys.readouterr()
    arrays, was_made = get_or_make(tmp_path)
    assert was_made
    np.testing.assert_array_equal(arrays['lower'], NUMBERS)
    warning, stored_line = capsys.readouterr().err.splitlines()
    assert f'states: {entry} is damaged and is made again: ' in warning and why in warning
    assert stored_line.startswith('states: kept in ')
    assert not get_or_make(tmp_path)[1]


def test_the_longest_unused_go_where_there_is_too_much(tmp_path, capsys):
    descriptions = [{'of': number} for number in range(3)]
    for description in descriptions[:2]:
        get_or_make(tmp_path, description)
        time.sleep(0.01)
    size = sum(file.stat().st_size for file in list_entries(tmp_path)[0].iterdir())
    mapped_arrays, was_made = get_or_make(tmp_path, descriptions[0])
    assert not was_made  # and it is now the one that was used last
    get_or_make(tmp_path, descriptions[2], limit=2 * size)
    for description in (descriptions[0], descriptions[2]):
        assert not get_or_make(tmp_path, description)[1]
    assert len(list_entries(tmp_path)) == 2
    # Arrays that another process has mapped stay valid.
    shutil.rmtree(tmp_path)
    np.testing.assert_array_equal(mapped_arrays['lower'], NUMBERS)
    capsys.readouterr()
    arrays, was_made = get_or_make(tmp_path, limit=100)
    assert was_made and arrays['lower'] is ARRAYS['lower'] and not list_entries(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f'states: not kept: 0.000217 MB, but {tmp_path} may have 0.0001 MB in all'


def test_what_cannot_be_written_is_there_all_the_same(tmp_path, capsys, monkeypatch):
    def fail_for_space(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'save', fail_for_space)
    arrays, was_made = get_or_make(tmp_path)
    assert was_made and arrays['lower'] is ARRAYS['lower'] and not list_entries(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('states: not kept: ') and 'No space left on device' in line


def test_an_entry_that_another_process_reads_stays(tmp_path):
    get_or_make(tmp_path)
    (entry,) = list_entries(tmp_path)
    with array_store._lock(array_store._lock_of(entry)) as is_held:
        assert is_held
        get_or_make(tmp_path, {'of': 'b'}, limit=300)
        assert len(list_entries(tmp_path)) == 2
    time.sleep(0.01)
    get_or_make(tmp_path, {'of': 'c'}, limit=300)
    assert len(list_entries(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    get_or_make(tmp_path)
    (entry,) = list_entries(tmp_path)
    shutil.rmtree(entry)
    array_store._lock_of(entry).unlink()
    array_store._lock_of(entry).mkdir()
    with pytest.raises(
        UserError, match=r'\.lock cannot be written \(Is a directory\); choose another folder'
    ):
        get_or_make(tmp_path)


def test_a_folder_in_a_bucket_is_refused():
    with pytest.raises(UserError, match='is in a bucket, where nothing can be locked'):
        get_or_make('gs://td-jax/outputs')


# Writes made-NUMBER, and makes the entry once there is a file `go`.
MAKER = """
import pathlib, sys
import numpy as np
from td_jax.files import array_store

folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]

def make():
    (folder / f'made-{number}').touch()
    while not (folder / 'go').exists():
        pass
    return {'lower': np.full(3, int(number))}

arrays = array_store.get_or_make(folder / 'store', {'of': 'a'}, make, limit=10**6, what='states')
print(arrays['lower'].tolist())
"""


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_make_an_entry_once_and_after_a_kill_again(tmp_path):
    first = forked.start(['-c', MAKER, tmp_path, 1])
    wait_for(tmp_path / 'made-1')
    second = forked.start(['-c', MAKER, tmp_path, 2])
    first.send_signal(signal.SIGKILL)
    first.communicate()
    # The second process has waited, and makes the entry despite the unfinished files of the first.
    wait_for(tmp_path / 'made-2')
    (tmp_path / 'store' / '.half').mkdir()
    (tmp_path / 'store' / '.half' / 'lower.npy').write_bytes(bytes(100))
    third = forked.start(['-c', MAKER, tmp_path, 3])
    time.sleep(0.2)
    (tmp_path / 'go').touch()
    printed = [process.communicate()[0] for process in (second, third)]
    assert printed == ['[2, 2, 2]\n'] * 2
    assert not (tmp_path / 'made-3').exists()
    assert [path.name[0] != '.' for path in list_entries(tmp_path / 'store')] == [True]
    assert os.path.exists(list_entries(tmp_path / 'store')[0] / 'lower.npy')
