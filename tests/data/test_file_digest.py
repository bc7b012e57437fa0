"""Digests of files: what changes them, and which files are read again."""

import hashlib
import os

import pytest
from etils import epath

from td_jax.data import file_digest
from td_jax.data.base import Files
from td_jax.errors import UserError

CONTENTS = {'train/a/1.png': b'one', 'test/a/1.png': b'two', 'train/a/2.png': b''}


def write_files(folder):
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return Files(os.fspath(folder), tuple(CONTENTS))


def test_a_digest_is_of_names_and_contents(tmp_path):
    files = write_files(tmp_path)
    lines = ''.join(f'{name} {hashlib.md5(CONTENTS[name]).hexdigest()}\n' for name in sorted(CONTENTS))
    expected = file_digest.digest(files)
    assert (expected['count'], expected['md5']) == (3, hashlib.md5(lines.encode()).hexdigest())
    assert file_digest.digest(files._replace(names=files.names[::-1])) == expected
    os.rename(tmp_path / 'train/a/2.png', tmp_path / 'train/a/3.png')
    renamed = files._replace(names=('train/a/1.png', 'test/a/1.png', 'train/a/3.png'))
    assert file_digest.digest(renamed)['md5'] != expected['md5']
    with pytest.raises(UserError, match=f'^{tmp_path}/train/a/2.png cannot be read: No such file'):
        file_digest.digest(files)


def test_what_was_not_touched_is_not_read_again(tmp_path, monkeypatch):
    files, paths_read = write_files(tmp_path), []
    read_md5 = file_digest._md5_of_file
    monkeypatch.setattr(file_digest, '_md5_of_file', lambda path: paths_read.append(path) or read_md5(path))
    record = file_digest.digest(files)
    assert len(paths_read) == 3
    assert file_digest.digest(files, [{}, record]) == record
    assert len(paths_read) == 3
    # A file that is written again is read again; its digest depends on its content alone.
    (tmp_path / 'train/a/1.png').write_bytes(b'one')
    assert file_digest.digest(files, [record])['md5'] == record['md5']
    assert len(paths_read) == 6
    stat = os.stat(tmp_path / 'train/a/1.png')
    (tmp_path / 'train/a/1.png').write_bytes(b'eno')
    os.utime(tmp_path / 'train/a/1.png', ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest.digest(files, [record])['md5'] != record['md5']


def test_a_stamp_is_of_one_file_alone(tmp_path):
    write_files(tmp_path)
    path = epath.Path(tmp_path / 'train/a/1.png')
    before = file_digest.stamp(path)
    (tmp_path / 'train/a/2.png').write_bytes(b'x')
    assert file_digest.stamp(path) == before
    # Of the same length, within the same second.
    path.write_bytes(b'eno')
    assert file_digest.stamp(path) != before


@pytest.mark.long
def test_a_bucket_tells_the_same_digest_unread(place, tmp_path, monkeypatch):
    expected = file_digest.digest(write_files(tmp_path))['md5']
    files = write_files(place)
    with monkeypatch.context() as patch:
        patch.setattr(file_digest, '_md5_of_file', None)
        record = file_digest.digest(files)
    assert record['md5'] == expected
    assert file_digest.digest(files, [record]) == record
    # If the bucket has no digest of an object, its content is read.
    monkeypatch.setattr(file_digest, '_md5_of_objects', lambda files: {})
    assert file_digest.digest(files)['md5'] == expected
    before = file_digest.stamp(place / 'train/a/1.png')
    (place / 'train/a/1.png').write_bytes(b'eno')
    assert file_digest.stamp(place / 'train/a/1.png') != before
    assert file_digest.digest(files, [record])['md5'] != expected
