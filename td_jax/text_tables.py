"""Tables as text: in Markdown, and with aligned columns."""

from collections.abc import Collection, Iterable, Sequence


def markdown(columns: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """The lines of a Markdown table.

    Args:
      columns: (header, the cells of all rows), of each.
    """
    heads, cells = zip(*columns, strict=True)
    rows = [heads, ['---'] * len(heads), *zip(*cells, strict=True)]
    return [f'| {" | ".join(row)} |' for row in rows]


def align(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """The lines of a table whose columns are aligned by spaces, to the left or, with these numbers, right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        '  '.join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
