"""What `python -m td_jax.cka` has left in a folder, as tables whose cells are coloured."""

from typing import NamedTuple

from etils import epath

from td_jax import statistics
from td_jax.analysis import cka
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reporting.markup import element, table
from td_jax.reporting.runs import is_number

# Classes that a map has rows for.
MOST_CLASSES = 40


class Comparison(NamedTuple):
    """The content of a file of td_jax.cka, its numbers checked."""

    estimator: str
    data: str
    by_class: dict[str, dict[str, dict[str, float]]]  # {run: {class: {pair: CKA}}}
    by_seed: dict[str, dict[str, dict[str, float]]]  # {run: {seed: {pair: CKA}}}


def read(folder: epath.Path) -> Comparison:
    """Reads the file of a folder that has one.

    Raises:
      UserError: it is damaged.
    """
    path = folder / cka.NUMBERS
    content = workdir.read_json(path) or {}
    by_class, by_seed = content.get('cka'), content.get('by_seed')
    if not _is_of_runs(by_class) or not _is_of_runs(by_seed) or by_class.keys() != by_seed.keys():
        raise UserError(f'{path} is damaged or not of td_jax.cka; run td_jax.cka again, or delete it.')
    data = f'{content.get("dataset")} ({content.get("split")})'
    return Comparison(str(content.get('estimator')), data, by_class, by_seed)


def _is_of_runs(found):
    """Whether it is {run: {row: {pair: number}}}, with the same pairs in all rows of a run, none empty."""
    if not isinstance(found, dict) or not found:
        return False
    for rows in found.values():
        if not isinstance(rows, dict) or not rows:
            return False
        pairs = next(iter(rows.values()))
        for row in rows.values():
            if not isinstance(row, dict) or not row or row.keys() != pairs.keys():
                return False
            if not all(is_number(value) and -1 <= value <= 1 for value in row.values()):
                return False
    return True


def means(found: Comparison):
    """A table of the means over classes: a row a pair, a column a run."""
    pairs = dict.fromkeys(pair for rows in found.by_seed.values() for row in rows.values() for pair in row)
    rows = []
    for pair in pairs:
        cells = []
        for seeds in found.by_seed.values():
            values = [row[pair] for row in seeds.values() if pair in row]
            cells.append(_estimated(values) if values else '')
        rows.append([pair.replace(',', ', '), *cells])
    return table(
        'Means over classes, ± the half-width of the 95% t interval over seeds',
        ['pair', *found.by_seed],
        rows,
    )


def _estimated(values):
    found = statistics.of(values)
    spread = '' if found.half_width is None else f' ± {found.half_width:.3f}'
    return f'{found.mean:.3f}{spread}'


def of_run(name: str, rows: dict):
    """The map of a run: one row per class, one column per pair, dark where little is in common.

    Args:
      name: of the run.
      rows: {class: {pair: CKA}}.
    """
    every = -(-len(rows) // MOST_CLASSES)
    shown = list(rows)[::every]
    lowest = min(0.0, *(value for row in rows.values() for value in row.values()))
    cells = [[label, *(_cell(value, lowest) for value in rows[label].values())] for label in shown]
    left_out = f'; one of {every} classes of {len(rows)}' if every > 1 else ''
    pairs = [pair.replace(',', ' ') for pair in next(iter(rows.values()))]
    return table(
        f'{name}: student and teacher by class, mean over seeds{left_out}', ['class', *pairs], cells, 'map'
    )


def _cell(value, lowest):
    # Only those who draw need it.
    from matplotlib import colormaps, colors

    # Viridis becomes lighter all the way.
    colour = colormaps['viridis']((value - lowest) / (1 - lowest))
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour[:3]]
    # The luminance on which black and white are read equally well, by WCAG 2.
    is_light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179
    ink = '#000000' if is_light else '#ffffff'
    return element('td', f'{value:.2f}', style=f'background: {colors.to_hex(colour)}; color: {ink}')
