"""A CSV or TSV, read row by row."""

import csv
import difflib
import io
from collections.abc import Iterator

from etils import epath

from td_jax.errors import UserError, reason

# Suffix -> what stands between two cells.
SEPARATORS = {'.csv': ',', '.tsv': '\t'}


def rows(
    path: epath.Path, columns: list[tuple[str, str]], given: str = 'dataset.path'
) -> Iterator[tuple[int, list[str]]]:
    """The cells of some columns, without the space around them.

    The file is in UTF-8 and its first line names its columns; a cell with separators, quotes or line breaks
    in it stands in double quotes. Empty lines do not count.

    Args:
      path: of the file.
      columns: (the knob that names a column, that name), of each.
      given: the knob or flag that names the file.

    Returns:
      Iterator over (line of the file that a row ends on, from 1; its cells, in the order of `columns`). The
      first is the first line itself, with the names of all columns.

    Raises:
      UserError: from the iterator; no such file, a column that is missing or there twice, or a row that is
        not like the first; names the file and, where there is one, the line.
    """
    separator = SEPARATORS.get(path.suffix.lower())
    if separator is None:
        endings = ' or '.join(SEPARATORS)
        raise UserError(f'{given} {path} is no table; the name of one ends in {endings}.')
    try:
        with path.open('rb') as file:
            text = io.TextIOWrapper(file, encoding='utf-8-sig', newline='')
            yield from _cells(path, csv.reader(text, delimiter=separator, strict=True), columns)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f'{path}, line {_first_undecoded(path)}: it is not UTF-8.') from error
    # The client of a bucket has errors of its own.
    except Exception as error:
        raise UserError(f'{path} cannot be read: {reason(error)}.') from error


def _cells(path, reader, columns):
    """What `rows` gives."""
    header = None
    try:
        for row in reader:
            if not row:
                continue
            if '\0' in ''.join(row):
                raise UserError(f'{path}, line {reader.line_num}: a byte of 0 in it; it is no text in UTF-8.')
            if header is None:
                header = [name.strip() for name in row]
                places = _places(path, header, columns)
                yield reader.line_num, header
                continue
            if len(row) != len(header):
                raise UserError(
                    f'{path}, line {reader.line_num}: a row of {len(row)} cells, but there are {len(header)} '
                    'columns.'
                )
            yield reader.line_num, [row[place].strip() for place in places]
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num}: {error}.') from error
    if header is None:
        raise UserError(f'{path} is empty; its first line names its columns.')


def _places(path, header, columns):
    """The place of each of some columns in a first line."""
    for knob, name in columns:
        if header.count(name) == 1:
            continue
        if name in header:
            raise UserError(f'{path}, line 1: the column {name!r} is there twice; rename all but one.')
        nearest = difflib.get_close_matches(name.lower(), [other.lower() for other in header], n=1)
        found = [other for other in header if nearest and other.lower() == nearest[0]]
        hint = f' Did you mean {found[0]}?' if found else ''
        raise UserError(
            f'{knob} is {name!r}, but {path}, line 1, has no such column.{hint} It has '
            f'{", ".join(header):.300}.'
        )
    return [header.index(name) for _, name in columns]


def _first_undecoded(path):
    """The number of the first line that is not UTF-8."""
    with path.open('rb') as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
