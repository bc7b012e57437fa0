"""What choosing knobs on the test split would give, from the journals of a search."""

import pathlib

import optuna
import pytest
from etils import epath
from optuna.storages.journal import JournalFileBackend, JournalStorage

from td_jax.errors import UserError
from td_jax.reproduction import cells, errors, on_test, render, tables, tuning
from td_jax.training.run import train

SCRATCH = 'Train from scratch'
COLUMNS = ['Drama'], ['CIFAR10']
# Learning rate -> what the search found on validation data: the one that learns nothing looks best there.
TRIALS = {1e-9: 0.9, 1e-2: 0.8}


def journal(folder, name):
    """A journal of a search with some trials and one more that was pruned."""
    path = folder / f'digits-{name}.journal'
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name=path.stem, direction='maximize')
    space = {'optimizer.learning_rate': optuna.distributions.FloatDistribution(1e-9, 1.0)}
    for rate, value in TRIALS.items():
        study.add_trial(
            optuna.trial.create_trial(
                params={'optimizer.learning_rate': rate},
                distributions=space,
                value=value,
                user_attrs={'num_steps': 20},
            )
        )
    study.add_trial(
        optuna.trial.create_trial(
            params={'optimizer.learning_rate': 0.5},
            distributions=space,
            state=optuna.trial.TrialState.PRUNED,
            user_attrs={'num_steps': 20},
        )
    )


@pytest.fixture
def tiny(small_config, one_table):
    """A table of a method, and of a control that is not tuned by itself."""
    rows = {
        SCRATCH: {'method': 'supervised'},
        'LD': {'method': 'ld'},
        'Control': {'method': 'ld', 'teacher.control': 'shuffled'},
    }
    one_table(rows, lambda: small_config(num_steps=20))


def test_trials_come_best_first_and_whole_alone(tmp_path):
    journal(tmp_path, 'ld')
    found = tuning.trials_in(epath.Path(tmp_path) / 'digits-ld.journal')
    assert found == [{'optimizer.learning_rate': rate, 'num_steps': 20} for rate in TRIALS]


def test_rows_that_have_a_search_of_their_own_are_candidates():
    journals = pathlib.Path(__file__).parents[2] / 'docs' / 'results' / 'search'
    found = on_test.candidates(['3x_user'], ['Drama'], ['CIFAR10'], epath.Path(journals))
    methods = 'LD', 'FD', 'FitNet', 'Hybrid', 'TD', 'TD + LD', 'RKD', 'CRD', 'SRD'
    assert {row for _, _, row in found} == {SCRATCH, *methods}


def test_rows_of_another_search_are_none():
    journals = pathlib.Path(__file__).parents[2] / 'docs' / 'results' / 'search'
    found = on_test.candidates(['war_user'], ['War'], ['CIFAR10'], epath.Path(journals))
    methods = 'LD', 'FD', 'FitNet', 'Hybrid', 'TD', 'TD + LD'
    assert {row for _, _, row in found} == {SCRATCH, *methods}


def test_a_row_of_another_search_has_no_best_trial_of_the_usual_one(tmp_path):
    """Where its knobs are the same its runs are, too."""
    own = f'{SCRATCH}, chosen on War'
    runs = cells.names_of(cells.runs_of(tables.TABLES['war_user'], 'Genre 8', own))
    assert runs == cells.names_of(cells.runs_of(tables.TABLES['war_user'], 'Genre 8', SCRATCH))
    kept = {'3': {'Genre 8': {SCRATCH: {'runs': runs, 'mean': 1.0, 'on_test': {'trials': 2}}}}}
    made = cells.make(['war_user'], ['War'], ['CIFAR10'], epath.Path(tmp_path), only_show=True, kept=kept)
    rows = made['war_user']['Genre 8']
    assert rows[SCRATCH] == {'runs': runs, 'mean': 1.0, 'on_test': {'trials': 2}}
    assert rows[own] == {'runs': runs, 'mean': 1.0}


@pytest.mark.long
def test_the_best_trial_on_the_test_split_is_a_column_of_its_own(tiny, small_config, tmp_path):
    for name in ('supervised', 'ld'):
        journal(tmp_path, name)
    root = epath.Path(tmp_path / 'runs')
    results = cells.make(['tiny'], *COLUMNS, root, only_show=False)
    trials = on_test.candidates(['tiny'], *COLUMNS, epath.Path(tmp_path))
    on_test.add(results, trials, root, only_show=False, processes=1)
    rows = results['tiny']['all']
    assert 'on_test' not in rows['Control']
    for row, method in ((SCRATCH, 'supervised'), ('LD', 'ld')):
        # The same runs, made here.
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
            'runs': [cells.names_of(configs) for configs in trials['tiny', 'all', row]],
        }
    text = render.make(['tiny'], results, *COLUMNS)
    (head,) = (line for line in text.splitlines() if line.startswith('| method'))
    place = head.split(' | ').index(f'{render.ON_TEST}, mean ± 95%')
    (line,) = (line for line in text.splitlines() if line.startswith('| LD'))
    ours, scratch = rows['LD']['on_test'], rows[SCRATCH]['on_test']
    said, difference = line.removesuffix(' |').split(' | ')[place : place + 2]
    assert said.startswith(f'{ours["mean"]:.4f} ± ') and said.endswith(', best of 2')
    assert difference.startswith(f'{ours["mean"] - scratch["mean"]:+.4f} ± ')

    # From a file of errors, too.
    errors.write(epath.Path(tmp_path / 'errors.npz'), results)
    kept = errors.of_tables(epath.Path(tmp_path / 'errors.npz'), ['tiny'], *COLUMNS)
    assert kept['tiny']['all']['LD']['on_test'] == ours
    # Which are then not run again, unless there are more.
    nothing = epath.Path(tmp_path / 'nothing')
    on_test.add(kept, trials, nothing, only_show=False, processes=1)
    assert kept['tiny']['all']['LD']['on_test'] == ours and not nothing.exists()
    fewer = {cell: of_cell[:1] for cell, of_cell in trials.items()}
    on_test.add(kept, fewer, root, only_show=True, processes=1)
    assert kept['tiny']['all']['LD']['on_test']['trials'] == 1


def test_a_trial_that_a_cell_has_is_not_run_again(tiny, tmp_path, monkeypatch):
    for name in ('supervised', 'ld'):
        journal(tmp_path, name)
    trials = on_test.candidates(['tiny'], *COLUMNS, epath.Path(tmp_path))
    # As from a file of errors: the first trial of each, run on another machine.
    numbers = {'metric': 'accuracy', 'values': [0.5, 0.7], 'seeds': [0, 1], 'mean': 0.6}
    rows = {row: {**numbers, 'runs': cells.names_of(of_cell[0])} for (_, _, row), of_cell in trials.items()}
    results, asked = {'tiny': {'all': {**rows, 'Control': None}}}, []
    monkeypatch.setattr(cells, 'run_missing', lambda root, configs, processes: asked.extend(configs))
    kept = [row['runs'] for row in rows.values()]
    monkeypatch.setattr(
        cells,
        'stored',
        lambda root, configs: None if cells.names_of(configs) in kept else {**numbers, 'mean': 0.1},
    )
    on_test.add(results, trials, epath.Path(tmp_path / 'runs'), only_show=False, processes=1)
    assert asked == [config for of_cell in trials.values() for config in of_cell[1]]
    assert results['tiny']['all']['LD']['on_test']['mean'] == 0.6


def test_journals_that_are_not_there_or_damaged_are_one_line(tiny, tmp_path):
    journal(tmp_path, 'supervised')
    with pytest.raises(UserError, match=r'digits-ld\.journal is not there; td_jax\.tune makes it'):
        on_test.candidates(['tiny'], *COLUMNS, epath.Path(tmp_path))
    (tmp_path / 'digits-ld.journal').write_text('{"op_code": 0}\n')
    with pytest.raises(UserError, match=r'digits-ld\.journal is damaged; delete it'):
        on_test.candidates(['tiny'], *COLUMNS, epath.Path(tmp_path))
    (tmp_path / 'digits-ld.journal').unlink()
    (tmp_path / 'digits-ld.journal').mkdir()
    with pytest.raises(UserError, match=r'digits-ld\.journal cannot be read \(.*\); choose other --journals'):
        on_test.candidates(['tiny'], *COLUMNS, epath.Path(tmp_path))
    with pytest.raises(UserError, match='is in a bucket'):
        on_test.candidates(['tiny'], *COLUMNS, epath.Path('gs://bucket/journals'))
