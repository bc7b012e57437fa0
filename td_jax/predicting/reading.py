"""What a person has, in files: a table of ids, or images."""

import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from td_jax.data import base as data
from td_jax.data import images, stream
from td_jax.errors import UserError
from td_jax.files import workdir

# Suffixes of images that are looked for in a folder.
SUFFIXES = '.jpg', '.jpeg', '.png', '.gif', '.bmp'
# Suffix of a table -> what stands between its columns.
SEPARATORS = {'.csv': ',', '.tsv': '\t'}


class Table(NamedTuple):
    """Some columns of a table, as text."""

    columns: dict[str, list[str]]
    lines: list[int]  # where each row ends in the file, counted from 1
    others: list[str]  # columns that were not asked for


def table(path: epath.Path, wanted: list[str]) -> Table:
    """Reads columns of a CSV or TSV with a header, in UTF-8.

    Raises:
      UserError: it is no such file, a column is missing or there twice, or a row has too many or too few
        cells or an empty one; names the file and the line.
    """
    separator = SEPARATORS.get(path.suffix.lower())
    if separator is None:
        endings = ' or '.join(SEPARATORS)
        raise UserError(f'--input {path} is no table of ids; the name of one ends in {endings}.')
    text = _text(path)
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=separator, strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise UserError(f'{path} line 1: there is no header; it names the columns {", ".join(wanted)}.')
        places = _places(path, header, wanted)
        columns, lines = {name: [] for name in wanted}, []
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(
                    f'{path} line {reader.line_num}: {len(row)} cells, but the header has {len(header)}.'
                )
            for name, place in places.items():
                if not row[place].strip():
                    raise UserError(f'{path} line {reader.line_num}: {name} is empty.')
                columns[name].append(row[place].strip())
            lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f'{path} line {reader.line_num}: {error}.') from error
    if not lines:
        raise UserError(f'{path} has a header and no rows.')
    return Table(columns, lines, [name for name in header if name not in wanted])


def _places(path, header, wanted):
    """{name: place in the header} of columns that each are there once."""
    header = [name.strip() for name in header]
    for name in wanted:
        if header.count(name) != 1:
            says = 'is missing' if name not in header else 'is there twice'
            raise UserError(f'{path} line 1: the column {name} {says}; the header is {", ".join(header)}.')
    return {name: header.index(name) for name in wanted}


def _text(path):
    content = _bytes(path)
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b'\n') + 1
        raise UserError(f'{path} line {line}: it is not UTF-8.') from error


def _bytes(path):
    try:
        return path.read_bytes()
    # The client of a bucket has errors of its own.
    except Exception as error:
        raise UserError(f'{path} cannot be read: {workdir.reason(error)}.') from error


def image_files(path: epath.Path) -> dict[str, epath.Path]:
    """{name: path} of an image, or of all in a folder and the folders in it, in order of their names.

    Raises:
      UserError: there is none.
    """
    if not path.exists():
        raise UserError(f'--input {path} is not there.')
    if not path.is_dir():
        return {path.name: path}
    found = {str(file.relative_to(path)): file for file in _files(path) if file.suffix.lower() in SUFFIXES}
    if not found:
        raise UserError(f'--input {path} has no images in it; known are {", ".join(SUFFIXES)}.')
    return dict(sorted(found.items()))


def _files(folder):
    """All files of a folder and of those in it."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def pixels(files: list[epath.Path], picture: data.Picture) -> np.ndarray:
    """Images as Program.of_pixels takes them, [files, size, size, 3] float32 from 0 to 255.

    They are decoded and resized by TensorFlow, as those of the data set are.

    Raises:
      UserError: one cannot be read or decoded; names it.
    """
    import tensorflow as tf

    def resized(file):
        content = _bytes(file)
        try:
            image = stream.decoded(tf.constant(content))
        except tf.errors.OpError as error:
            raise UserError(f'{file} cannot be decoded as an image.') from error
        size = picture.size, picture.size
        return tf.image.resize(
            tf.cast(image, tf.float32), size, antialias=images.RESIZES[picture.resize]
        ).numpy()

    found = np.stack([resized(file) for file in files])
    return np.floor(found + np.float32(0.5)) if picture.is_rounded else found


def in_batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that are `count` long together."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
