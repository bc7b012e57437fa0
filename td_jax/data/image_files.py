"""Finds the images in a folder, by the same rule for training and predicting."""

import os
from typing import NamedTuple

from etils import epath

from td_jax.data import decoding

# Folders that operating systems add; names that begin with a dot are hidden, too.
HIDDEN = ('__MACOSX',)
# At most so many ignored names are listed.
MAX_LISTED = 5


class Folder(NamedTuple):
    """The sorted names in a folder, by kind."""

    images: list[str]
    folders: list[str]
    others: list[str]
    num_hidden: int


class IgnoredFiles:
    """The names in some folders that are ignored."""

    def __init__(self):
        self.names: list[str] = []
        self.num_hidden = 0

    def add(self, inside: str, folder: Folder):
        """Adds what is neither image nor folder; `inside`, the name of the folder, is empty or ends in /."""
        self.names += [f'{inside}{name}' for name in folder.others]
        self.num_hidden += folder.num_hidden

    def __str__(self):
        """A list for a person; '' where nothing is ignored."""
        more = f' and {len(self.names) - MAX_LISTED} more' if len(self.names) > MAX_LISTED else ''
        names = ', '.join(sorted(self.names)[:MAX_LISTED]) + more
        hidden = f'{self.num_hidden} hidden' if self.num_hidden else ''
        return ', '.join(filter(None, [names, hidden]))


class Images(NamedTuple):
    """The images of a folder and of the folders in it."""

    files: dict[str, epath.Path]  # by their names within the folder, in the order of the names
    ignored: str  # for a person, '' if there is nothing


def list_folder(folder: epath.Path) -> Folder:
    """Sorts the names in a folder by what they are.

    An image has one of decoding.SUFFIXES and is not hidden. Whether it is a file is not checked: in a bucket
    that takes a request for each.
    """
    images, folders, others, num_hidden = [], [], [], 0
    for path in folder.iterdir():
        name = path.name
        if name.startswith('.') or name in HIDDEN:
            num_hidden += 1
        elif name.lower().endswith(decoding.SUFFIXES):
            images.append(name)
        else:
            (folders if path.is_dir() else others).append(name)
    return Folder(sorted(images), sorted(folders), sorted(others), num_hidden)


def find_images(folder: epath.Path) -> Images:
    """Finds the images of a folder and of the folders in it.

    A folder that is reached again by a link is not read again.
    """
    files, ignored, visited = {}, IgnoredFiles(), set()
    # Links come last, so that the folder that one points to has its own name.
    places, links = [''], []
    while places or links:
        inside = places.pop() if places else links.pop(0)
        place = folder / inside
        real_path = os.path.realpath(place)
        if real_path in visited:
            ignored.names.append(inside)
            continue
        visited.add(real_path)
        entries = list_folder(place)
        files |= {f'{inside}{name}': place / name for name in entries.images}
        ignored.add(inside, entries)
        for name in entries.folders:
            (links if os.path.islink(place / name) else places).append(f'{inside}{name}/')
    return Images(dict(sorted(files.items())), str(ignored))
