"""Sensitivity check: hyperparameters selected on the test set, from the completed trials of a search."""

import pytest
from etils import epath

from td_jax.errors import UserError
from td_jax.method import objectives
from td_jax.reproduction import cells, errors, on_test, render, tables
from td_jax.training.run import train

SCRATCH = 'Train from scratch'
COLUMNS = ['Drama'], ['CIFAR10']
# {learning rate: validation score}; the one that learns nothing looks best.
TRIALS = {1e-9: 0.9, 1e-2: 0.8}


def make_choices(*names):
    """Choices with the trials that they were selected from."""
    completed = [
        {'score': score, 'values': {'optimizer.learning_rate': rate, 'num_steps': 20}}
        for rate, score in TRIALS.items()
    ]
    of_each = {name: completed[0]['values'] for name in names}
    record = {'trials': 4, 'seeds': 2, 'steps': 20, 'fixed': {}, 'completed': completed}
    return {'digits': of_each | {'searched': dict.fromkeys(names, record)}}


@pytest.fixture
def use_tiny_table(small_config, one_table, monkeypatch):
    """Replaces all tables by one of a method and of a control without a search of its own."""
    rows = {
        SCRATCH: {'method': 'supervised'},
        'LD': {'method': 'ld'},
        'Control': {'method': 'ld', 'teacher.control': 'shuffled'},
    }
    one_table(rows, lambda: small_config(num_steps=20))
    monkeypatch.setattr(cells, 'read_tuned', lambda name: make_choices('supervised', 'ld'))


@pytest.fixture
def use_made_up_searches(monkeypatch):
    """Replaces the choices of the per-user split by some whose lists of trials are empty."""
    names = *objectives.METHODS, *tables.VARIANTS
    records = {'searched': {name: {'completed': []} for name in names}}
    choices = {'movielens_by_user': records, 'movielens_by_user_War': {name: {} for name in names}}
    monkeypatch.setattr(cells, 'read_tuned', lambda name: choices)


METHODS = {SCRATCH, 'LD', 'FD', 'FitNet', 'Hybrid', 'TD', 'TD + LD'}


@pytest.mark.parametrize(
    ('table', 'genre', 'rows'),
    [('3x_user', 'Drama', METHODS | {'RKD', 'CRD', 'SRD'}), ('war_user', 'War', METHODS)],
)
def test_rows_that_have_a_search_of_their_own_are_candidates(use_made_up_searches, table, genre, rows):
    candidates = on_test.candidates([table], [genre], ['CIFAR10'])
    assert {row for _, _, row in candidates} == rows


def test_a_row_of_another_search_has_no_best_trial_of_the_usual_one(use_made_up_searches, tmp_path):
    """Even if it has the same hyperparameters and so the same runs."""
    own = f'{SCRATCH}, chosen on War'
    runs = cells.run_names(cells.runs_of(tables.TABLES['war_user'], 'Genre 8', own))
    assert runs == cells.run_names(cells.runs_of(tables.TABLES['war_user'], 'Genre 8', SCRATCH))
    stored = {'3': {'Genre 8': {SCRATCH: {'runs': runs, 'mean': 1.0, 'on_test': {'trials': 2}}}}}
    results = cells.make(
        ['war_user'], ['War'], ['CIFAR10'], epath.Path(tmp_path), only_show=True, stored_results=stored
    )
    rows = results['war_user']['Genre 8']
    assert rows[SCRATCH] == {'runs': runs, 'mean': 1.0, 'on_test': {'trials': 2}}
    assert rows[own] == {'runs': runs, 'mean': 1.0}


@pytest.mark.long
def test_the_best_trial_on_the_test_split_is_a_column_of_its_own(use_tiny_table, small_config, tmp_path):
    root = epath.Path(tmp_path / 'runs')
    results = cells.make(['tiny'], *COLUMNS, root, only_show=False)
    trials = on_test.candidates(['tiny'], *COLUMNS)
    on_test.add(results, trials, root, only_show=False, processes=1)
    rows = results['tiny']['all']
    assert 'on_test' not in rows['Control']
    for row, method in ((SCRATCH, 'supervised'), ('LD', 'ld')):
        # The same runs, trained here.
        by_hand = [
            train(
                small_config(method=method, num_steps=20, optimizer__learning_rate=rate),
                epath.Path(tmp_path / f'{method}-{rate}'),
            )
            for rate in TRIALS
        ]
        best = max(by_hand, key=lambda result: result['mean'])
        assert rows[row]['on_test'] == {
            'values': best['values'],
            'seeds': best['seeds'],
            'mean': best['mean'],
            'trials': 2,
            'runs': [cells.run_names(configs) for configs in trials['tiny', 'all', row]],
        }
    text = render.make(['tiny'], results, *COLUMNS)
    (head,) = (line for line in text.splitlines() if line.startswith('| method'))
    place = head.split(' | ').index(f'{render.ON_TEST}, mean ± 95%')
    (line,) = (line for line in text.splitlines() if line.startswith('| LD'))
    ours, scratch = rows['LD']['on_test'], rows[SCRATCH]['on_test']
    best_cell, difference = line.removesuffix(' |').split(' | ')[place : place + 2]
    assert best_cell.startswith(f'{ours["mean"]:.4f} ± ') and best_cell.endswith(', best of 2')
    assert difference.startswith(f'{ours["mean"] - scratch["mean"]:+.4f} ± ')

    # The same from a file of errors.
    errors.write(epath.Path(tmp_path / 'errors.npz'), results)
    stored = errors.read_tables([epath.Path(tmp_path / 'errors.npz')], ['tiny'], *COLUMNS)
    assert stored['tiny']['all']['LD']['on_test'] == ours
    # A table made without trials keeps them, although its cells are read from their runs.
    of_file = errors.read(epath.Path(tmp_path / 'errors.npz'))
    results_from_runs = cells.make(['tiny'], *COLUMNS, root, only_show=True, stored_results=of_file)
    assert (
        results_from_runs['tiny']['all']['LD']['on_test'] == ours
        and 'on_test' not in results_from_runs['tiny']['all']['Control']
    )
    # Trials in the file are not run again.
    nothing = epath.Path(tmp_path / 'nothing')
    on_test.add(stored, trials, nothing, only_show=False, processes=1)
    assert stored['tiny']['all']['LD']['on_test'] == ours and not nothing.exists()
    fewer = {cell: of_cell[:1] for cell, of_cell in trials.items()}
    on_test.add(stored, fewer, root, only_show=True, processes=1)
    assert stored['tiny']['all']['LD']['on_test']['trials'] == 1


def test_a_trial_that_a_cell_has_is_not_run_again(use_tiny_table, tmp_path, monkeypatch):
    trials = on_test.candidates(['tiny'], *COLUMNS)
    # As if read from a file: the first trial of each row was run on another machine.
    numbers = {'metric': 'accuracy', 'values': [0.5, 0.7], 'seeds': [0, 1], 'mean': 0.6}
    rows = {row: {**numbers, 'runs': cells.run_names(of_cell[0])} for (_, _, row), of_cell in trials.items()}
    results, configs_run = {'tiny': {'all': {**rows, 'Control': None}}}, []
    monkeypatch.setattr(cells, 'run_missing', lambda root, configs, processes: configs_run.extend(configs))
    stored_runs = [row['runs'] for row in rows.values()]
    monkeypatch.setattr(
        cells,
        'read_cell',
        lambda root, configs: None if cells.run_names(configs) in stored_runs else {**numbers, 'mean': 0.1},
    )
    on_test.add(results, trials, epath.Path(tmp_path / 'runs'), only_show=False, processes=1)
    assert configs_run == [config for of_cell in trials.values() for config in of_cell[1]]
    assert results['tiny']['all']['LD']['on_test']['mean'] == 0.6


def test_choices_that_do_not_say_their_trials_are_one_line(use_tiny_table, monkeypatch):
    """Choices of an earlier version, or of one method alone."""
    for choices in (make_choices('supervised'), {'digits': {'ld': {'num_steps': 20}}}):
        monkeypatch.setattr(cells, 'read_tuned', lambda name, choices=choices: choices)
        with pytest.raises(
            UserError,
            match=r'^td_jax/configs/tuned/.*digits\.json does not say from which trials (ld|supervised) '
            r'under digits was chosen; td_jax\.tune with --methods=(ld|supervised) writes them\.$',
        ):
            on_test.candidates(['tiny'], *COLUMNS)
