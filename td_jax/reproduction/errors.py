"""Stores the errors of a table's runs, as far as a bootstrap needs them, in one small file.

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
# The keys of a cell's result that are stored in addition to its errors.
STORED_KEYS = (
    'metric',
    'split',
    'values',
    'mean',
    'stderr',
    'seeds',
    'teachers',
    'teacher',
    'probe',
    'public_teacher',
    'groups',
    'on_test',
    'runs',
    'protocol',
    'data',
)


def sum_by_unit(values, units) -> dict:
    """Adds errors up by unit.

    Args:
      values: [seeds, examples], squared errors, or 1 for a correct example, else 0.
      units: [examples], the number of each example's unit.

    Returns:
      {'units': [units] their numbers, 'counts': [units] examples of each, 'sums': [seeds, units] multiples of
      STEP}, numpy arrays in the order of the numbers.
    """
    values = np.asarray(values, np.float64)
    numbers, place = np.unique(units, return_inverse=True)
    counts = np.bincount(place, minlength=len(numbers))
    sums = np.stack([np.bincount(place, weights=row, minlength=len(numbers)) for row in values])
    return {'units': numbers, 'counts': counts, 'sums': np.rint(sums / STEP) * STEP}


def read_runs(folders, order) -> dict | None:
    """Reads the errors of a cell's runs, summed by unit; None if a run has none or has other examples.

    Args:
      folders: workdirs of the finished runs.
      order: indices that bring the seeds, one run after the other, into the order of the cell.

    Raises:
      UserError: a file is damaged.
    """
    runs = [finished.read_errors(folder) for folder in folders]
    if None in runs or any(not np.array_equal(run.units, runs[0].units) for run in runs):
        return None
    return sum_by_unit(np.concatenate([run.values for run in runs])[list(order)], runs[0].units)


def join_groups(results, order) -> dict:
    """Joins the `groups` of the results of a cell's runs; groups that a run lacks are left out.

    Args:
      results: of the runs.
      order: as for `read_runs`.
    """
    groups = [result.get('groups', {}) for result in results]
    joined = {}
    for name in groups[0]:
        parts = [group[name] for group in groups if name in group]
        if len(parts) == len(groups) and len({part['count'] for part in parts}) == 1:
            values = [value for part in parts for value in part['values']]
            joined[name] = {'count': parts[0]['count'], 'values': [values[i] for i in order]}
    return joined


def merge(stored_results: dict, results: dict) -> dict:
    """Replaces cells of a file by those of some tables; the result is for `write`.

    A cell that is missing in the tables is removed: the stored one is of other runs.

    Args:
      stored_results: {table: {column: {row: result}}}, by `read`.
      results: {table: {column: {row: result or None}}}, by cells.make.
    """
    merged_results = {
        name: {column: dict(rows) for column, rows in columns.items()}
        for name, columns in stored_results.items()
    }
    for name, columns in results.items():
        for column, rows in columns.items():
            cells = merged_results.setdefault(name, {}).setdefault(column, {})
            cells |= rows
            merged_results[name][column] = {row: result for row, result in cells.items() if result}
    return merged_results


def write(path, results: dict):
    """Writes cells so that every interval of their tables can be computed again.

    Args:
      path: an etils.epath.Path of the file.
      results: {table: {column: {row: result or None}}}, by cells.make; `errors` of a result are by
        `sum_by_unit`, or None.

    Raises:
      UserError: it cannot be written.
    """
    arrays, index = {}, []
    # Tables share cells; the errors of the same runs are written once.
    first_cells, duplicates = {}, []
    for name, columns in results.items():
        for column, rows in columns.items():
            blocks, cells = {}, {}
            for row, result in rows.items():
                if not result:
                    continue
                cells[row] = {key: result[key] for key in STORED_KEYS if key in result}
                errors, runs = result.get('errors'), tuple(result.get('runs', ()))
                if errors is None:
                    continue
                if runs in first_cells:
                    duplicates.append((cells[row], first_cells[runs]))
                    continue
                if runs:
                    first_cells[runs] = cells[row]
                same = errors['units'].tobytes(), errors['counts'].tobytes()
                blocks.setdefault(same, []).append((row, errors))
            for block in blocks.values():
                number = len(arrays) // 3
                rounded = np.rint(np.concatenate([errors['sums'] for _, errors in block]) / STEP)
                changes = np.diff(rounded.astype(np.int64), axis=0, prepend=0)
                arrays[f'units_{number}'] = _narrow(block[0][1]['units'])
                arrays[f'counts_{number}'] = _narrow(block[0][1]['counts'])
                arrays[f'changes_{number}'] = _narrow(changes)
                start = 0
                for row, errors in block:
                    cells[row]['place'] = number, start
                    start += len(errors['sums'])
            index.append({'table': name, 'column': column, 'cells': cells})
    for cell, first in duplicates:
        cell['place'] = first['place']
    text = json.dumps({'format': FORMAT, 'step': STEP, 'columns': index})
    workdir.write_arrays(path, {**arrays, 'index': np.array(text)})


def _narrow(numbers):
    """Casts whole numbers to the smallest type that holds them."""
    numbers = np.asarray(numbers)
    ends = numbers.min(initial=0), numbers.max(initial=0)
    return numbers.astype(np.result_type(*map(np.min_scalar_type, ends)))


def read(path) -> dict:
    """Reads a file by `write` as {table: {column: {row: result}}}, with the current names.

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
                tables.RENAMED.get(row, row): _read_result(cell, arrays, index['step'])
                for row, cell in entry['cells'].items()
            }
            column = tables.RENAMED.get(entry['column'], entry['column'])
            results.setdefault(entry['table'], {})[column] = cells
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path} is damaged or holds something else than the errors of tables.') from error
    return results


def _read_result(cell, arrays, step):
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


def read_tables(paths, names, genres, datasets) -> dict:
    """Reads the cells of some tables from files, {table: {column: {row: result or None}}}.

    Args:
      paths: of the files; later ones replace cells of earlier ones.
      names: of the tables; of each, or of one table that it is computed from, there must be a cell.
      genres, datasets: the columns to keep; those that are not in the file are left out.

    Raises:
      UserError: raised by `read`, an unknown name, or a file of other tables.
    """
    tables.check_names(names, genres, datasets)
    paths = list(paths)
    stored_results, results, path = {}, {}, ', '.join(map(str, paths))
    for file in paths:
        stored_results = merge(stored_results, read(file))
    for name in names:
        cells = {}
        for source, column, row in tables.wanted_cells([name], genres, datasets):
            stored_rows = stored_results.get(source, {}).get(column)
            if stored_rows is not None:
                cells.setdefault(source, {}).setdefault(column, {})[row] = stored_rows.get(row)
                _check_rows(path, source, stored_rows)
        if not cells:
            holds = '; '.join(f'{table}: {", ".join(columns)}' for table, columns in stored_results.items())
            raise UserError(f'{path} has nothing of table {name} in these columns; it holds {holds}.')
        for source, columns in cells.items():
            for column, rows in columns.items():
                results.setdefault(source, {}).setdefault(column, {}).update(rows)
    return results


def _check_rows(path, name, rows):
    unknown = rows.keys() - tables.TABLES[name].rows.keys()
    if unknown:
        raise UserError(
            f'{path} is of another table {name}: it has a row {min(unknown)}, which this one does not have.'
        )
