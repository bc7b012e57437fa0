"""What a person has, in files: a table of ids, or images."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from td_jax.data import base as data
from td_jax.data import decoding, image_files, stream
from td_jax.data import table as data_table
from td_jax.errors import UserError, reason


class Table(NamedTuple):
    """Some columns of a table, as text."""

    columns: dict[str, list[str]]
    lines: list[int]  # where each row ends in the file, counted from 1
    others: list[str]  # columns that were not asked for
    notes: list[str]  # what a person may not expect of it


def table(path: epath.Path, wanted: list[str]) -> Table:
    """Reads columns of a CSV or TSV with a header, in UTF-8.

    Raises:
      UserError: it is no such file, a column is missing or there twice, or a row has too many or too few
        cells or an empty one; names the file and the line.
    """
    rows = data_table.Rows(path, [('the column of ids', name) for name in wanted], '--input')
    columns, lines = {name: [] for name in wanted}, []
    for row in rows:
        for name, cell in zip(wanted, row.cells, strict=True):
            if not cell:
                raise UserError(f'{path}, {row.place}: {name} is empty.')
            columns[name].append(cell)
        lines.append(row.last)
    if not lines:
        raise UserError(f'{path} has a first line and no rows.')
    return Table(columns, lines, [name for name in rows.header if name not in wanted], rows.notes())


def _bytes(path):
    try:
        return path.read_bytes()
    # The client of a bucket has errors of its own.
    except Exception as error:
        raise UserError(f'{path} cannot be read: {reason(error)}.') from error


def find_images(path: epath.Path) -> image_files.Images:
    """An image, whatever its name, or all images of a folder and of the folders in it.

    Raises:
      UserError: there is none.
    """
    if not path.exists():
        raise UserError(f'--input {path} is not there.')
    if not path.is_dir():
        return image_files.Images({path.name: path}, '')
    try:
        found = image_files.find_images(path)
    # The client of a bucket has errors of its own.
    except Exception as error:
        raise UserError(f'--input {path} cannot be read: {reason(error)}.') from error
    if not found.files:
        left_out = f', but {found.ignored}' if found.ignored else ''
        known = ', '.join(decoding.SUFFIXES)
        raise UserError(f'--input {path} has no images in it{left_out}; known are {known}.')
    return found


def pixels(files: list[epath.Path], picture: data.Picture) -> np.ndarray:
    """Images as Program.of_pixels takes them, [files, side, side, 3] float32 from 0 to 255.

    They are decoded and resized as those of a folder are.

    Raises:
      UserError: one cannot be read or decoded; names it.
    """

    def shown(file):
        content = _bytes(file)
        try:
            image = decoding.decode(content)
        except ValueError as error:
            raise UserError(f'{file} cannot be decoded as an image: {error}.') from error
        return stream.apply_view(image, picture.view, picture.is_rounded).numpy().astype(np.float32)

    return np.stack([shown(file) for file in files])


def in_batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that are `count` long together."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
