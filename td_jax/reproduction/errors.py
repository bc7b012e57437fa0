"""What a bootstrap needs of the errors of a table's runs, in one small file.

Errors are added up by unit (a user, an image), and each sum is rounded to a multiple of STEP, 1/256. A mean
over the examples is then off by STEP / sqrt(12) times the root of the number of units, over the number of
examples: with 900 users of 4,000 ratings by 1e-5, and an RMSE near 1 by half of that, or by less still as a
mean over seeds. Counts of right examples are exact. Rounded as they are made, errors give the same digits
from runs as from a file.

The file is an .npz of whole numbers and of a text: JSON with what each cell is. The sums of all cells of a
column, one row per seed, are kept as differences from row to row, which are small and so compress well.
"""

import json

import numpy as np

from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import tables
from td_jax.training import finished

STEP = 2.0**-8
FORMAT = 1
# What is kept of a cell's result, in addition to its errors.
KEPT = (
    'metric',
    'split',
    'values',
    'mean',
    'stderr',
    'seeds',
    'teachers',
    'teacher',
    'groups',
    'on_test',
    'runs',
    'protocol',
    'data',
)


def by_unit(values, units) -> dict:
    """Adds errors up by unit.

    Args:
      values: [seeds, examples], squared errors, or 1 where an example is right, else 0.
      units: [examples], the number of the unit that each belongs to.

    Returns:
      {'units': [units] their numbers, 'counts': [units] examples of each, 'sums': [seeds, units] multiples of
      STEP}, numpy arrays in the order of the numbers.
    """
    values = np.asarray(values, np.float64)
    numbers, place = np.unique(units, return_inverse=True)
    counts = np.bincount(place, minlength=len(numbers))
    sums = np.stack([np.bincount(place, weights=row, minlength=len(numbers)) for row in values])
    return {'units': numbers, 'counts': counts, 'sums': np.rint(sums / STEP) * STEP}


def of_runs(folders, order) -> dict | None:
    """The errors of a cell of several runs on the same examples, by unit; None where a run has none.

    Args:
      folders: workdirs of the finished runs.
      order: of all their seeds, one run after the other, the places in the order of the cell.

    Raises:
      UserError: a file is damaged.
    """
    runs = [finished.read_errors(folder) for folder in folders]
    if None in runs or any(not np.array_equal(run.units, runs[0].units) for run in runs):
        return None
    return by_unit(np.concatenate([run.values for run in runs])[list(order)], runs[0].units)


def groups_of_runs(results, order) -> dict:
    """`groups` of a cell of several runs from those of their results, of those groups that all have.

    Args:
      results: of the runs.
      order: as of `of_runs`.
    """
    groups = [result.get('groups', {}) for result in results]
    joined = {}
    for name in groups[0]:
        parts = [group[name] for group in groups if name in group]
        if len(parts) == len(groups) and len({part['count'] for part in parts}) == 1:
            values = [value for part in parts for value in part['values']]
            joined[name] = {'count': parts[0]['count'], 'values': [values[i] for i in order]}
    return joined


def merged(kept: dict, results: dict) -> dict:
    """Cells of a file with those of some tables in their place, as `write` takes them.

    A cell of these tables that is missing is taken out: what the file has of it is of other runs.

    Args:
      kept: {table: {column: {row: result}}}, as `read` gives them.
      results: {table: {column: {row: result or None}}}, as cells.make gives them.
    """
    found = {name: {column: dict(rows) for column, rows in columns.items()} for name, columns in kept.items()}
    for name, columns in results.items():
        for column, rows in columns.items():
            there = found.setdefault(name, {}).setdefault(column, {})
            there |= rows
            found[name][column] = {row: result for row, result in there.items() if result}
    return found


def write(path, results: dict):
    """Writes what every interval of some tables can be computed from again.

    Args:
      path: an etils.epath.Path of the file.
      results: {table: {column: {row: result or None}}}, as cells.make gives them; `errors` of a result are
        those of `by_unit`, or None.

    Raises:
      UserError: it cannot be written.
    """
    arrays, index = {}, []
    # Tables have cells in common: the errors of the same runs are written once.
    first_of, twins = {}, []
    for name, columns in results.items():
        for column, rows in columns.items():
            blocks, cells = {}, {}
            for row, result in rows.items():
                if not result:
                    continue
                cells[row] = {key: result[key] for key in KEPT if key in result}
                errors, runs = result.get('errors'), tuple(result.get('runs', ()))
                if errors is None:
                    continue
                if runs in first_of:
                    twins.append((cells[row], first_of[runs]))
                    continue
                if runs:
                    first_of[runs] = cells[row]
                same = errors['units'].tobytes(), errors['counts'].tobytes()
                blocks.setdefault(same, []).append((row, errors))
            for block in blocks.values():
                number = len(arrays) // 3
                rounded = np.rint(np.concatenate([errors['sums'] for _, errors in block]) / STEP)
                changes = np.diff(rounded.astype(np.int64), axis=0, prepend=0)
                arrays[f'units_{number}'] = _small(block[0][1]['units'])
                arrays[f'counts_{number}'] = _small(block[0][1]['counts'])
                arrays[f'changes_{number}'] = _small(changes)
                start = 0
                for row, errors in block:
                    cells[row]['place'] = number, start
                    start += len(errors['sums'])
            index.append({'table': name, 'column': column, 'cells': cells})
    for cell, first in twins:
        cell['place'] = first['place']
    text = json.dumps({'format': FORMAT, 'step': STEP, 'columns': index})
    workdir.write_arrays(path, {**arrays, 'index': np.array(text)})


def _small(numbers):
    """Whole numbers in the smallest type that holds them."""
    numbers = np.asarray(numbers)
    ends = numbers.min(initial=0), numbers.max(initial=0)
    return numbers.astype(np.result_type(*map(np.min_scalar_type, ends)))


def read(path) -> dict:
    """What `write` wrote, as {table: {column: {row: result}}}, with the names of today.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    arrays = workdir.read_arrays(path)
    if arrays is None:
        raise UserError(f'{path} does not exist.')
    try:
        index = json.loads(str(arrays['index']))
        if index['format'] != FORMAT:
            raise UserError(f'{path} is of another version of td_jax: its format is {index["format"]}.')
        results = {}
        for entry in index['columns']:
            cells = {
                tables.RENAMED.get(row, row): _result(cell, arrays, index['step'])
                for row, cell in entry['cells'].items()
            }
            column = tables.RENAMED.get(entry['column'], entry['column'])
            results.setdefault(entry['table'], {})[column] = cells
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path} is damaged or holds something else than the errors of tables.') from error
    return results


def _result(cell, arrays, step):
    place, seeds = cell.pop('place', None), len(cell['seeds'])
    if len(cell['values']) != seeds or not np.isfinite(cell['values']).all():
        raise ValueError('values')
    if not all(isinstance(run, str) for run in cell.get('runs', [])):
        raise ValueError('runs')
    cell['errors'] = None
    if place is None:
        return cell
    number, start = place
    units, counts = arrays[f'units_{number}'], arrays[f'counts_{number}']
    changes = arrays[f'changes_{number}'].astype(np.int64)
    sums = step * np.cumsum(changes, axis=0)[start : start + seeds]
    if sums.shape != (seeds, len(units)) or counts.shape != units.shape or counts.min(initial=1) < 1:
        raise ValueError('shapes')
    cell['errors'] = {'units': units, 'counts': counts, 'sums': sums}
    return cell


def of_tables(paths, names, genres, datasets) -> dict:
    """The cells of some tables in some files, {table: {column: {row: result or None}}}, a missing cell None.

    Args:
      paths: of the files; a cell that several have is that of the last one.
      names: of the tables; each must be there, or, of one that is made of others, one of these.
      genres, datasets: the columns to keep; those that are not in the file are left out.

    Raises:
      UserError: what `read` raises, an unknown name, or a file of other tables.
    """
    tables.check_names(names, genres, datasets)
    paths = list(paths)
    found, results, path = {}, {}, ', '.join(map(str, paths))
    for file in paths:
        found = merged(found, read(file))
    for name in names:
        kept = {}
        for source, column, row in tables.wanted_cells([name], genres, datasets):
            there = found.get(source, {}).get(column)
            if there is not None:
                kept.setdefault(source, {}).setdefault(column, {})[row] = there.get(row)
                _check_rows(path, source, there)
        if not kept:
            holds = '; '.join(f'{table}: {", ".join(columns)}' for table, columns in found.items())
            raise UserError(f'{path} has nothing of table {name} in these columns; it holds {holds}.')
        for source, columns in kept.items():
            for column, rows in columns.items():
                results.setdefault(source, {}).setdefault(column, {}).update(rows)
    return results


def _check_rows(path, name, there):
    others = there.keys() - tables.TABLES[name].rows.keys()
    if others:
        raise UserError(
            f'{path} is of another table {name}: it has a row {min(others)}, which this one does not have.'
        )
