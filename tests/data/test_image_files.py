"""Which files of a folder are images."""

import os

import pytest
from etils import epath

from td_jax.data import image_files


@pytest.fixture
def folder(tmp_path):
    """Images in several folders, with the files that operating systems leave next to them."""
    names = [f'{place}/{i:02}{suffix}' for place in ('a', 'b/c') for i, suffix in enumerate(SUFFIXES)]
    unread = [
        '.DS_Store',
        'a/._00.png',
        '.ipynb_checkpoints/00.png',
        '__MACOSX/a/._00.png',
        'a/notes.txt',
        'b/x.heic',
    ]
    for name in [*names, *unread]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    return epath.Path(tmp_path)


SUFFIXES = '.jpg', '.JPEG', '.png', '.webp', '.tif', '.Tiff'
NAMES = [f'{place}/{i:02}{suffix}' for place in ('a', 'b/c') for i, suffix in enumerate(SUFFIXES)]


def test_hidden_files_are_left_out_and_what_is_left_out_is_reported(folder):
    listing = image_files.find_images(folder)
    assert listing.files == {name: folder / name for name in NAMES}
    assert listing.ignored == 'a/notes.txt, b/x.heic, 4 hidden'
    assert image_files.list_folder(folder) == image_files.Folder([], ['a', 'b'], [], 3)
    assert image_files.list_folder(folder / 'b') == image_files.Folder([], ['c'], ['x.heic'], 0)


def test_a_loop_of_links_gives_each_image_once(folder):
    for link, target in {'b/c/up': '../..', 'again': 'b', 'a/self': '.', 'first': 'again'}.items():
        os.symlink(target, folder / link)
    listing = image_files.find_images(folder)
    assert list(listing.files) == NAMES
    assert listing.ignored == 'a/notes.txt, a/self/, again/, b/c/up/, b/x.heic and 1 more, 4 hidden'


def test_what_lies_elsewhere_is_read_by_its_link(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    (elsewhere / 'x.png').write_bytes(b'')
    os.symlink(elsewhere, folder / 'far')
    os.symlink(elsewhere / 'x.png', folder / 'y.png')
    assert list(image_files.find_images(folder).files) == [*NAMES, 'far/x.png', 'y.png']


def test_a_folder_of_images_alone_has_nothing_to_say(folder):
    assert image_files.find_images(folder / 'b' / 'c').ignored == ''
