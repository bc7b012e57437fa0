"""The tables: what a cell runs, what is missing, and the paper's numbers beside ours."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from configs import common
from td_jax import config as config_lib
from td_jax import reproduce
from td_jax.files import workdir
from td_jax.method import objectives
from td_jax.training import finished, loop

PAPER = json.loads(reproduce.PAPER.read_text())['tables']
WITH_RUNS = {name: t for name, t in reproduce.TABLES.items() if isinstance(t, reproduce.Table)}
DERIVED = {name: t for name, t in reproduce.TABLES.items() if isinstance(t, reproduce.Derived)}
GENRE, SCRATCH = 'Genre 1', 'Train from scratch'


def fake(mean, seeds=(0, 1), teacher=0.9):
    values = [mean - 0.01, mean + 0.01]
    return {
        'mean': mean,
        'stderr': 0.01,
        'values': values,
        'seeds': list(seeds),
        'teacher': teacher,
        'metric': 'rmse',
        'split': 'test',
    }


def cells_of(text, row):
    """The cells of a row of a Markdown table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {row} |')]
    return [cell.strip() for cell in line.strip('|').split('|')]


# --- What to run -----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', WITH_RUNS)
def test_a_table_is_made_of_what_there_is(name):
    table = WITH_RUNS[name]
    declared = config_lib.flatten(common.get_config())
    for change in (*table.columns.values(), *table.rows.values()):
        if change != reproduce.TEACHER:
            assert change.keys() <= declared.keys()
    assert table.baseline in table.rows
    if name in PAPER:
        assert set(table.columns) <= set(PAPER[name]['columns'])
        assert set(table.rows) <= set(PAPER[name]['rows'])
    for column in table.columns:
        for row, change in table.rows.items():
            if change != reproduce.TEACHER:
                config_lib.check(reproduce.cell_config(table, column, row))


def test_the_papers_numbers_are_the_papers():
    """Copied by hand from Table 3."""
    column = PAPER['3']['columns'].index(GENRE)
    found = {row: PAPER['3']['rows'][row][column][0] for row in (SCRATCH, 'Teacher', 'LD', 'TD')}
    assert found == {SCRATCH: 1.0102, 'Teacher': 1.0120, 'LD': 1.0083, 'TD': 0.9965}


@pytest.mark.parametrize('name', PAPER)
def test_every_row_of_the_paper_has_every_column(name):
    for cells in PAPER[name]['rows'].values():
        assert len(cells) == len(PAPER[name]['columns'])
        assert all(isinstance(value, float) and (se is None or se >= 0) for value, se in cells)


@pytest.mark.parametrize('path', sorted(reproduce.TUNED.glob('*.json')), ids=lambda path: path.stem)
def test_tuned_values_are_of_known_knobs(path):
    declared = config_lib.flatten(common.get_config())
    for column, methods in reproduce.tuned(path.stem).items():
        if column == 'teacher':
            assert methods.keys() <= declared.keys()
            continue
        assert column in (*reproduce.GENRES, 'digits', 'cifar10')
        for method, values in methods.items():
            assert method in objectives.METHODS
            assert values.keys() <= declared.keys()


def test_a_row_wins_over_what_was_tuned_and_that_over_the_column(monkeypatch):
    tuned = {
        'teacher': {'teacher.num_steps': 7},
        'War': {'td': {'td.rounds': 2, 'td.weights.state': 5.0, 'model.hidden': [8, 4], 'num_seeds': 3}},
        'Drama': {'td': {'td.rounds': 9}},
    }
    monkeypatch.setattr(reproduce, 'tuned', lambda name: tuned)
    table = reproduce.Table(
        'T',
        'movielens',
        {'one': {'dataset.genre': 'War', 'num_seeds': 4, 'batch_size': 32}},
        {'row': {'method': 'td', 'td.rounds': 1}},
        'row',
    )
    config = reproduce.cell_config(table, 'one', 'row')
    assert (config.td.rounds, config.td.weights.state, config.num_seeds, config.batch_size) == (1, 5.0, 3, 32)
    assert (config.teacher.num_steps, config.model.hidden) == (7, (8, 4))


def test_a_folders_name_says_the_config(small_config):
    root, config = pathlib.Path('root'), small_config()
    assert reproduce.run_folder(root, config) == reproduce.run_folder(root, small_config())
    assert reproduce.run_folder(root, config) != reproduce.run_folder(root, small_config(td__rounds=2))
    assert reproduce.run_folder(root, config).parent == root / 'digits'
    assert reproduce.run_folder(root, config).name == f'td-{reproduce.digest(config)}'


def test_a_teacher_is_shared_by_all_that_would_train_the_same(small_config):
    def teacher(**changes):
        shared = reproduce.shared_teacher_config(small_config(**changes))
        return reproduce.teacher_folder(pathlib.Path(), shared)

    assert teacher() == teacher(method='ld', num_steps=9, model__hidden=(4, 4), optimizer__learning_rate=0.1)
    assert teacher() != teacher(dataset__split='validation')
    assert teacher() != teacher(dataset__movie_oov_rate=0.3)
    assert teacher() != teacher(teacher__optimizer__learning_rate=0.1)


@pytest.fixture
def tiny(monkeypatch, small_config):
    """A table of two rows, and the names of the methods that were trained for it."""
    table = reproduce.Table(
        'Tiny',
        'digits',
        {'all': {}},
        {SCRATCH: {'method': 'supervised'}, 'LD': {'method': 'ld'}, 'Teacher': reproduce.TEACHER},
        SCRATCH,
    )
    trained, finish = [], loop.Loop.finish

    def counted(self):
        trained.append(self.config.method)
        return finish(self)

    monkeypatch.setattr(reproduce, 'TABLES', {'tiny': table})
    monkeypatch.setattr(reproduce, 'tuned', lambda name: {})
    # The teacher is of the student's classes, so that it has a score.
    monkeypatch.setattr(
        reproduce,
        'base_config',
        lambda name: small_config(teacher__dataset__classes=(5, 6, 7, 8, 9), teacher__labels='shared'),
    )
    monkeypatch.setattr(loop.Loop, 'finish', counted)
    return trained


def test_only_what_is_missing_is_run(tiny, tmp_path):
    text = reproduce.make(['tiny'], ['Drama'], tmp_path, only_show=True)
    assert cells_of(text, 'LD')[1] == cells_of(text, 'Teacher')[1] == 'missing'
    assert list(tmp_path.iterdir()) == tiny == []

    text = reproduce.make(['tiny'], ['Drama'], tmp_path, only_show=False)
    assert tiny == ['supervised', 'supervised', 'ld']  # a student, the teacher, a student of it
    paths = list(tmp_path.rglob(workdir.RESULT))
    results = {path.parent.name.split('-')[0]: path for path in paths}
    assert len(paths) == 3
    assert set(results) == {'supervised', 'teacher', 'ld'}
    # The teacher was trained on the student's own task, so that its own run has its score, too.
    teacher = json.loads(results['teacher'].read_text())
    assert teacher['seeds'] == [0]
    assert cells_of(text, 'Teacher')[1] == f'{teacher["mean"]:.4f}'
    result = json.loads(results['ld'].read_text())
    assert cells_of(text, 'LD')[1] == f'{result["mean"]:.4f} ± {result["stderr"]:.4f}'
    assert cells_of(text, 'Teacher')[1] == f'{result["teacher"]:.4f}'
    scratch = json.loads(results['supervised'].read_text())
    difference = np.subtract(result['values'], scratch['values'])
    assert cells_of(text, 'LD')[2] == f'{difference.mean():+.4f} ± {scipy.stats.sem(difference):.4f}'

    assert reproduce.make(['tiny'], ['Drama'], tmp_path, only_show=False) == text
    assert reproduce.make(['tiny'], ['Drama'], tmp_path, only_show=True) == text
    assert len(tiny) == 3

    results['ld'].unlink()
    assert reproduce.make(['tiny'], ['Drama'], tmp_path, only_show=False) == text
    assert tiny[3:] == ['ld']


# --- What came of it -------------------------------------------------------------------------------


def test_the_difference_is_paired():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=5), rng.normal(size=5)
    result = {'values': list(ours), 'seeds': [0, 1, 2, 3, 4], 'mean': ours.mean()}
    baseline = {'values': list(theirs), 'seeds': [0, 1, 2, 3, 4], 'mean': theirs.mean()}
    mean, stderr = reproduce.paired_difference(result, baseline)
    assert mean == pytest.approx(np.mean(ours - theirs))
    # The statistic of a paired t-test is their quotient.
    assert mean / stderr == pytest.approx(scipy.stats.ttest_rel(ours, theirs).statistic)


def test_other_seeds_cannot_be_paired():
    mean, stderr = reproduce.paired_difference(fake(1.0), fake(1.25, seeds=(3, 4)))
    assert (mean, stderr) == (pytest.approx(-0.25), None)


def test_a_table_shows_the_papers_numbers_and_what_is_missing():
    table = reproduce.TABLES['3']
    rows = {row: None for row in table.rows} | {SCRATCH: fake(1.0), 'TD': fake(0.98)}
    rows['Teacher'] = {'mean': 0.9, 'stderr': None}
    text = reproduce.render('3', table, {GENRE: rows})
    assert cells_of(text, 'TD') == [
        'TD',
        '0.9800 ± 0.0100',
        '-0.0200 ± 0.0000',
        '0.9965 ± 0.0001',
        '-0.0137',
    ]
    assert cells_of(text, 'LD')[1:3] == ['missing', '']
    assert cells_of(text, 'LD')[3].startswith('1.0083')
    assert cells_of(text, 'Teacher')[1:3] == ['0.9000', '-0.1000']
    assert cells_of(text, SCRATCH) == [SCRATCH, '1.0000 ± 0.0100', '', '1.0102 ± 0.0003', '']
    assert 'test rmse, 2 seeds' in text
    assert f'### {GENRE} (Drama)' in text


def test_without_its_baseline_a_row_has_no_difference():
    table = reproduce.TABLES['3']
    text = reproduce.render('3', table, {GENRE: {row: None for row in table.rows} | {'TD': fake(0.98)}})
    assert cells_of(text, SCRATCH)[1:3] == ['missing', '']
    assert cells_of(text, 'TD')[1:3] == ['0.9800 ± 0.0100', '']


def test_the_teachers_row_is_what_another_row_says_of_it():
    table = reproduce.TABLES['3']

    def rows_of(scores):
        results = {row: None for row in table.rows if row != 'Teacher'}
        results |= {row: fake(1.0, teacher=score) for row, score in scores.items()}
        return reproduce.with_teacher(table, {GENRE: results})[GENRE]

    rows = rows_of({SCRATCH: None, 'LD': 0.8, 'TD': 0.8})
    assert rows['Teacher'] == {'mean': 0.8, 'stderr': None}
    assert rows['FD'] is None
    assert list(rows) == list(table.rows)
    assert rows_of({SCRATCH: None})['Teacher'] is None


def test_a_table_the_paper_does_not_have_shows_ours_alone():
    table = reproduce.TABLES['digits']
    text = reproduce.render('digits', table, {'5 to 9': {row: fake(0.9) for row in table.rows}})
    assert cells_of(text, 'LD') == ['LD', '0.9000 ± 0.0100', '+0.0000 ± 0.0000']
    assert 'paper' not in text


@pytest.mark.parametrize('name', DERIVED)
def test_a_derived_table_is_the_mean_improvement(name):
    table = DERIVED[name]
    assert list(table.rows) == list(PAPER[name]['rows'])
    assert [*table.groups, 'Avg.'] == PAPER[name]['columns']
    # An RMSE reduced by 10% in the dense column; by 0, 5, 10 and 15% in the sparse ones; an accuracy of 50%
    # raised by 20% in every image column.
    gains = {GENRE: 0.1, 'Genre 5': 0.0, 'Genre 6': 0.05, 'Genre 7': 0.1, 'Genre 8': 0.15}
    results = {}
    for group in table.groups.values():
        baseline_table, baseline_row = group.baseline
        for column in group.columns:
            for rows in table.rows.values():
                better = 2.0 * (1 - gains[column]) if column in gains else 0.6
                cells = results.setdefault(group.source, {}).setdefault(column, {})
                assert rows[group.source] in reproduce.TABLES[group.source].rows
                cells[rows[group.source]] = {'mean': better}
            cells = results.setdefault(baseline_table, {}).setdefault(column, {})
            cells[baseline_row] = {'mean': 2.0 if column in gains else 0.5}
    text = reproduce.render_derived(name, table, results)
    columns = PAPER[name]['columns']
    for row, paper in PAPER[name]['rows'].items():
        cells = cells_of(text, row)[1:]
        ours, theirs = dict(zip(columns, cells[::2], strict=True)), cells[1::2]
        assert (ours['ML(Dense)'], ours['ML(Sparse)'], ours['CIFAR10']) == ('+10.00', '+7.50', '+20.00')
        assert ours['Avg.'] == f'{(10 + 7.5 + 3 * 20) / 5:+.2f}'
        assert theirs == [f'{value:+.2f}' for value, _ in paper]

    sparse = table.groups['ML(Sparse)']
    results[sparse.source][sparse.columns[0]] = {}
    text = reproduce.render_derived(name, table, results)
    ours = dict(zip(columns, cells_of(text, row)[1::2], strict=True))
    assert (ours['ML(Dense)'], ours['ML(Sparse)'], ours['Avg.']) == ('+10.00', 'missing', 'missing')


def test_every_cell_that_is_needed_is_run_once():
    cells = reproduce.wanted_cells(['1', '3'], ['Drama'], ['CIFAR10'])
    assert len(cells) == len(set(cells))
    assert {cell for cell in cells if cell[0] == '4'} == {
        ('4', 'CIFAR10', row) for row in reproduce.TABLES['4'].rows
    }
    assert {column for table, column, _ in cells if table == '3'} == {GENRE}
    assert ('3', GENRE, SCRATCH) in cells
    assert not any(row == 'Teacher' for _, _, row in cells)


def test_a_dry_run_counts_what_is_missing(tmp_path):
    text = reproduce.plan(['6'], ['Drama'], ['CIFAR10'], tmp_path, device_tflops=50.0)
    _, _, *rows, _, total = text.splitlines()
    cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]
    assert [(row[0].split(', ')[2], row[1]) for row in cells] == [
        (row, 'missing') for row in reproduce.TABLES['6'].rows
    ]
    operations = [float(row[5]) for row in cells]
    for row in cells:
        assert float(row[5]) == pytest.approx(float(row[2]) * int(row[3]) * int(row[4]), rel=0.01)
        assert float(row[6]) == pytest.approx(float(row[5]) / 50e12 / 3600, rel=0.01)
    # Every round costs more; a student of 4 blocks and a teacher of 12, at 384 pixels.
    assert 5e17 < operations[0] < operations[1] < operations[2] < 2e18
    assert float(total.split()[3]) == pytest.approx(sum(operations), rel=0.01)
    assert list(tmp_path.iterdir()) == []


# --- The command -----------------------------------------------------------------------------------


def test_genres_leave_their_columns():
    table = reproduce.TABLES['3']
    assert reproduce.selected_columns(table, ['War', 'Drama']) == ['Genre 1', 'Genre 8']
    assert reproduce.selected_columns(reproduce.TABLES['digits'], ['War']) == ['5 to 9']


def start(*flags):
    """A real process of the command."""
    return subprocess.Popen(
        [sys.executable, '-m', 'td_jax.reproduce', *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(reproduce.__file__).parents[1],
        env=os.environ,
    )


def test_an_unknown_table_is_one_line_with_the_known_ones(tmp_path):
    process = start('--tables=33', f'--workdir={tmp_path / "t"}')
    out, err = process.communicate()
    assert (process.returncode, out) == (2, '')
    (line,) = err.splitlines()
    assert (
        line == f"td_jax: --tables '33' is not known. Did you mean 3? Known: {', '.join(reproduce.TABLES)}."
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_genre_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        config_lib.UserError, match=r'--genres .Wra. is not known\. Did you mean War\?.*Drama'
    ):
        reproduce.make(['3'], ['Drama', 'Wra'], tmp_path, only_show=False)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_what_it_shows_unless_told_only_to_show(tmp_path):
    root, table = tmp_path / 'runs', reproduce.TABLES['digits']
    configs = [reproduce.cell_config(table, '5 to 9', row) for row in table.rows]
    shared = reproduce.shared_teacher_config(configs[-1])
    teacher = reproduce.teacher_folder(root, shared)
    runs = {reproduce.run_folder(root, config): config for config in configs}
    for folder, config in {teacher: config_lib.teacher_run(shared), **runs}.items():
        if config.method != 'supervised':
            config.teacher.checkpoint = str(teacher)
        result = dict.fromkeys(finished.RESULT_KEYS) | fake(0.9, teacher=None) | {'steps': config.num_steps}
        folder.mkdir(parents=True)
        workdir.write(folder / workdir.CONFIG, config_lib.to_json(config))
        workdir.write(folder / workdir.RESULT, json.dumps(result))
    before = sorted(root.rglob('*'))

    # Everything is there, so that the first has nothing to run; nothing is there for the second.
    written = start('--tables=digits', f'--workdir={root}')
    shown = start('--tables=digits', f'--workdir={tmp_path / "empty"}', '--only_show')
    (text, _), (missing, _) = outputs = written.communicate(), shown.communicate()
    assert (written.returncode, shown.returncode) == (0, 0)
    assert [err for _, err in outputs] == ['', '']
    assert cells_of(text, 'TD') == ['TD', '0.9000 ± 0.0100', '+0.0000 ± 0.0000']
    assert cells_of(missing, 'TD') == ['TD', 'missing', '']
    assert (root / 'tables_digits.md').read_text() + '\n' == text
    assert sorted(root.rglob('*')) == sorted([*before, root / 'tables_digits.md'])
    assert list(tmp_path.iterdir()) == [root]
