"""A forest plot of several tables: each method's difference to no distillation, a panel for each setting."""

from typing import NamedTuple

from etils import epath

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import comparison, render, tables
from td_jax.training import evaluation

METRICS = {'rmse': 'RMSE', 'accuracy': 'accuracy'}
# Colours that colour-blind readers can distinguish; all else is gray, with an open marker.
COLORS = {statistics.BETTER: 'tab:blue', statistics.WORSE: 'tab:orange'}
LEGEND = (
    'Difference to {baselines}. Thin lines: 95% t interval over seeds; broad bands: 95% bootstrap interval.\n'
    'Blue: significantly better; orange: significantly worse; gray, open: not significant.'
)
EARLIER = ' (earlier protocol)'


class Panel(NamedTuple):
    """One setting of a forest plot."""

    title: str
    metric: str
    baseline: str
    rows: dict[str, comparison.Comparison]

    def verdict(self, row: str) -> str:
        """The verdict of a row, by statistics.verdict."""
        return self.rows[row].verdict(evaluation.LESS_IS_BETTER[self.metric])


def panels(names, results: dict, baseline: str | None) -> list[Panel]:
    """The settings of some tables, each with the paired differences of its methods.

    The genres of a table are one setting, of which the mean over the genres is shown; every other column is a
    setting of its own. Rows are those of tables.METHODS, or all of a table that has none of them. The title
    says if a cell was measured with an earlier protocol.

    Args:
      names: of the tables.
      results: {table: {column: {row: result or None}}}.
      baseline: the row to compare the others with; None for each table's own.
    """
    panels_of_all = []
    for name in names:
        table = tables.with_baseline(name, baseline)
        for title, columns in _split_settings(table, results[name]).items():
            methods = [row for row in table.rows if row in tables.METHODS] or list(table.rows)
            comparisons = comparison.compare_means(table, columns, methods)
            rows = {
                row: difference
                for row, difference in comparisons.items()
                if difference.paired.half_width is not None
            }
            if rows:
                metric = columns[0][table.baseline]['metric']
                cells = [of_column[row] for of_column in columns for row in (table.baseline, *rows)]
                is_earlier = any(cell.get('protocol', 1) in render.EARLIER for cell in cells)
                # Tables have the paper's name for it.
                is_plain = table.rows[table.baseline] == {'method': 'supervised'}
                baseline_name = 'no distillation' if is_plain else table.baseline
                panels_of_all.append(Panel(title + EARLIER * is_earlier, metric, baseline_name, rows))
    return panels_of_all


def _split_settings(table, results):
    """{title: [{row: result} of its columns]}."""
    finished = {
        column: rows for column, rows in results.items() if comparison.is_run(rows.get(table.baseline))
    }
    genres = {column: table.columns[column].get('dataset.genre') for column in finished}
    settings = {}
    for column, rows in finished.items():
        part = genres[column] or column
        is_whole = len(table.columns) == 1 or (genres[column] and len(finished) > 1)
        title = table.setting if is_whole else ', '.join(filter(None, (table.setting, part)))
        settings.setdefault(title, []).append(rows)
    return settings


def describe(panels_of_all: list[Panel]) -> str:
    """The numbers of a forest plot as text, one line for each difference, for the description of the SVG.

    Args:
      panels_of_all: by `panels`.
    """
    lines = []
    for panel in panels_of_all:
        for row, compared in panel.rows.items():
            bounds = [
                compared.paired.interval(),
                *([compared.bootstrap.bounds()] if compared.bootstrap else []),
            ]
            intervals = '; '.join(f'{low:+.4f} to {high:+.4f}' for low, high in bounds)
            lines.append(f'{panel.title}: {row} {compared.mean:+.4f} ({intervals}) {panel.verdict(row)}')
    return '\n'.join(lines)


def check(names, path: epath.Path):
    """Refuses arguments of `draw` that cannot be drawn, before anything is computed.

    Raises:
      UserError: a derived table, a file of another format, or a folder that is missing.
    """
    for name in names:
        if isinstance(tables.TABLES[name], tables.Derived):
            raise UserError(f'table {name} is made of others and has no figure; leave it or --forest out.')
    if path.suffix != '.svg':
        raise UserError(f'--forest {path} is not the name of an SVG; let it end in .svg.')
    workdir.check_target('--forest', path)


def draw(names, results: dict, path: epath.Path, baseline: str | None):
    """Draws `panels` as SVG; the same numbers give the same file.

    Args:
      names, results, baseline: as for `panels`.
      path: the file, made or replaced.

    Raises:
      UserError: no row has the seeds of its baseline, or the file cannot be written.
    """
    panels_of_all = panels(names, results, baseline)
    if not panels_of_all:
        raise UserError(
            f'--tables={",".join(names)}: no row has the seeds of its baseline, so there is nothing to draw.'
        )
    # Imported here, because only figures need it.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(layout='constrained')
    FigureCanvasSVG(figure)
    num_columns = min(2, len(panels_of_all))
    num_rows = -(-len(panels_of_all) // num_columns)
    most = max(len(panel.rows) for panel in panels_of_all)
    figure.set_size_inches(4.4 * num_columns, 0.4 + num_rows * (0.8 + 0.2 * most))
    all_axes = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for axes, panel in zip(all_axes, panels_of_all, strict=False):
        _draw_panel(axes, panel)
    for axes in all_axes[len(panels_of_all) :]:
        axes.set_axis_off()
    baselines = ' or '.join(dict.fromkeys(panel.baseline for panel in panels_of_all))
    figure.suptitle(LEGEND.format(baselines=baselines), fontsize=8)
    about = {'Date': None, 'Description': describe(panels_of_all)}
    with matplotlib.rc_context({'svg.hashsalt': 'td_jax'}), workdir.atomic_write(path) as file:
        figure.savefig(file, format='svg', metadata=about)


def _draw_panel(axes, panel):
    for place, (row, compared) in enumerate(panel.rows.items()):
        color = COLORS.get(panel.verdict(row), 'tab:gray')
        if compared.bootstrap:
            axes.hlines(place, *compared.bootstrap.bounds(), color=color, alpha=0.35, linewidth=6)
        axes.errorbar(
            compared.mean,
            place,
            xerr=compared.paired.half_width,
            fmt='o',
            color=color,
            markerfacecolor=color if color in COLORS.values() else 'white',
            markersize=4.5,
            capsize=3,
        )
    axes.axvline(0, color='black', linewidth=0.8)
    axes.set_yticks(range(len(panel.rows)), panel.rows, fontsize=8)
    axes.set_ylim(len(panel.rows) - 0.4, -0.6)
    axes.tick_params(axis='x', labelsize=7)
    side = 'left' if evaluation.LESS_IS_BETTER[panel.metric] else 'right'
    axes.set_xlabel(f'difference in {METRICS[panel.metric]} ({side} is better)', fontsize=8)
    axes.set_title(panel.title, fontsize=9)
