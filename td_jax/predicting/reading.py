"""Reads the inputs of a prediction: a table of ids, or images."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from td_jax.data import base as data
from td_jax.data import decoding, image_files, stream
from td_jax.data import table as data_table
from td_jax.errors import UserError, failure_as_user_error


class Table(NamedTuple):
    """Some columns of a table, as text."""

    columns: dict[str, list[str]]
    lines: list[int]  # where each row ends in the file, counted from 1
    others: list[str]  # names of other columns
    notes: list[str]  # remarks for the user


def read_table(path: epath.Path, names: list[str]) -> Table:
    """Reads columns of a CSV or TSV with a header, in UTF-8.

    Raises:
      UserError: it is not such a file, a column is missing or repeated, or a row has too many, too few or
        empty cells; names the file and the line.
    """
    rows = data_table.Rows(path, [('the column of ids', name) for name in names], '--input')
    columns, lines = {name: [] for name in names}, []
    for row in rows:
        for name, cell in zip(names, row.cells, strict=True):
            if not cell:
                raise UserError(f'{path}, {row.place}: {name} is empty.')
            columns[name].append(cell)
        lines.append(row.last)
    if not lines:
        raise UserError(f'{path} has a first line and no rows.')
    return Table(columns, lines, [name for name in rows.header if name not in names], rows.notes())


def find_images(path: epath.Path) -> image_files.Images:
    """Finds an image of any name, or all images of a folder and its subfolders.

    Raises:
      UserError: there are none.
    """
    if not path.exists():
        raise UserError(f'--input {path} is not there.')
    if not path.is_dir():
        return image_files.Images({path.name: path}, '')
    with failure_as_user_error(f'--input {path} cannot be read'):
        images = image_files.find_images(path)
    if not images.files:
        left_out = f', but {images.ignored}' if images.ignored else ''
        known = ', '.join(decoding.SUFFIXES)
        raise UserError(f'--input {path} has no images in it{left_out}; known are {known}.')
    return images


def read_pixels(files: list[epath.Path], picture: data.Picture) -> np.ndarray:
    """Reads images for Program.of_pixels, [files, side, side, 3] float32 from 0 to 255.

    They are decoded and resized like a data set in a folder.

    Raises:
      UserError: one cannot be read or decoded; names it.
    """

    def read_one(file):
        with failure_as_user_error(f'{file} cannot be read'):
            content = file.read_bytes()
        try:
            image = decoding.decode(content)
        except ValueError as error:
            raise UserError(f'{file} cannot be decoded as an image: {error}.') from error
        return stream.apply_view(image, picture.view, picture.is_rounded).numpy().astype(np.float32)

    return np.stack([read_one(file) for file in files])


def split_batches(count: int, size: int) -> Iterator[slice]:
    """Splits `count` rows into slices of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
