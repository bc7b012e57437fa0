"""Renders the results of `python -m td_jax.cka` as tables with coloured cells."""

from typing import NamedTuple

from etils import epath

from td_jax import statistics
from td_jax.analysis import cka
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reporting.markup import element, table
from td_jax.reporting.runs import is_number

# The most rows of a map.
MOST_CLASSES = 40


class Comparison(NamedTuple):
    """The checked content of a file of td_jax.cka."""

    estimator: str
    data: str
    by_class: dict[str, dict[str, dict[str, float]]]  # {run: {class: {pair: CKA}}}
    by_seed: dict[str, dict[str, dict[str, float]]]  # {run: {seed: {pair: CKA}}}


def read(folder: epath.Path) -> Comparison:
    """Reads the file of td_jax.cka in a folder.

    Raises:
      UserError: it is damaged.
    """
    path = folder / cka.NUMBERS
    content = workdir.read_json(path) or {}
    by_class, by_seed = content.get('cka'), content.get('by_seed')
    if not _is_valid(by_class) or not _is_valid(by_seed) or by_class.keys() != by_seed.keys():
        raise UserError(f'{path} is damaged or not of td_jax.cka; run td_jax.cka again, or delete it.')
    data = f'{content.get("dataset")} ({content.get("split")})'
    return Comparison(str(content.get('estimator')), data, by_class, by_seed)


def _is_valid(content):
    """Whether it is {run: {row: {pair: number}}}, not empty, with the same pairs in all rows of a run."""
    if not isinstance(content, dict) or not content:
        return False
    for rows in content.values():
        if not isinstance(rows, dict) or not rows:
            return False
        pairs = next(iter(rows.values()))
        for row in rows.values():
            if not isinstance(row, dict) or not row or row.keys() != pairs.keys():
                return False
            if not all(is_number(value) and -1 <= value <= 1 for value in row.values()):
                return False
    return True


def mean_table(comparison: Comparison):
    """Renders the means over classes: one row per pair, one column per run."""
    pairs = dict.fromkeys(
        pair for rows in comparison.by_seed.values() for row in rows.values() for pair in row
    )
    rows = []
    for pair in pairs:
        cells = []
        for seeds in comparison.by_seed.values():
            values = [row[pair] for row in seeds.values() if pair in row]
            cells.append(_format_mean(values) if values else '')
        rows.append([pair.replace(',', ', '), *cells])
    return table(
        'Means over classes, ± the half-width of the 95% t interval over seeds',
        ['pair', *comparison.by_seed],
        rows,
    )


def _format_mean(values):
    estimate = statistics.estimate_mean(values)
    return statistics.format_number(estimate.mean, estimate.half_width, digits=3)


def run_map(name: str, rows: dict):
    """Renders the map of a run: one row per class, one column per pair; dark cells have a low CKA.

    Args:
      name: of the run.
      rows: {class: {pair: CKA}}.
    """
    stride = -(-len(rows) // MOST_CLASSES)
    labels = list(rows)[::stride]
    lowest = min(0.0, *(value for row in rows.values() for value in row.values()))
    cells = [[label, *(_color_cell(value, lowest) for value in rows[label].values())] for label in labels]
    left_out = f'; one of {stride} classes of {len(rows)}' if stride > 1 else ''
    pairs = [pair.replace(',', ' ') for pair in next(iter(rows.values()))]
    return table(
        f'{name}: student and teacher by class, mean over seeds{left_out}', ['class', *pairs], cells, 'map'
    )


def _color_cell(value, lowest):
    # Imported here, because only maps need it.
    from matplotlib import colormaps, colors

    # The lightness of viridis increases monotonically.
    colour = colormaps['viridis']((value - lowest) / (1 - lowest))
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour[:3]]
    # On this luminance, black and white text have the same contrast by WCAG 2.
    is_light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179
    ink = '#000000' if is_light else '#ffffff'
    return element('td', f'{value:.2f}', style=f'background: {colors.to_hex(colour)}; color: {ink}')
