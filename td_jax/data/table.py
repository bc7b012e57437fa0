"""A CSV or TSV, read row by row."""

import csv
import difflib
import io
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from td_jax.errors import UserError, failure_as_user_error

# {suffix: separator of cells}
SEPARATORS = {'.csv': ',', '.tsv': '\t'}
NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?', re.ASCII)


class Row(NamedTuple):
    """A row of a table: some of its cells, without the space around them."""

    first: int  # the line of the file that it begins on, from 1
    last: int  # and ends on
    cells: list[str]

    @property
    def place(self) -> str:
        return _format_lines(self.first, self.last)


class Rows:
    """The rows of a table, read one by one.

    The file is in UTF-8 and its first line names its columns. In a CSV a cell with separators, quotes or line
    breaks in it stands in double quotes; in a TSV a double quote is a character like any other. Empty lines
    do not count.

    header: the names of all columns; empty until the first row is asked for
    """

    def __init__(self, path: epath.Path, columns: list[tuple[str, str]], option: str = 'dataset.path'):
        """Names a file; nothing is read yet.

        Args:
          path: of the file.
          columns: (the option that names a column, that name), of each that is read.
          option: the option or flag that names the file.
        """
        self.header: list[str] = []
        self._path, self._columns, self._option = path, columns, option
        self._multiline_rows, self._quoted_cells = _Occurrences(), _Occurrences()

    def __iter__(self) -> Iterator[Row]:
        """The rows after the first line, each with the cells of the columns that are read, in their order.

        Raises:
          UserError: from the iterator; no such file, a column that is missing or there twice, or a row that
            is not like the first; names the file and, where there is one, the line.
        """
        path = self._path
        separator = SEPARATORS.get(path.suffix.lower())
        if separator is None:
            endings = ' or '.join(SEPARATORS)
            raise UserError(f'{self._option} {path} is no table; the name of one ends in {endings}.')
        quoting = csv.QUOTE_NONE if separator == '\t' else csv.QUOTE_MINIMAL
        with failure_as_user_error(f'{path} cannot be read'), path.open('rb') as file:
            text = io.TextIOWrapper(file, encoding='utf-8-sig', newline='')
            try:
                yield from self._read(csv.reader(text, delimiter=separator, quoting=quoting, strict=True))
            except UnicodeDecodeError as error:
                raise UserError(f'{path}, line {_first_undecoded_line(path)}: it is not UTF-8.') from error

    def notes(self) -> list[str]:
        """Sentences about what may surprise a person in the rows read so far."""
        name, messages = self._path.name, []
        if self._multiline_rows.count:
            messages.append(
                f'{name} has {self._multiline_rows.describe("row")} over several lines, by double quotes '
                f'(first: {self._multiline_rows.first})'
            )
        if self._quoted_cells.count:
            messages.append(
                f'{name} has {self._quoted_cells.describe("cell")} in double quotes, which are read as '
                f'a part of them, as in every TSV (first: {self._quoted_cells.first})'
            )
        return messages

    def _read(self, reader):
        """Yields the rows for `__iter__`."""
        path, places = self._path, None
        has_quotes = reader.dialect.quoting != csv.QUOTE_NONE
        for first, last, row in _numbered_rows(path, reader):
            if not row:
                continue
            if '\0' in ''.join(row):
                raise UserError(
                    f'{path}, {_format_lines(first, last)}: a byte of 0 in it; it is no text in UTF-8.'
                )
            if places is None:
                self.header = [name.strip() for name in row]
                places = _column_indices(f'{path}, {_format_lines(first, last)}', self.header, self._columns)
                continue
            if len(row) != len(self.header):
                raise UserError(
                    f'{path}, {_format_lines(first, last)}: a row of {len(row)} cells, but there are '
                    f'{len(self.header)} columns.'
                )
            cells = [row[i].strip() for i in places]
            if last > first:
                self._multiline_rows.add(_format_lines(first, last))
            for cell in () if has_quotes else cells:
                if len(cell) > 1 and cell[0] == cell[-1] == '"':
                    self._quoted_cells.add(_format_lines(first, last))
            yield Row(first, last, cells)
        if places is None:
            raise UserError(f'{path} is empty; its first line names its columns.')


class _Occurrences:
    """How often something occurred, and where first."""

    def __init__(self):
        self.count, self.first = 0, ''

    def add(self, place):
        self.first = self.first or place
        self.count += 1

    def describe(self, what):
        return f'{self.count} {what}{"s" if self.count > 1 else ""}'


def parse_number(text: str) -> float | None:
    """Parses a finite number in the digits 0 to 9, such as 4, -0.5 or 1e3; None for any other text.

    Python itself accepts more: 4_5 for 45, digits of other scripts, inf and nan.
    """
    if not NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _numbered_rows(path, reader):
    """Yields (first line of a row, last line, cells); lines count from 1."""
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            place = _format_lines(first, reader.line_num)
            raise UserError(f'{path}, {place}: {error}.') from error
        if row is None:
            return
        yield first, reader.line_num, row


def _format_lines(first, last):
    return f'line {last}' if first >= last else f'lines {first} to {last}'


def _column_indices(where, header, columns):
    """Finds the index of each of some columns in the header, which is at `where`."""
    for option, name in columns:
        if header.count(name) == 1:
            continue
        if name in header:
            raise UserError(f'{where}: the column {name!r} is there twice; rename all but one.')
        nearest = difflib.get_close_matches(name.lower(), [other.lower() for other in header], n=1)
        matches = [other for other in header if nearest and other.lower() == nearest[0]]
        hint = f' Did you mean {matches[0]}?' if matches else ''
        raise UserError(
            f'{option} is {name!r}, but {where}, has no such column.{hint} It has {", ".join(header):.300}.'
        )
    return [header.index(name) for _, name in columns]


def _first_undecoded_line(path):
    """The number of the first line that is not UTF-8."""
    with path.open('rb') as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
