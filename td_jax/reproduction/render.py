"""Tables as Markdown: our numbers, what they differ from a baseline, and the paper's beside them."""

import numpy as np

from td_jax.reproduction import cells, tables
from td_jax.training import evaluation


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
        scores = [result['teacher'] for result in rows.values() if result and result['teacher'] is not None]
        said = {'mean': scores[0], 'stderr': None} if scores else None
        filled[column] = {row: said if table.rows[row] == tables.TEACHER else rows[row] for row in table.rows}
    return filled


def paired_difference(result: dict, baseline: dict):
    """Mean and standard error of the seeds' differences to the same seeds of a baseline."""
    if result.get('seeds') != baseline['seeds']:
        return result['mean'] - baseline['mean'], None
    return evaluation.mean_and_stderr(np.subtract(result['values'], baseline['values']))


def number(mean, stderr, signed=False) -> str:
    """A mean with its standard error, if it has one."""
    text = f'{mean:+.4f}' if signed else f'{mean:.4f}'
    return text if stderr is None else f'{text} ± {stderr:.4f}'


def of_runs(name: str, table: tables.Table, results: dict) -> str:
    """A table as Markdown, one block a column, the paper's numbers beside ours."""
    paper = tables.paper(name)
    lines = [f'## {"Table " + name if paper else name}: {table.title}', '']
    for column, rows in results.items():
        change = ' '.join(str(value) for value in table.columns[column].values())
        shown = [result for result in rows.values() if result and 'values' in result]
        lines += [f'### {column} {f"({change})" if change else ""}'.rstrip(), '']
        if shown:
            lines += [f'{shown[0]["split"]} {shown[0]["metric"]}, {len(shown[0]["seeds"])} seeds', '']
        head = ['method', 'ours', f'ours, difference to {table.baseline}']
        head += ['paper', 'paper, difference'] if paper else []
        lines += [_row(head), _row(['---'] * len(head))]
        baseline = rows[table.baseline]
        for row in table.rows:
            result = rows[row]
            cells = [row, 'missing', '']
            if result:
                cells[1] = number(result['mean'], result['stderr'])
                if baseline and row != table.baseline:
                    cells[2] = number(*paired_difference(result, baseline), signed=True)
            if paper:
                mean, stderr = _paper_cell(paper, column, row)
                base, _ = _paper_cell(paper, column, table.baseline)
                cells += [number(mean, stderr), '' if row == table.baseline else f'{mean - base:+.4f}']
            lines.append(_row(cells))
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
        'RMSE its reduction.',
        '',
        _row(['method', *(f'{group}, {who}' for group in paper['columns'] for who in ('ours', 'paper'))]),
        _row(['---'] * (1 + 2 * len(paper['columns']))),
    ]
    for row in table.rows:
        gains = {name: improvement(group, table.rows[row], results) for name, group in table.groups.items()}
        known = [gain for gain in gains.values() if gain is not None]
        # What the paper averages over is all of its columns.
        gains['Avg.'] = np.mean(known) if len(known) == len(table.groups) else None
        cells = [row]
        for column, (value, _) in zip(paper['columns'], paper['rows'][row], strict=True):
            cells += ['missing' if gains[column] is None else f'{gains[column]:+.2f}', f'{value:+.2f}']
        lines.append(_row(cells))
    return '\n'.join([*lines, ''])


def improvement(group: tables.Group, rows: dict, results: dict):
    """Mean relative improvement of a row over a baseline in percent, or None where a cell is missing.

    Args:
      group: the columns.
      rows: {table: the row there}.
      results: {table: {column: {row: result or None}}}.
    """
    baseline_table, baseline_row = group.baseline
    gains = []
    for column in group.columns:
        result = results.get(group.source, {}).get(column, {}).get(rows[group.source])
        baseline = results.get(baseline_table, {}).get(column, {}).get(baseline_row)
        if not result or not baseline:
            return None
        gains.append(100 * group.sign * (result['mean'] / baseline['mean'] - 1))
    return float(np.mean(gains))


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
