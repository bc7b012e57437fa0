"""A figure of a table: what each row differs from its baseline by, with its intervals."""

import math
import pathlib
import re
from typing import NamedTuple

from etils import epath

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import comparison, tables

# Panels in a row.
ACROSS = 4
# A row that reaches more than this many times as far as the middle one leaves nothing of it to see.
FAR = 4


class Point(NamedTuple):
    """A cell's paired difference to the baseline of its column."""

    column: str  # its genre, if it has one
    mean: float
    half_width: float  # of the 95% t interval over seeds
    bootstrap: statistics.Interval | None


def points(table: tables.Table, results: dict) -> dict[str, list[Point]]:
    """{row: its points}, of the rows and columns that have paired seeds.

    Args:
      table: what it is made of.
      results: {column: {row: result or None}}.
    """
    found = {}
    for column, rows in results.items():
        pairs = {
            row: (rows[row], rows[table.baseline_of(row)])
            for row in table.rows
            if row != table.baseline and rows.get(table.baseline_of(row)) and rows.get(row)
        }
        for row, compared in comparison.compare_all(pairs).items():
            if compared.paired is not None and compared.paired.half_width is not None:
                genre = table.columns[column].get('dataset.genre', column)
                bounds = compared.bootstrap and compared.bootstrap.bounds()
                point = Point(genre, compared.mean, compared.paired.half_width, bounds)
                found.setdefault(row, []).append(point)
    return found


def linear_to(found: dict[str, list[Point]]) -> float | None:
    """How far from 0 an axis that all rows share has to be linear, or None: all of it.

    Args:
      found: by `points`.

    Returns:
      The furthest that a row reaches without reaching more than FAR times as far as the middle one, rounded
      up to one digit; None where no row reaches further.
    """
    # A row that is the baseline under another name reaches nowhere.
    reach = [end for end in map(_reach, found.values()) if end]
    limit = FAR * sorted(reach)[len(reach) // 2] if reach else 0.0
    if max(reach, default=0.0) <= limit:
        return None
    furthest = max(end for end in reach if end <= limit)
    digit = 10.0 ** math.floor(math.log10(furthest))
    return math.ceil(furthest / digit) * digit


def _reach(row):
    """How far from 0 the intervals of some points end."""
    return max(
        abs(end)
        for point in row
        for end in (
            point.mean - point.half_width,
            point.mean + point.half_width,
            *(point.bootstrap or ()),
        )
    )


def check(names, folder: epath.Path, baseline: str | None):
    """Refuses what cannot be drawn, as far as can be told before; of `draw_all`'s arguments.

    Raises:
      UserError: a table that is made of others, or a folder that is missing.
    """
    for name in names:
        if isinstance(tables.TABLES[name], tables.Derived):
            raise UserError(f'table {name} is made of others and has no figure; leave it or --figures out.')
    workdir.check_target('--figures', folder / _file(names[0], baseline))


def draw_all(names, results: dict, folder: epath.Path, baseline: str | None):
    """Draws some tables, each into a file `table_NAME.png`, or `table_NAME_vs_ROW.png`.

    Args:
      names: of the tables.
      results: as `cells.make` gives them.
      folder: where the files go.
      baseline: the row that the others are compared with, or None: each table's own.

    Raises:
      UserError: what `draw` raises, or a file cannot be written.
    """
    for name in names:
        with workdir.whole(folder / _file(name, baseline)) as path:
            draw(name, tables.beside(name, baseline), results[name], path)


def _file(name, baseline):
    row = re.sub('[^a-z0-9]+', '_', baseline.lower()) if baseline else ''
    return f'table_{name}{f"_vs_{row}" if row else ""}.png'


def draw(name: str, table: tables.Table, results: dict, path: pathlib.Path):
    """Differences with both intervals: a panel for each row, or for each column if the table sweeps a key.

    Args:
      name: of the table.
      table: what it is made of.
      results: {column: {row: result or None}}.
      path: a PNG file, made or replaced.

    Raises:
      UserError: no row has seeds that are paired with those of the baseline.
    """
    found = points(table, results)
    if not found:
        raise UserError(
            f'table {name} has no row with the seeds of {table.baseline}: there is nothing to draw.'
        )
    # Only those who draw need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout='constrained')
    FigureCanvasAgg(figure)
    said = (_draw_sweep if table.swept else _draw_rows)(figure, table, found)
    metric = next(rows[table.baseline]['metric'] for rows in results.values() if rows.get(table.baseline))
    figure.supylabel(f'difference in {metric} to {table.baseline}', fontsize=8)
    figure.suptitle(f'95% intervals: thin lines over seeds; broad bands by bootstrap{said}', fontsize=8)
    figure.savefig(path, dpi=110, format='png')


def _draw_rows(figure, table, found):
    """A panel for each row, columns from left to right; -> what the title says of the axis."""
    columns = list(dict.fromkeys(point.column for row in found.values() for point in row))
    across = min(ACROSS, len(found))
    down = -(-len(found) // across)
    figure.set_size_inches(1.2 + across * (1.1 + 0.35 * len(columns)), 1.0 + 2.6 * down)
    all_axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    said = _scale(all_axes[0, 0], found)
    for axes, (row, of_row) in zip(all_axes.flat, found.items(), strict=False):
        places = [columns.index(point.column) for point in of_row]
        means, half_widths = [point.mean for point in of_row], [point.half_width for point in of_row]
        for place, point in zip(places, of_row, strict=True):
            if point.bootstrap:
                axes.vlines(place, *point.bootstrap, color='tab:orange', alpha=0.45, linewidth=5)
        axes.errorbar(places, means, half_widths, fmt='o', markersize=4, capsize=3, color='tab:blue')
        axes.axhline(0, color='black', linewidth=0.8)
        axes.set_title(row, fontsize=8)
        axes.set_xlim(-0.6, len(columns) - 0.4)
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha='right', fontsize=7)
        axes.tick_params(axis='y', labelsize=7)
    for place in range(len(found), all_axes.size):
        all_axes.flat[place].set_axis_off()
        # The one above is the last of those that share its columns' names.
        all_axes.flat[place - across].tick_params(axis='x', labelbottom=True)
    return said


def _scale(axes, found):
    """Scales the vertical axis that all panels share; -> what the title says of it."""
    linear = linear_to(found)
    if linear is None:
        return ''
    # The axis' own ticks would leave the linear part with none but 0.
    decades = math.ceil(math.log10(max(map(_reach, found.values())) / linear))
    ticks = [linear / 2, *(linear * 10**i for i in range(decades + 1))]
    ticks = [*(-tick for tick in reversed(ticks)), 0, *ticks]
    axes.set_yscale('symlog', linthresh=linear, linscale=2)
    axes.set_yticks(ticks, [f'{tick:.3g}' for tick in ticks])
    return f'; linear to ±{linear:.3g}, logarithmic beyond'


def _draw_sweep(figure, table, found):
    """A panel for each column, a line for each change of the keys that are not on the horizontal axis."""
    found = {row: of_row for row, of_row in found.items() if table.swept in table.rows[row]}
    columns = list(dict.fromkeys(point.column for row in found.values() for point in row))
    figure.set_size_inches(1.2 + 2.8 * len(columns), 3.6)
    all_axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    lines = {}
    for row, of_row in found.items():
        others = {key: value for key, value in table.rows[row].items() if key not in ('method', table.swept)}
        label = ', '.join(f'{key} {value}' for key, value in others.items())
        for point in of_row:
            lines.setdefault((point.column, label), []).append((table.rows[row][table.swept], point))
    labels = list(dict.fromkeys(label for _, label in lines))
    for axes, column in zip(all_axes, columns, strict=True):
        axes.set_xscale('log')
        axes.axhline(0, color='black', linewidth=0.8)
        for number, label in enumerate(labels):
            # Next to each other, not one on top of the other.
            shift = 1.12 ** (number - (len(labels) - 1) / 2)
            color = f'C{number}'
            of_line = lines.get((column, label), [])
            for value, point in of_line:
                if point.bootstrap:
                    axes.vlines(value * shift, *point.bootstrap, color=color, alpha=0.3, linewidth=5)
            axes.errorbar(
                [value * shift for value, _ in of_line],
                [point.mean for _, point in of_line],
                [point.half_width for _, point in of_line],
                fmt='o-',
                markersize=3,
                linewidth=0.8,
                capsize=2,
                color=color,
                label=label,
            )
        axes.set_title(column, fontsize=8)
        axes.tick_params(labelsize=7)
    all_axes[0].legend(fontsize=7)
    figure.supxlabel(table.swept, fontsize=8)
    return _scale(all_axes[0], found)
