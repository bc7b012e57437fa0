"""Tables as Markdown: our numbers, what they differ from a baseline, and the paper's beside them."""

import numpy as np

from td_jax import statistics
from td_jax.reproduction import cells, tables

# What stands above a table.
INTERVALS = (
    '± is half of the 95% t interval over the n seeds, of a difference over the differences of the same '
    'seeds; no interval is corrected for their number.'
)


def make(names, results: dict, genres, datasets) -> str:
    """Some tables as Markdown, one after the other.

    Args:
      names: of the tables.
      results: as `cells.make` gives them.
      genres, datasets: the columns to keep.
    """
    texts = []
    for name in names:
        table = tables.TABLES[name]
        if isinstance(table, tables.Table):
            columns = tables.selected_columns(table, genres, datasets)
            shown = {column: results[name][column] for column in columns}
            texts.append(of_runs(name, table, with_teacher(table, shown)))
        else:
            texts.append(of_others(name, table, results))
    return '\n'.join(texts)


def with_teacher(table: tables.Table, results: dict) -> dict:
    """{column: {row: result or None}}, the teacher's row filled with what another row says of it."""
    filled = {}
    for column, rows in results.items():
        # Not that of a row with a teacher of its own.
        usual = [row for row in rows if not any(key.startswith('teacher.') for key in _changed(table, row))]
        scores = [rows[row]['teacher'] for row in usual if rows[row] and rows[row]['teacher'] is not None]
        said = {'mean': scores[0], 'stderr': None} if scores else None
        filled[column] = {row: said if table.rows[row] == tables.TEACHER else rows[row] for row in table.rows}
    return filled


def _changed(table, row):
    """The keys that a row sets."""
    return (*(table.rows[row] if table.rows[row] != tables.TEACHER else ()), *table.copied.get(row, ()))


def number(mean, spread=None, signed=False, digits=4) -> str:
    """A mean ± its spread, if it has one."""
    text = f'{mean:+.{digits}f}' if signed else f'{mean:.{digits}f}'
    return text if spread is None else f'{text} ± {spread:.{digits}f}'


def difference(result: dict, baseline: dict) -> str:
    """A result less a baseline's, with the interval of the paired difference if their seeds are the same."""
    if result.get('seeds') != baseline['seeds']:
        return f'{number(result["mean"] - baseline["mean"], signed=True)}, not paired'
    found = statistics.paired_difference(result['values'], baseline['values'])
    return number(found.mean, found.half_width, signed=True)


def of_runs(name: str, table: tables.Table, results: dict) -> str:
    """A table as Markdown, one block a column, the paper's numbers beside ours.

    Args:
      name: of the table.
      table: what it is made of.
      results: {column: {row: result or None}}.
    """
    paper = tables.paper(name)
    lines = [f'## {"Table " + name if paper else name}: {table.title}', '']
    for column, rows in results.items():
        change = ' '.join(str(value) for value in table.columns[column].values())
        shown = [result for result in rows.values() if result and 'values' in result]
        lines += [f'### {column} {f"({change})" if change else ""}'.rstrip(), '']
        if shown:
            lines += [f'{shown[0]["split"]} {shown[0]["metric"]}. {INTERVALS}', '']
        head = [
            'method',
            'n',
            'ours, mean ± 95%',
            f'ours, paired difference to {table.baseline}, mean ± 95%',
        ]
        head += ['paper, mean ± standard error', 'paper, difference'] if paper else []
        lines += [_row(head), _row(['---'] * len(head))]
        baseline = rows[table.baseline]
        for row in table.rows:
            result = rows[row]
            parts = [row, '', 'missing', '']
            if result:
                ours = statistics.of(result.get('values', [result['mean']]))
                parts[1:3] = f'{ours.count}', number(ours.mean, ours.half_width)
                if baseline and row != table.baseline:
                    parts[3] = difference(result, baseline)
            if paper:
                mean, stderr = _paper_cell(paper, column, row)
                base, _ = _paper_cell(paper, column, table.baseline)
                parts += [number(mean, stderr), '' if row == table.baseline else f'{mean - base:+.4f}']
            lines.append(_row(parts))
        lines.append('')
    return '\n'.join(lines)


def of_others(name: str, table: tables.Derived, results: dict) -> str:
    """A table of relative improvements as Markdown, computed from our own cells.

    Args:
      name: of the table.
      table: what it is made of.
      results: {table: {column: {row: result or None}}} of the tables it comes from.
    """
    paper = tables.paper(name)
    lines = [
        f'## Table {name}: {table.title}, percent',
        '',
        'Ours is computed from our own cells: the mean over the columns of the relative improvement, of an '
        f'RMSE its reduction; n seeds in brackets. {INTERVALS}',
        '',
        _row(['method', *(f'{group}, {who}' for group in paper['columns'] for who in ('ours', 'paper'))]),
        _row(['---'] * (1 + 2 * len(paper['columns']))),
    ]
    for row in table.rows:
        gains = {name: improvements(group, table.rows[row], results) for name, group in table.groups.items()}
        # What the paper averages over is all of its columns.
        gains['Avg.'] = _averaged(list(gains.values()))
        parts = [row]
        for column, (value, _) in zip(paper['columns'], paper['rows'][row], strict=True):
            parts += [_percent(gains[column]), f'{value:+.2f}']
        lines.append(_row(parts))
    return '\n'.join([*lines, ''])


def improvements(group: tables.Group, rows: dict, results: dict):
    """Relative improvement of a row over a baseline in percent of the baseline's mean, mean over the columns.

    Args:
      group: the columns.
      rows: {table: the row there}.
      results: {table: {column: {row: result or None}}}.

    Returns:
      {seed: improvement}, or, where the seeds are not the same in all of them, {None: its mean}; None where a
      cell is missing
    """
    baseline_table, baseline_row = group.baseline
    gains = []
    for column in group.columns:
        result = results.get(group.source, {}).get(column, {}).get(rows[group.source])
        baseline = results.get(baseline_table, {}).get(column, {}).get(baseline_row)
        if not result or not baseline:
            return None
        scale = 100 * group.sign / baseline['mean']
        if result['seeds'] == baseline['seeds']:
            differences = np.subtract(result['values'], baseline['values'])
            gains.append(dict(zip(result['seeds'], scale * differences, strict=True)))
        else:
            gains.append({None: scale * (result['mean'] - baseline['mean'])})
    return _averaged(gains)


def _averaged(gains):
    """The mean of {seed: value}, seed by seed where all have the same; None where one of them is None."""
    if any(gain is None for gain in gains):
        return None
    if any(gain.keys() != gains[0].keys() for gain in gains):
        gains = [{None: np.mean(list(gain.values()))} for gain in gains]
    return {seed: np.mean([gain[seed] for gain in gains]) for seed in gains[0]}


def _percent(gain):
    if gain is None:
        return 'missing'
    found = statistics.of(list(gain.values()))
    count = '' if None in gain else f' ({found.count})'
    return number(found.mean, found.half_width, signed=True, digits=2) + count


def plan(planned: list[cells.Planned], device_tflops: float) -> str:
    """What would be run, as Markdown: operations and time of each run on a device of a given speed.

    Args:
      planned: as `cells.plan` gives it.
      device_tflops: 1e12 operations a second that the device reaches.
    """

    def hours(operations):
        return operations / device_tflops / 1e12 / 3600

    lines = [
        _row(['run', 'state', 'operations a step', 'steps', 'seeds', 'operations', 'hours']),
        _row(['---'] * 7),
    ]
    for run in planned:
        name, column, row = run.cell
        lines.append(
            _row(
                [
                    f'Table {name}, {column}, {row}',
                    'there' if run.is_there else 'missing',
                    f'{run.of_step:.3g}',
                    f'{run.steps}',
                    f'{run.seeds}',
                    f'{run.operations():.3g}',
                    f'{hours(run.operations()):.3g}',
                ]
            )
        )
    total = sum(run.operations() for run in planned if not run.is_there)
    lines += [
        '',
        f'Missing in all: {total:.3g} operations, {hours(total):.3g} hours at {device_tflops:g} TFLOP/s.',
    ]
    return '\n'.join(lines)


def _row(cells):
    return f'| {" | ".join(cells)} |'


def _paper_cell(paper, column, row):
    return paper['rows'][row][paper['columns'].index(column)]
