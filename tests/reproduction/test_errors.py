"""Errors by unit, and the file of a whole table: small, exact, and refused if it is damaged."""

import json

import numpy as np
import pytest
from etils import epath

from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import errors, render, tables
from td_jax.training import finished

SCRATCH = 'Train from scratch'


def make_result(values, units, **more):
    """A cell's result of squared errors, [seeds, examples]."""
    values = np.asarray(values, float)
    metric = np.sqrt(values.mean(axis=1))
    return {
        'metric': 'rmse',
        'split': 'test',
        'values': metric.tolist(),
        'mean': float(metric.mean()),
        'stderr': None,
        'seeds': list(range(len(values))),
        'teachers': [i % 2 for i in range(len(values))],
        'teacher': 0.9,
        'groups': {},
        'errors': errors.sum_by_unit(values, units),
        **more,
    }


def test_errors_are_added_up_by_unit():
    values = [[1, 0.5, 0.25, 4], [0, 2, 1, 3]]
    actual = errors.sum_by_unit(values, [9, 3, 9, 5])
    assert actual.keys() == {'units', 'counts', 'sums'}
    np.testing.assert_array_equal(actual['units'], [3, 5, 9])
    np.testing.assert_array_equal(actual['counts'], [1, 1, 2])
    np.testing.assert_array_equal(actual['sums'], [[0.5, 4, 1.25], [2, 3, 1]])


def test_sums_are_rounded_to_a_step_and_the_metric_hardly_moves():
    """With 900 users and 4,000 ratings, the rounding has a standard deviation of about 1e-5 in the mean."""
    rng = np.random.default_rng(0)
    units = np.concatenate([np.arange(900), rng.integers(0, 900, 3100)])
    values = rng.gamma(1.0, 1.0, (10, 4000)).astype(np.float32)
    actual = errors.sum_by_unit(values, units)
    assert (actual['sums'] / errors.STEP == np.rint(actual['sums'] / errors.STEP)).all()
    exact = np.stack([np.bincount(units, row) for row in values.astype(float)])
    assert np.abs(actual['sums'] - exact).max() <= errors.STEP / 2
    means = actual['sums'].sum(axis=1) / 4000
    np.testing.assert_allclose(means, values.mean(axis=1, dtype=float), atol=4e-5)
    is_right = (rng.random((3, 4000)) < 0.5).astype(np.float32)
    np.testing.assert_array_equal(
        errors.sum_by_unit(is_right, units)['sums'].sum(axis=1), is_right.sum(axis=1)
    )


def make_results():
    """Results of two tables. One cell is missing, one has no errors, one other examples, one large errors."""
    rng = np.random.default_rng(0)
    units = rng.integers(0, 30, 200)
    cells = {row: make_result(rng.gamma(1.0, 1.0, (4, 200)), units) for row in (SCRATCH, 'TD')}
    cells['LD'] = make_result(1000 * rng.gamma(1.0, 1.0, (4, 200)), units)
    cells['FD'] = make_result(rng.gamma(1.0, 1.0, (2, 200)), units)
    cells['FitNet'] = make_result(rng.gamma(1.0, 1.0, (2, 150)), units[:150])
    cells['Hybrid'] = cells['FD'] | {'errors': None}
    return {'3': {'Genre 1': cells | {'missing': None}, 'Genre 2': {'TD': cells['TD']}}, '5': {'Genre 1': {}}}


def test_a_file_holds_what_was_written(tmp_path):
    path, results = epath.Path(tmp_path / 'a.npz'), make_results()
    errors.write(path, results)
    stored = errors.read(path)
    del results['3']['Genre 1']['missing']
    assert {name: columns.keys() for name, columns in stored.items()} == {
        name: columns.keys() for name, columns in results.items()
    }
    for name, columns in results.items():
        for column, rows in columns.items():
            assert stored[name][column].keys() == rows.keys()
            for row, cell in rows.items():
                stored_cell = stored[name][column][row]
                assert {k: v for k, v in stored_cell.items() if k != 'errors'} == {
                    k: v for k, v in cell.items() if k != 'errors'
                }
                assert (stored_cell['errors'] is None) == (cell['errors'] is None)
                for key in cell['errors'] or ():
                    np.testing.assert_array_equal(stored_cell['errors'][key], cell['errors'][key])


def test_errors_of_the_same_runs_are_written_once(tmp_path):
    rng, units = np.random.default_rng(0), np.arange(40) // 2
    shared, other = (make_result(rng.gamma(1.0, 1.0, (3, 40)), units, runs=[name]) for name in 'ab')
    results = {
        '5': {'Genre 1': {'1 iteration': shared, '2 to 3 iterations': other}},
        '8': {'Genre 1': {'No noise': shared, 'Train together': shared}},
    }
    path = epath.Path(tmp_path / 'a.npz')
    errors.write(path, results)
    sums = [array for name, array in np.load(path).items() if name.startswith('changes_')]
    assert [len(array) for array in sums] == [6]
    for name, columns in errors.read(path).items():
        for row, cell in columns['Genre 1'].items():
            expected = results[name]['Genre 1'][row]
            assert cell['runs'] == expected['runs']
            np.testing.assert_array_equal(cell['errors']['sums'], expected['errors']['sums'])


def test_cells_of_other_tables_stay_in_a_file():
    stored = {'3': {'Genre 1': {'TD': 1, 'LD': 2}, 'Genre 2': {'TD': 3}}, '5': {'Genre 1': {'TD': 4}}}
    results = {'3': {'Genre 1': {'TD': 5, 'LD': None, 'FD': 6}}, '7': {'Genre 8': {'TD': 7}}}
    assert errors.merge(stored, results) == {
        '3': {'Genre 1': {'TD': 5, 'FD': 6}, 'Genre 2': {'TD': 3}},
        '5': {'Genre 1': {'TD': 4}},
        '7': {'Genre 8': {'TD': 7}},
    }
    assert stored['3']['Genre 1'] == {'TD': 1, 'LD': 2}


def test_a_table_from_a_file_is_that_of_the_runs(tmp_path):
    """Every interval is the same to the last digit."""
    path, genres = epath.Path(tmp_path / 'a.npz'), ('Drama', 'Comedy')
    rng, units = np.random.default_rng(1), np.random.default_rng(2).integers(0, 30, 200)
    results = {'3': {}}
    for column in ('Genre 1', 'Genre 2'):
        rows = {row for row, change in tables.TABLES['3'].rows.items() if change != tables.TEACHER}
        results['3'][column] = dict.fromkeys(rows)
        for row in (SCRATCH, 'TD', 'LD'):
            results['3'][column][row] = make_result(rng.gamma(1.0, 1.0, (4, 200)), units)
    errors.write(path, results)
    text = render.make(['3'], results, genres, ['CIFAR10'])
    assert text.count(' to ') > 4
    assert (
        render.make(['3'], errors.read_tables([path], ['3'], genres, ['CIFAR10']), genres, ['CIFAR10'])
        == text
    )
    # Columns that are not in the file are left out.
    every = errors.read_tables([path], ['3'], tables.GENRES, ['CIFAR10'])
    assert render.make(['3'], every, tables.GENRES, ['CIFAR10']) == text
    # Derived tables, too.
    ours = errors.read_tables([path], ['1'], genres, ['CIFAR10'])
    assert ours['3']['Genre 1']['TD']['values'] == results['3']['Genre 1']['TD']['values']


def test_all_tables_of_two_splits_are_small(tmp_path):
    """15 rows of 10 seeds of 900 users, eight genres, two splits: 5 MB at most, a column a sixteenth of it.

    Errors of models differ as those of two seeds do: by a tenth of the noise of a rating.
    """
    rng, path = np.random.default_rng(0), epath.Path(tmp_path / 'a.npz')
    units = np.concatenate([np.arange(900), rng.integers(0, 900, 3600)])
    noise = rng.normal(0, 0.95, len(units))
    rows = {
        str(row): make_result((noise + rng.normal(0, 0.1, (10, len(units)))) ** 2, units) for row in range(15)
    }
    errors.write(path, {'3': {'Genre 1': rows}})
    assert path.stat().length < 5e6 / 16


def test_a_file_that_is_damaged_is_one_line(tmp_path):
    path = epath.Path(tmp_path / 'a.npz')
    with pytest.raises(UserError, match=r'a\.npz does not exist\.$'):
        errors.read(path)
    errors.write(path, make_results())
    arrays = workdir.read_arrays(path)
    index = json.loads(str(arrays['index']))

    def assert_refused(changes, message):
        workdir.write_arrays(path, {k: v for k, v in (arrays | changes).items() if v is not None})
        with pytest.raises(UserError, match=message) as error:
            errors.read(path)
        assert '\n' not in str(error.value)

    def change_index(change):
        other = json.loads(json.dumps(index))
        change(other)
        return {'index': np.array(json.dumps(other))}

    def get_cell(other):
        return other['columns'][0]['cells']['TD']

    damaged = r'a\.npz is damaged or holds something else than the errors of tables\.$'
    assert_refused({'index': None}, damaged)
    assert_refused({'index': np.array('{')}, damaged)
    assert_refused({'index': np.array('[]')}, damaged)
    assert_refused({'index': np.array('{"format": 1}')}, damaged)
    assert_refused({'changes_0': None}, damaged)
    assert_refused({'changes_0': arrays['changes_0'][:3]}, damaged)
    assert_refused({'counts_0': arrays['counts_0'][:-1]}, damaged)
    assert_refused({'counts_0': 0 * arrays['counts_0']}, damaged)
    assert_refused(change_index(lambda other: get_cell(other).pop('values')), damaged)
    assert_refused(change_index(lambda other: get_cell(other)['values'].pop()), damaged)
    assert_refused(change_index(lambda other: get_cell(other).update(values=[float('nan')] * 4)), damaged)
    assert_refused(change_index(lambda other: get_cell(other).update(place=[9, 0])), damaged)
    assert_refused(change_index(lambda other: get_cell(other).update(place=[0, 99])), damaged)
    assert_refused(change_index(lambda other: other.update(format=9)), 'its format is 9')


def test_a_file_of_another_table_is_one_line(tmp_path):
    path, columns = epath.Path(tmp_path / 'a.npz'), (['Drama'], ['CIFAR10'])
    units = np.arange(6)
    errors.write(path, {'3': {'Genre 1': {'TD': make_result(np.ones((2, 6)), units)}}})
    with pytest.raises(UserError, match=r'has nothing of table 5 in these columns; it holds 3: Genre 1\.$'):
        errors.read_tables([path], ['3', '5'], *columns)
    with pytest.raises(UserError, match=r'has nothing of table 3 in these columns'):
        errors.read_tables([path], ['3'], ['War'], ['CIFAR10'])
    with pytest.raises(UserError, match="--tables '33' is not known"):
        errors.read_tables([path], ['33'], *columns)
    errors.write(path, {'3': {'Genre 1': {'Other': make_result(np.ones((2, 6)), units)}}})
    with pytest.raises(UserError, match='is of another table 3: it has a row Other, which this one does not'):
        errors.read_tables([path], ['3'], *columns)


def test_a_cell_of_several_runs_has_the_errors_of_all_in_its_order(tmp_path):
    values = np.arange(20, dtype=np.float32).reshape(5, 4)
    units = np.array([1, 0, 1, 2])
    folders, seeds = [], ([0, 2, 4], [1, 3])
    for number, of_run in enumerate(seeds):
        folder = epath.Path(tmp_path / str(number))
        folder.mkdir()
        result_of_run = dict.fromkeys(finished.RESULT_KEYS) | {'seeds': of_run, 'steps': 7}
        finished.write_errors(folder, values[of_run], units, result_of_run)
        workdir.write(folder / workdir.RESULT, json.dumps(result_of_run))
        folders.append(folder)
    # Places of the seeds 0 to 4 in 0, 2, 4, 1, 3.
    order = [0, 3, 1, 4, 2]
    actual, expected = errors.read_runs(folders, order), errors.sum_by_unit(values, units)
    for key, array in expected.items():
        np.testing.assert_array_equal(actual[key], array)
    (folders[1] / workdir.ERRORS).unlink()
    assert errors.read_runs(folders, order) is None
    finished.write_errors(folders[1], values[seeds[1]], units + 1, {'seeds': seeds[1], 'steps': 7})
    assert errors.read_runs(folders, order) is None

    def make_run(known, **more):
        return {'groups': {'known_users': {'count': 9, 'values': known}, **more}}

    groups = errors.join_groups([make_run([0.0, 0.2, 0.4]), make_run([0.1, 0.3])], order)
    assert groups == {'known_users': {'count': 9, 'values': [0.0, 0.1, 0.2, 0.3, 0.4]}}
    other = {'unknown_users': {'count': 3, 'values': [1.0, 2.0, 3.0]}}
    assert errors.join_groups([make_run([0.0, 0.2, 0.4], **other), make_run([0.1, 0.3])], order) == groups
    assert errors.join_groups([{}, make_run([0.1, 0.3])], order) == {}


def test_tables_of_several_files_are_shown_together(tmp_path):
    files, columns, units = [], (['Drama'], ['CIFAR10']), np.arange(6)
    for name, column in (('3', 'Genre 1'), ('digits', '5 to 9')):
        files.append(epath.Path(tmp_path / f'{name}.npz'))
        errors.write(files[-1], {name: {column: {'TD': make_result(np.ones((2, 6)), units)}}})
    results = errors.read_tables(files, ['digits', '3'], *columns)
    assert {name: list(of_table) for name, of_table in results.items()} == {
        'digits': ['5 to 9'],
        '3': ['Genre 1'],
    }
    with pytest.raises(UserError, match=r'3\.npz, .*digits\.npz has nothing of table 5'):
        errors.read_tables(files, ['5'], *columns)


def test_a_file_with_the_names_of_before_has_those_of_today(tmp_path):
    path, units = epath.Path(tmp_path / 'a.npz'), np.arange(6)
    before = {
        '3x': {
            'Genre 1': ("TD, teacher of the student's size and genre", 'Train from scratch, knobs of TD + LD')
        },
        '4x_small': {'500 images a class': ('TD', 'No distillation, knobs of TD')},
    }
    errors.write(
        path,
        {
            name: {
                column: {row: make_result(np.ones((2, 6)), units) for row in rows}
                for column, rows in columns.items()
            }
            for name, columns in before.items()
        },
    )
    results = errors.read_tables([path], list(before), ['Drama'], ['CIFAR10'])
    assert {row for row, cell in results['3x']['Genre 1'].items() if cell} == {
        'TD, teacher of equal size',
        "Train from scratch, TD + LD's hyperparameters",
    }
    (column,) = results['4x_small']
    assert column == '500 images per class'
    assert {row for row, cell in results['4x_small'][column].items() if cell} == {
        'TD',
        "No distillation, TD's hyperparameters",
    }
    # Every new name is that of a row or column.
    names = {
        name
        for table in tables.TABLES.values()
        if isinstance(table, tables.Table)
        for name in (*table.rows, *table.columns)
    }
    assert set(tables.RENAMED.values()) <= names
    assert names.isdisjoint(tables.RENAMED)
