"""A figure of a table: the difference of each row to its baseline, with its intervals."""

import math
import pathlib
import re
from typing import NamedTuple

from etils import epath

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import comparison, tables

# Panels side by side.
ACROSS = 4
# If a row reaches this many times as far as the median one, the axis becomes logarithmic further out.
FAR = 4


class Point(NamedTuple):
    """A cell's paired difference to the baseline of its column."""

    column: str  # its genre, if it has one
    mean: float
    half_width: float  # of the 95% t interval over seeds
    bootstrap: statistics.Interval | None


def points(table: tables.Table, results: dict) -> dict[str, list[Point]]:
    """{row: its points} for the rows and columns with paired seeds.

    Args:
      table: its definition.
      results: {column: {row: result or None}}.
    """
    points_by_row = {}
    for column, rows in results.items():
        for row, difference in comparison.compare_column(table, rows).items():
            if difference.paired is not None and difference.paired.half_width is not None:
                genre = table.columns[column].get('dataset.genre', column)
                bounds = difference.bootstrap and difference.bootstrap.bounds()
                point = Point(genre, difference.mean, difference.paired.half_width, bounds)
                points_by_row.setdefault(row, []).append(point)
    return points_by_row


def linear_limit(points_by_row: dict[str, list[Point]]) -> float | None:
    """The distance from 0 up to which the shared axis is linear; None if it is linear everywhere.

    Args:
      found: by `points`.

    Returns:
      The largest reach of a row that is at most FAR times the median reach, rounded up to one digit; None if
      no row reaches further.
    """
    # The baseline under another name has a reach of 0.
    reach = [end for end in map(_reach, points_by_row.values()) if end]
    limit = FAR * sorted(reach)[len(reach) // 2] if reach else 0.0
    if max(reach, default=0.0) <= limit:
        return None
    furthest = max(end for end in reach if end <= limit)
    digit = 10.0 ** math.floor(math.log10(furthest))
    return math.ceil(furthest / digit) * digit


def _reach(row):
    """The largest distance from 0 of the intervals of some points."""
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
    """Refuses arguments of `draw_all` that cannot be drawn, before anything is computed.

    Raises:
      UserError: a derived table, or a folder that is missing.
    """
    for name in names:
        if isinstance(tables.TABLES[name], tables.Derived):
            raise UserError(f'table {name} is made of others and has no figure; leave it or --figures out.')
    workdir.check_target('--figures', folder / _file_name(names[0], baseline))


def draw_all(names, results: dict, folder: epath.Path, baseline: str | None):
    """Draws each of some tables into a file `table_NAME.png`, or `table_NAME_vs_ROW.png`.

    Args:
      names: of the tables.
      results: by `cells.make`.
      folder: where the files go.
      baseline: the row to compare the others with; None for each table's own.

    Raises:
      UserError: raised by `draw`, or a file cannot be written.
    """
    for name in names:
        with workdir.atomic_write(folder / _file_name(name, baseline)) as path:
            draw(name, tables.with_baseline(name, baseline), results[name], path)


def _file_name(name, baseline):
    row = re.sub('[^a-z0-9]+', '_', baseline.lower()) if baseline else ''
    return f'table_{name}{f"_vs_{row}" if row else ""}.png'


def draw(name: str, table: tables.Table, results: dict, path: pathlib.Path):
    """Draws differences with both intervals: a panel per row, or per column if the table sweeps a key.

    Args:
      name: of the table.
      table: its definition.
      results: {column: {row: result or None}}.
      path: a PNG file, made or replaced.

    Raises:
      UserError: no row has seeds that are paired with those of the baseline.
    """
    points_by_row = points(table, results)
    if not points_by_row:
        raise UserError(
            f'table {name} has no row with the seeds of {table.baseline}: there is nothing to draw.'
        )
    # Imported here, because only figures need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout='constrained')
    FigureCanvasAgg(figure)
    axis_note = (_draw_sweep if table.swept else _draw_rows)(figure, table, points_by_row)
    metric = next(rows[table.baseline]['metric'] for rows in results.values() if rows.get(table.baseline))
    figure.supylabel(f'difference in {metric} to {table.baseline}', fontsize=8)
    figure.suptitle(f'95% intervals: thin lines over seeds; broad bands by bootstrap{axis_note}', fontsize=8)
    figure.savefig(path, dpi=110, format='png')


def _draw_rows(figure, table, points_by_row):
    """Draws a panel for each row, columns from left to right; returns a note on the axis for the title."""
    columns = list(dict.fromkeys(point.column for row in points_by_row.values() for point in row))
    num_columns = min(ACROSS, len(points_by_row))
    num_rows = -(-len(points_by_row) // num_columns)
    figure.set_size_inches(1.2 + num_columns * (1.1 + 0.35 * len(columns)), 1.0 + 2.6 * num_rows)
    all_axes = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    axis_note = _scale_axis(all_axes[0, 0], points_by_row)
    for axes, (row, row_points) in zip(all_axes.flat, points_by_row.items(), strict=False):
        places = [columns.index(point.column) for point in row_points]
        means, half_widths = [point.mean for point in row_points], [point.half_width for point in row_points]
        for place, point in zip(places, row_points, strict=True):
            if point.bootstrap:
                axes.vlines(place, *point.bootstrap, color='tab:orange', alpha=0.45, linewidth=5)
        axes.errorbar(places, means, half_widths, fmt='o', markersize=4, capsize=3, color='tab:blue')
        axes.axhline(0, color='black', linewidth=0.8)
        axes.set_title(row, fontsize=8)
        axes.set_xlim(-0.6, len(columns) - 0.4)
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha='right', fontsize=7)
        axes.tick_params(axis='y', labelsize=7)
    for place in range(len(points_by_row), all_axes.size):
        all_axes.flat[place].set_axis_off()
        # The panel above is the last one in its column, and needs the labels.
        all_axes.flat[place - num_columns].tick_params(axis='x', labelbottom=True)
    return axis_note


def _scale_axis(axes, points_by_row):
    """Scales the vertical axis that all panels share; returns a note on it for the title."""
    linear = linear_limit(points_by_row)
    if linear is None:
        return ''
    # The default ticks leave only 0 in the linear part.
    decades = math.ceil(math.log10(max(map(_reach, points_by_row.values())) / linear))
    ticks = [linear / 2, *(linear * 10**i for i in range(decades + 1))]
    ticks = [*(-tick for tick in reversed(ticks)), 0, *ticks]
    axes.set_yscale('symlog', linthresh=linear, linscale=2)
    axes.set_yticks(ticks, [f'{tick:.3g}' for tick in ticks])
    return f'; linear to ±{linear:.3g}, logarithmic beyond'


def _draw_sweep(figure, table, points_by_row):
    """Draws a panel for each column, with a line for each value of the keys that are not swept."""
    points_by_row = {
        row: row_points for row, row_points in points_by_row.items() if table.swept in table.rows[row]
    }
    columns = list(dict.fromkeys(point.column for row in points_by_row.values() for point in row))
    figure.set_size_inches(1.2 + 2.8 * len(columns), 3.6)
    all_axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    lines = {}
    for row, row_points in points_by_row.items():
        others = {key: value for key, value in table.rows[row].items() if key not in ('method', table.swept)}
        label = ', '.join(f'{key} {value}' for key, value in others.items())
        for point in row_points:
            lines.setdefault((point.column, label), []).append((table.rows[row][table.swept], point))
    labels = list(dict.fromkeys(label for _, label in lines))
    for axes, column in zip(all_axes, columns, strict=True):
        axes.set_xscale('log')
        axes.axhline(0, color='black', linewidth=0.8)
        for number, label in enumerate(labels):
            # Shifted, so that lines do not cover each other.
            shift = 1.12 ** (number - (len(labels) - 1) / 2)
            color = f'C{number}'
            line_points = lines.get((column, label), [])
            for value, point in line_points:
                if point.bootstrap:
                    axes.vlines(value * shift, *point.bootstrap, color=color, alpha=0.3, linewidth=5)
            axes.errorbar(
                [value * shift for value, _ in line_points],
                [point.mean for _, point in line_points],
                [point.half_width for _, point in line_points],
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
    return _scale_axis(all_axes[0], points_by_row)
