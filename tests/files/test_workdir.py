"""The files of a run: written atomically, and by one process at a time."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from td_jax.errors import UserError
from td_jax.files import workdir


def test_a_file_is_written_whole(tmp_path):
    workdir.write(tmp_path / 'a.json', 'first')
    workdir.write(tmp_path / 'a.json', 'second')
    assert (tmp_path / 'a.json').read_text() == 'second'
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']


@pytest.mark.parametrize('broken', ['fsync', 'replace'])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, broken):
    workdir.write(tmp_path / 'a.json', 'first')

    def fail_for_space(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, broken, fail_for_space)
    with pytest.raises(UserError, match=r'a\.json cannot be written: No space left on device'):
        workdir.write(tmp_path / 'a.json', 'second')
    assert (tmp_path / 'a.json').read_text() == 'first'
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']


def test_a_write_that_is_interrupted_leaves_what_was_there(tmp_path, monkeypatch):
    workdir.write(tmp_path / 'a.json', 'first')

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        workdir.write(tmp_path / 'a.json', 'second')
    assert (tmp_path / 'a.json').read_text() == 'first'
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']


def test_a_file_in_no_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'a\.json cannot be written: No such file or directory'):
        workdir.write(tmp_path / 'nowhere' / 'a.json', 'text')
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_can_be_read_by_others(tmp_path):
    workdir.write(tmp_path / 'a.json', 'text')
    assert (tmp_path / 'a.json').stat().st_mode & 0o777 == 0o644


def test_a_folder_is_for_one_at_a_time(tmp_path):
    folder = tmp_path / 'deep' / 'run'
    with workdir.lock(folder), pytest.raises(UserError, match='in use'), workdir.lock(folder):
        pass
    with workdir.lock(folder):
        assert folder.is_dir()


def test_a_killed_process_lets_go_of_its_folder(tmp_path):
    holds = """
import pathlib, sys
from td_jax.files import workdir
with workdir.lock(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, '-c', holds, tmp_path / 'run'],
        cwd=pathlib.Path(workdir.__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout.readline() == b'held\n'
        with pytest.raises(UserError, match='run is in use'), workdir.lock(tmp_path / 'run'):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with workdir.lock(tmp_path / 'run'):
            assert process.returncode == -signal.SIGKILL


def test_a_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), workdir.lock(tmp_path):
        raise ZeroDivisionError
    with workdir.lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'), workdir.lock(tmp_path / 'file' / 'run'):
        pass


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path / 'me'))
    assert workdir.resolve('runs/a') == tmp_path / 'runs' / 'a'
    assert workdir.resolve('~/a') == tmp_path / 'me' / 'a'
    assert workdir.resolve(str(tmp_path)) == pathlib.Path(tmp_path)
    with pytest.raises(UserError, match='~nobody-of-this-name'):
        workdir.resolve('~nobody-of-this-name/a')


@pytest.mark.parametrize(
    'path', ['s3://b/run', 'file:///tmp/run', 'h2+x.y-z://b', 'GS://b/run', 'https://x/y']
)
def test_an_address_that_is_no_bucket_is_refused(path):
    with pytest.raises(UserError) as error_info:
        workdir.resolve(path)
    assert str(error_info.value) == (
        f'{path} is neither a folder nor in a bucket; write FOLDER/PATH or gs://BUCKET/PATH.'
    )


@pytest.mark.parametrize('path', ['gs://', 'gs:///run'])
def test_a_bucket_without_a_name_is_refused(path):
    with pytest.raises(UserError, match=f'^{path} names no bucket; write gs://BUCKET/PATH'):
        workdir.resolve(path)


@pytest.mark.parametrize('path', ['gs://b/a/run', 'gs://b/a/run/', 'gs://b//a/./run', 'gs://b/a/c/../run'])
def test_a_place_in_a_bucket_has_one_name(path):
    path_in_bucket = workdir.resolve(path)
    assert str(path_in_bucket) == 'gs://b/a/run'
    assert str(path_in_bucket / 'x.json') == 'gs://b/a/run/x.json'
    assert workdir.is_in_bucket(path_in_bucket)
    assert not workdir.is_in_bucket(workdir.resolve('gs:/b'))


@pytest.mark.parametrize('path', ['gs:/b', 'a/gs://b', '://b', '1://b', 'a b://c'])
def test_colons_alone_make_no_address(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert workdir.resolve(path) == tmp_path / path


def test_json_is_read_or_refused(tmp_path):
    path = tmp_path / 'a.json'
    assert workdir.read_json(path) is None
    path.write_text('{"a": [1, 2]}')
    assert workdir.read_json(path) == {'a': [1, 2]}
    for damaged in ('{"a": [1,', '', '\xff'):
        path.write_bytes(damaged.encode('latin-1'))
        with pytest.raises(UserError, match='cannot be read'):
            workdir.read_json(path)
    with pytest.raises(UserError, match='cannot be read'):
        workdir.read_json(tmp_path)
    assert workdir.read_json(path / 'of' / 'a file') is None
    path.write_text('[1, 2]')
    with pytest.raises(UserError, match='does not hold a JSON object'):
        workdir.read_json(path)


# --- Atomic writes ---------------------------------------------------------------------------------


@pytest.fixture(params=['folder', 'bucket'])
def any_folder(request, tmp_path):
    """A folder, then a place in a bucket."""
    return epath.Path(tmp_path) if request.param == 'folder' else request.getfixturevalue('place')


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_becomes_whole(any_folder):
    path = any_folder / 'a.npz'
    for content in (b'first', b'second' * 1000):
        with workdir.atomic_write(path) as temporary:
            temporary.write_bytes(content)
            assert not path.exists() or path.read_bytes() == b'first'
        assert path.read_bytes() == content
    assert list_names(any_folder) == ['a.npz']


def test_a_folder_becomes_whole(any_folder):
    with workdir.atomic_write(any_folder / 'made') as temporary:
        (temporary / 'deep').mkdir(parents=True)
        (temporary / 'a').write_text('1')
        (temporary / 'deep' / 'b').write_text('2')
    assert list_names(any_folder) == ['made']
    assert list_names(any_folder / 'made') == ['a', 'deep']
    assert (any_folder / 'made' / 'deep' / 'b').read_text() == '2'


def test_what_fails_leaves_what_was_there(any_folder):
    workdir.write(any_folder / 'a', 'first')
    with pytest.raises(ZeroDivisionError), workdir.atomic_write(any_folder / 'a') as temporary:
        temporary.write_text('second')
        raise ZeroDivisionError
    with (
        pytest.raises(UserError, match=r'/a cannot be written: No space left on device\.$'),
        workdir.atomic_write(any_folder / 'a') as temporary,
    ):
        temporary.write_text('second')
        raise OSError(28, 'No space left on device')
    assert (any_folder / 'a').read_text() == 'first'
    assert list_names(any_folder) == ['a']


def test_files_are_read_back_or_refused_anywhere(any_folder):
    path = any_folder / 'a.json'
    assert workdir.read_json(path) is None
    assert workdir.read_text(path) is None
    workdir.write(path, '{"a": "ä"}')
    assert workdir.read_json(path) == {'a': 'ä'}
    assert workdir.read_text(path) == '{"a": "ä"}'
    workdir.write(path, '[1, 2]')
    with pytest.raises(UserError, match=r'a\.json does not hold a JSON object'):
        workdir.read_json(path)


def test_arrays_are_read_back_or_refused_anywhere(any_folder):
    path = any_folder / 'a.npz'
    assert workdir.read_arrays(path) is None
    arrays = {'x': np.arange(6, dtype=np.float32).reshape(2, 3), 'n': np.array(3)}
    workdir.write_arrays(path, arrays)
    read_back = workdir.read_arrays(path)
    assert read_back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read_back[name], array)
        assert read_back[name].dtype == array.dtype
    assert list_names(any_folder) == ['a.npz']
    content = path.read_bytes()
    for damaged in (b'', b'text', content[:-30], content[:40] + bytes(20) + content[60:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r'a\.npz cannot be read as arrays \(') as error_info:
            workdir.read_arrays(path)
        assert '\n' not in str(error_info.value)


def test_arrays_of_objects_are_neither_written_nor_read(tmp_path):
    objects = np.array([{}], dtype=object)
    with pytest.raises(TypeError, match='objects'):
        workdir.write_arrays(epath.Path(tmp_path / 'a.npz'), {'x': objects})
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / 'a.npz', x=objects)
    with pytest.raises(UserError, match='cannot be read as arrays'):
        workdir.read_arrays(epath.Path(tmp_path / 'a.npz'))


def test_a_bucket_that_is_not_there_is_refused_in_one_line(bucket):
    path = workdir.resolve('gs://nobody-made-this/run/a.json')
    with pytest.raises(
        UserError, match=r'^gs://nobody-made-this/run/a\.json cannot be written: '
    ) as error_info:
        workdir.write(path, 'text')
    assert '\n' not in str(error_info.value)
