"""Whether files are those of another day."""

import hashlib
import os

import pytest
from etils import epath

from td_jax.data import file_digest
from td_jax.data.base import Files
from td_jax.errors import UserError

CONTENTS = {'train/a/1.png': b'one', 'test/a/1.png': b'two', 'train/a/2.png': b''}


def write(folder):
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return Files(os.fspath(folder), tuple(CONTENTS))


def test_a_digest_is_of_names_and_contents(tmp_path):
    files = write(tmp_path)
    lines = ''.join(f'{name} {hashlib.md5(CONTENTS[name]).hexdigest()}\n' for name in sorted(CONTENTS))
    found = file_digest.digest(files)
    assert (found['count'], found['md5']) == (3, hashlib.md5(lines.encode()).hexdigest())
    assert file_digest.digest(files._replace(names=files.names[::-1])) == found
    os.rename(tmp_path / 'train/a/2.png', tmp_path / 'train/a/3.png')
    renamed = files._replace(names=('train/a/1.png', 'test/a/1.png', 'train/a/3.png'))
    assert file_digest.digest(renamed)['md5'] != found['md5']
    with pytest.raises(UserError, match=f'^{tmp_path}/train/a/2.png cannot be read: No such file'):
        file_digest.digest(files)


def test_what_was_not_touched_is_not_read_again(tmp_path, monkeypatch):
    files, read = write(tmp_path), []
    content = file_digest._md5_of_file
    monkeypatch.setattr(file_digest, '_md5_of_file', lambda path: read.append(path) or content(path))
    found = file_digest.digest(files)
    assert len(read) == 3
    assert file_digest.digest(files, [{}, found]) == found
    assert len(read) == 3
    # The same content, written again, is read, and is the same; another one is another one.
    (tmp_path / 'train/a/1.png').write_bytes(b'one')
    assert file_digest.digest(files, [found])['md5'] == found['md5']
    assert len(read) == 6
    stat = os.stat(tmp_path / 'train/a/1.png')
    (tmp_path / 'train/a/1.png').write_bytes(b'eno')
    os.utime(tmp_path / 'train/a/1.png', ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest.digest(files, [found])['md5'] != found['md5']


def test_a_stamp_is_of_one_file_alone(tmp_path):
    write(tmp_path)
    path = epath.Path(tmp_path / 'train/a/1.png')
    before = file_digest.stamp(path)
    (tmp_path / 'train/a/2.png').write_bytes(b'x')
    assert file_digest.stamp(path) == before
    # Of the same length, within the same second.
    path.write_bytes(b'eno')
    assert file_digest.stamp(path) != before


@pytest.mark.long
def test_a_bucket_tells_the_same_digest_unread(place, tmp_path, monkeypatch):
    expected = file_digest.digest(write(tmp_path))['md5']
    files = write(place)
    with monkeypatch.context() as patch:
        patch.setattr(file_digest, '_md5_of_file', None)
        found = file_digest.digest(files)
    assert found['md5'] == expected
    assert file_digest.digest(files, [found]) == found
    # Of what a bucket says nothing, the content is read.
    monkeypatch.setattr(file_digest, '_md5_of_objects', lambda files: {})
    assert file_digest.digest(files)['md5'] == expected
    before = file_digest.stamp(place / 'train/a/1.png')
    (place / 'train/a/1.png').write_bytes(b'eno')
    assert file_digest.stamp(place / 'train/a/1.png') != before
    assert file_digest.digest(files, [found])['md5'] != expected
