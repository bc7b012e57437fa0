"""The tables as data: rows, columns, and the cells that they need."""

import json

import pytest

from td_jax import config as config_lib
from td_jax.configs import common, public_cnn_cifar10
from td_jax.errors import UserError
from td_jax.method import objectives
from td_jax.reproduction import cells, tables
from td_jax.training import dispatch

PAPER = json.loads(tables.PAPER.read_text())['tables']
WITH_RUNS = {name: t for name, t in tables.TABLES.items() if isinstance(t, tables.Table)}
GENRE, SCRATCH = 'Genre 1', 'Train from scratch'


@pytest.mark.parametrize('name', WITH_RUNS)
def test_a_table_is_made_of_what_there_is(name, monkeypatch):
    table = WITH_RUNS[name]
    declared = config_lib.flatten(common.get_config())
    by_row = table.variants, table.copied, table.compute_matched_to, table.hyperparameters_of, table.chosen_by
    for rows in (*by_row, table.baselines, table.repeated):
        assert rows.keys() <= table.rows.keys()
    assert set(table.variants.values()) <= tables.VARIANTS.keys()
    assert {column for by in table.chosen_by.values() for column in by.columns} <= set(tables.GENRES)
    others = *table.compute_matched_to.values(), *table.hyperparameters_of.values(), *table.baselines.values()
    assert {*others, *(row for rows in table.repeated.values() for row in rows)} <= table.rows.keys()
    if any(by.sampler_seed or by.columns for by in table.chosen_by.values()):
        # As if the choices of other sampler seeds, and of War alone, were the usual ones.
        tuned = cells.read_tuned

        def repeat_choices(module):
            choices = tuned(module)
            others = ('sampler_seed_1', 'sampler_seed_2', 'War')
            return choices | {f'{key}_{other}': choices[key] for key in choices for other in others}

        monkeypatch.setattr(cells, 'read_tuned', repeat_choices)
    # Operations are counted from the data, which may be missing here.
    monkeypatch.setattr(cells, 'operations', lambda config: 3 if config.method == 'td' else 2)
    for change in (*table.columns.values(), *table.rows.values()):
        if change not in (tables.TEACHER, tables.PROBE):
            assert change.keys() <= declared.keys()
    assert table.baseline in table.rows
    if name in PAPER:
        assert set(table.columns) <= set(PAPER[name]['columns'])
        assert set(table.rows) <= set(PAPER[name]['rows'])
    for column in table.columns:
        for row in filter(table.is_run, table.rows):
            config_lib.check(cells.cell_config(table, column, row))


@pytest.mark.parametrize('name', WITH_RUNS)
def test_students_have_one_teacher_or_each_its_own(name):
    """Students that share a teacher are not independent; on MovieLens there are ten of each."""
    table = WITH_RUNS[name]
    assert table.teachers in (1, table.students)
    if table.config == 'movielens':
        assert (table.students, table.teachers) == (10, 10)


def test_every_method_has_a_row():
    for names in (('3x', '4x'), ('digits_x',), ('4x_small',), ('public_vit_x',), ('public_cnn_x',)):
        rows = [change for name in names for change in tables.TABLES[name].rows.values()]
        assert {change['method'] for change in rows if isinstance(change, dict)} == objectives.METHODS.keys()


def test_a_table_with_more_rows_has_those_of_the_table():
    """The common rows have the same runs, so nothing is trained twice."""
    for name, other in (('3', '3x'), ('4', '4x'), ('digits', 'digits_x'), ('4_small', '4x_small')):
        smaller_table, larger_table = tables.TABLES[name], tables.TABLES[other]
        assert smaller_table.rows.items() <= larger_table.rows.items()
        for column in smaller_table.columns:
            assert smaller_table.columns[column] == larger_table.columns[column]
            for row, change in smaller_table.rows.items():
                if change != tables.TEACHER:
                    configs = (
                        cells.cell_config(table, column, row) for table in (smaller_table, larger_table)
                    )
                    assert len({config_lib.digest(config) for config in configs}) == 1


@pytest.mark.parametrize('name', ['public_vit', 'public_cnn'])
def test_a_table_of_a_public_teacher_has_five_searches_and_another_has_all(name):
    """Rows without a search of their own are controls and numbers of rounds of TD."""
    smaller_table, larger_table = tables.TABLES[name], tables.TABLES[f'{name}_x']
    assert smaller_table.rows.items() <= larger_table.rows.items()
    assert smaller_table.columns == larger_table.columns
    searched = {
        cells.tuned_name(smaller_table, row) for row in smaller_table.rows if smaller_table.is_run(row)
    }
    assert searched == {'supervised', 'ld', 'fitnet', 'td', 'td_ld'}
    for row in ('LD', 'TD, 1 round', 'TD + LD'):
        runs = [
            cells.run_names(cells.runs_of(table, '50 labels per class', row, {}))
            for table in (smaller_table, larger_table)
        ]
        assert runs[0] == runs[1]


def test_hyperparameters_chosen_on_war_are_compared_with_the_cells_of_the_other_table():
    """The usual rows have the runs of Table 3; the others have other hyperparameters."""
    war, other = tables.TABLES['war_user'], tables.TABLES['3x_user']
    assert war.columns == {'Genre 8': {'dataset.genre': 'War', 'dataset.split_by': 'user'}}
    usual_rows = [row for row in war.rows if row not in war.chosen_by]
    assert usual_rows == [SCRATCH, 'LD', 'FD', 'FitNet', 'Hybrid', 'TD', 'TD + LD']
    assert [f'{row}, chosen on War' for row in usual_rows] == list(war.chosen_by)
    for row in usual_rows:
        own = f'{row}, chosen on War'
        assert war.rows[own] == war.rows[row] == other.rows[row]
        assert cells.tuned_name(war, own) == cells.tuned_name(war, row)
        runs = [cells.run_names(cells.runs_of(table, 'Genre 8', row)) for table in (war, other)]
        assert runs[0] == runs[1]


def test_reduced_scale_images_are_those_of_the_paper_with_few_labels():
    for name in ('4', '4x', '6', '9'):
        reduced_table, rows = tables.TABLES[f'{name}_small'], tables.TABLES[name].rows
        assert reduced_table.rows == rows
        for count in (50, 500):
            run = cells.cell_config(reduced_table, f'{count} images per class', list(rows)[-1])
            assert (run.dataset.name, run.dataset.examples_per_class) == ('cifar10', count)
            assert not set(run.dataset.classes) & set(run.teacher.dataset.classes)
            runs = cells.runs_of(reduced_table, f'{count} images per class', list(rows)[-1])
            assert [(run.seed, run.teacher.seed, run.num_seeds) for run in runs] == [
                (i, i, 1) for i in range(5)
            ]


@pytest.mark.parametrize('name', ['public_vit', 'public_cnn'])
def test_a_public_teacher_has_all_students_with_and_without_unlabelled_images(name):
    with_rest, labelled = tables.TABLES[name], tables.TABLES[f'{name}_labelled']
    assert with_rest.rows == labelled.rows
    for count in (10, 50, 500):
        column = f'{count} labels per class'
        for table, unlabelled in ((with_rest, 'rest'), (labelled, '')):
            (run,) = cells.runs_of(table, column, 'TD', {})
            assert (run.num_seeds, run.dataset.examples_per_class) == (5, count)
            assert (run.dataset.unlabelled, run.dataset.classes, run.dataset.test_part) == (
                unlabelled,
                (),
                'all',
            )
            assert run.teacher.pretrained
        # Both have the same students without distillation.
        assert (
            len(
                {
                    cells.run_name(*cells.runs_of(t, column, 'No distillation', {}))
                    for t in (with_rest, labelled)
                }
            )
            == 1
        )
    rounds = [
        cells.cell_config(with_rest, column, f'TD, {n} round{s}', {}).td.rounds
        for n, s in ((0, 's'), (1, ''), (2, 's'))
    ]
    assert rounds == [0, 1, 2]
    # Hyperparameters are those of the setting.
    choices = {
        'cifar10_unlabelled': {'td': {'td.weights.state': 7.0}},
        'cifar10': {'td': {'td.weights.state': 3.0}},
    }
    weights = [
        cells.cell_config(table, column, 'TD', choices).td.weights.state for table in (with_rest, labelled)
    ]
    assert weights == [7.0, 3.0]


def test_an_untrained_public_teacher_is_its_architecture():
    run = cells.cell_config(tables.TABLES['public_cnn'], '50 labels per class', 'TD, untrained teacher', {})
    assert (run.teacher.pretrained, run.teacher.control, run.teacher.model.name) == (
        '',
        'untrained',
        'efficientnet',
    )
    config_lib.check(run)
    # The students of the other start from the teacher's blocks.
    assert not any('untrained' in row for row in tables.TABLES['public_vit'].rows)


def test_no_distillation_also_has_the_views_of_students_with_a_teacher():
    """All else is as without them: no term has a weight, and the hyperparameters are the same."""
    table = tables.TABLES['public_cnn']
    choices = {
        'cifar10_unlabelled': {
            'supervised': {'model.dropout': 0.4, 'num_steps': 5},
            'ld': {'ld.weights.logits': 7.0, 'num_steps': 9},
        }
    }
    control, plain, ld = (
        cells.cell_config(table, '50 labels per class', row, choices)
        for row in ('No distillation, fixed views', 'No distillation', 'LD')
    )
    assert (control.num_steps, control.model.dropout, ld.num_steps) == (5, 0.4, 9)
    changed = config_lib.differences(control, json.loads(config_lib.to_json(plain)))
    assert {key: value for key, (_, value) in changed.items()} == {'method': 'ld', 'ld.weights.logits': 0.0}
    assert objectives.active_terms(control) == []
    teacher = object()
    assert dispatch.count_views(control, teacher) == dispatch.count_views(ld, teacher) == 39
    # As many as the steps of the config show a labelled image, rounded up.
    config = public_cnn_cifar10.get_config()
    for count, change in table.columns.items():
        shown = config.num_steps * config.batch_size / (10 * int(count.split()[0]))
        assert 0 <= change['teacher.views'] - shown < 1
    assert not objectives.reads_teacher(plain) and dispatch.count_views(plain, None) == 0
    assert 'No distillation, fixed views' not in tables.TABLES['public_vit'].rows


def test_the_papers_numbers_are_the_papers():
    """Copied by hand from Table 3."""
    column = PAPER['3']['columns'].index(GENRE)
    actual = {row: PAPER['3']['rows'][row][column][0] for row in (SCRATCH, 'Teacher', 'LD', 'TD')}
    assert actual == {SCRATCH: 1.0102, 'Teacher': 1.0120, 'LD': 1.0083, 'TD': 0.9965}


@pytest.mark.parametrize('name', PAPER)
def test_every_row_of_the_paper_has_every_column(name):
    for row in PAPER[name]['rows'].values():
        assert len(row) == len(PAPER[name]['columns'])
        assert all(isinstance(value, float) and (se is None or se >= 0) for value, se in row)


def test_every_cell_that_is_needed_is_run_once():
    cells_needed = tables.wanted_cells(['1', '3'], ['Drama'], ['CIFAR10'])
    assert len(cells_needed) == len(set(cells_needed))
    assert {cell for cell in cells_needed if cell[0] == '4'} == {
        ('4', 'CIFAR10', row) for row in tables.TABLES['4'].rows
    }
    assert {column for table, column, _ in cells_needed if table == '3'} == {GENRE}
    assert ('3', GENRE, SCRATCH) in cells_needed
    assert not any(row == 'Teacher' for _, _, row in cells_needed)


def test_genres_leave_their_columns():
    table = tables.TABLES['3']
    assert tables.selected_columns(table, ['War', 'Drama']) == ['Genre 1', 'Genre 8']
    assert tables.selected_columns(tables.TABLES['digits'], ['War']) == ['5 to 9']


@pytest.mark.parametrize(
    ('names', 'genres', 'datasets', 'text'),
    [
        (['33'], ['Drama'], ['CIFAR10'], "--tables '33' is not known. Did you mean 3? Known: "),
        (['3'], ['Drama', 'Wra'], ['CIFAR10'], "--genres 'Wra' is not known. Did you mean War? Known: Drama"),
        (['3'], ['Drama'], ['CIFAR1'], "--datasets 'CIFAR1' is not known. Did you mean CIFAR10"),
        (['3', 'war_user'], ['Drama'], ['CIFAR10'], 'table war_user has no column of --genres=Drama and '),
        (['needs'], ['Comedy'], ['CIFAR10'], 'table needs has no column of --genres=Comedy and --datasets='),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(names, genres, datasets, text):
    with pytest.raises(UserError) as error_info:
        tables.check_names(names, genres, datasets)
    assert str(error_info.value).startswith(text)


@pytest.mark.parametrize(
    ('names', 'flags'),
    [
        (['3'], ['datasets']),
        (['2_user', 'war_user'], ['datasets']),
        (['4'], ['genres']),
        (['1'], []),
        (['3', '4'], []),
        (['digits', '4_small'], ['genres', 'datasets']),
    ],
)
def test_flags_that_select_no_column_are_known(names, flags):
    assert tables.flags_without_columns(names) == flags


def test_three_searches_are_those_of_the_main_rows(monkeypatch):
    """The usual rows have the runs of Table 3; the others the choices and the baseline of their search."""
    settings = ('movielens_by_user', 'movielens_by_user_sampler_seed_1', 'movielens_by_user_sampler_seed_2')
    choices = {
        setting: {name: {'num_steps': 100 + place} for name in ('supervised', 'ld', 'td', 'td_ld')}
        for place, setting in enumerate(settings)
    }
    monkeypatch.setattr(cells, 'read_tuned', lambda name: choices)
    table, other = tables.TABLES['3_searches_user'], tables.TABLES['3x_user']
    assert table.columns == other.columns
    for row in (SCRATCH, 'LD', 'TD', 'TD + LD'):
        rows = [row, *(f'{row} (sampler seed {seed})' for seed in (1, 2))]
        runs = [cells.cell_config(table, 'Genre 8', one) for one in rows]
        assert [run.num_steps for run in runs] == [100, 101, 102]
        assert {run.method for run in runs} == {table.rows[row]['method']}
        assert {run.td.weights.logits for run in runs} == {float(row == 'TD + LD')}
        assert cells.run_names(runs[:1]) == cells.run_names([cells.cell_config(other, 'Genre 8', row)])
        baselines = [SCRATCH, *(f'{SCRATCH} (sampler seed {seed})' for seed in (1, 2))]
        assert [table.baseline_of(one) for one in rows] == ([SCRATCH] * 3 if row == SCRATCH else baselines)
    # All are compared with one row.
    with_ld_baseline = tables.with_baseline('3_searches_user', 'LD')
    assert {with_ld_baseline.baseline_of(row) for row in with_ld_baseline.rows} == {'LD'}


def test_a_sweep_has_every_weight_with_every_number_of_rounds():
    table = tables.TABLES['interact_user']
    runs = {row: cells.cell_config(table, 'Genre 8', row) for row in table.rows}
    rounds_and_weights = [
        (run.td.rounds, run.td.weights.interact) for row, run in runs.items() if row != table.baseline
    ]
    assert rounds_and_weights == [(rounds, 10.0**power) for rounds in (1, 2, 3) for power in range(-1, 4)]
    assert runs[table.baseline].td.rounds == 0
    # All other hyperparameters are as chosen, and runs are on validation data.
    alike = [{**config_lib.flatten(run), 'td.rounds': 0, 'td.weights.interact': 0} for run in runs.values()]
    assert all(one == alike[0] for one in alike)
    assert alike[0]['dataset.split'] == 'validation'
