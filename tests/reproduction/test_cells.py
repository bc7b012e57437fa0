"""The cells of a table: their configs and folders, and which runs are missing."""

import json
import os
import pathlib

import numpy as np
import pytest
import scipy.stats
from etils import epath

from td_jax import config as config_lib
from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.files import metric_log, workdir
from td_jax.method import objectives
from td_jax.reproduction import cells, errors, jobs, render, tables, tuning
from td_jax.training import loop
from td_jax.training.run import train

SCRATCH = 'Train from scratch'


def find_cells(text, row):
    """The cells of a row of a Markdown table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {row} |')]
    return [cell.strip() for cell in line.strip('|').split('|')]


@pytest.mark.parametrize('path', sorted(cells.TUNED.glob('*.json')), ids=lambda path: path.stem)
def test_tuned_values_are_of_known_options(path):
    declared = config_lib.flatten(common.get_config())
    config = cells.base_config(path.stem)
    for setting, chosen in cells.read_tuned(path.stem).items():
        by, _, seed = setting.partition('_sampler_seed_')
        usual, *columns = by.removeprefix('movielens_by_').split('_')
        if config.dataset.name == 'movielens':
            config.dataset.split_by = usual
            config_lib.check(config)
        assert setting == cells.setting(config, tables.ChosenBy(tuple(columns), int(seed or 0)))
        assert set(columns) <= tuning.CONFIGS[path.stem].columns.keys()
        assert chosen.get(cells.SEARCHED, {}).keys() <= chosen.keys()
        for name, values in chosen.items():
            if name == cells.SEARCHED:
                continue
            assert name in (tuning.TEACHER, *objectives.METHODS, *tables.VARIANTS)
            assert values.keys() <= declared.keys()


def test_a_row_wins_over_what_was_tuned_and_that_over_the_column(monkeypatch):
    tuned = {
        'movielens_by_user': {
            'teacher': {'teacher.num_steps': 7},
            'td': {'td.rounds': 2, 'td.weights.state': 5.0, 'model.hidden': [8, 4], 'num_seeds': 3},
            'ld': {'td.rounds': 8},
        },
        'movielens_by_time': {'td': {'td.rounds': 9}},
    }
    monkeypatch.setattr(cells, 'read_tuned', lambda name: tuned)
    table = tables.Table(
        'T',
        'movielens',
        {'one': {'dataset.split_by': 'user', 'num_seeds': 4, 'batch_size': 32}},
        {'row': {'method': 'td', 'td.rounds': 1}},
        'row',
    )
    config = cells.cell_config(table, 'one', 'row')
    assert (config.td.rounds, config.td.weights.state, config.num_seeds, config.batch_size) == (1, 5.0, 3, 32)
    assert (config.teacher.num_steps, config.model.hidden) == (7, (8, 4))


def test_a_variant_is_tuned_under_its_own_name(monkeypatch):
    """It starts from VARIANTS and takes the choices under its own name, not those of its method."""
    tuned = {'movielens_by_time': {'td': {'td.rounds': 3, 'td.weights.state': 5.0}}}
    monkeypatch.setattr(cells, 'read_tuned', lambda name: tuned)
    war = tables.TABLES['3x']
    config = cells.cell_config(war, 'Genre 8', 'TD + LD')
    assert (config.method, config.td.weights.logits, config.td.rounds) == ('td', 1.0, 1)
    tuned['movielens_by_time']['td_ld'] = {'td.weights.logits': 7.0, 'td.rounds': 2}
    config = cells.cell_config(war, 'Genre 8', 'TD + LD')
    assert (config.td.weights.logits, config.td.rounds) == (7.0, 2)
    config = cells.cell_config(war, 'Genre 8', 'TD')
    assert (config.td.weights.logits, config.td.rounds, config.td.weights.state) == (0.0, 3, 5.0)


def test_a_row_may_have_hyperparameters_chosen_on_other_columns(monkeypatch):
    """The row has the common teacher; without its own choices it is refused, not run with the usual ones."""
    tuned = {
        'movielens_by_user': {
            'teacher': {'teacher.num_steps': 7},
            'td': {'td.rounds': 3, 'td.weights.state': 5.0, 'num_steps': 11},
        },
        'movielens_by_time_War': {'td': {'td.rounds': 9}},
    }
    monkeypatch.setattr(cells, 'read_tuned', lambda name: tuned)
    war = tables.TABLES['war_user']
    own = 'TD, chosen on War'
    message = (
        r'^td_jax/configs/tuned/ has no hyperparameters of td under .*_War; .* --columns=War --methods=td '
    )
    with pytest.raises(UserError, match=message):
        cells.runs_of(war, 'Genre 8', own)
    tuned['movielens_by_user_War'] = {'ld': {'num_steps': 3}}
    with pytest.raises(UserError, match=message):
        cells.runs_of(war, 'Genre 8', own)
    tuned['movielens_by_user_War']['td'] = {'td.rounds': 2, 'num_steps': 13}
    usual_config, config = (cells.cell_config(war, 'Genre 8', row) for row in ('TD', own))
    assert (usual_config.td.rounds, usual_config.td.weights.state, usual_config.num_steps) == (3, 5.0, 11)
    default = cells.base_config('movielens').td.weights.state
    assert (config.td.rounds, config.td.weights.state, config.num_steps) == (2, default, 13)
    assert usual_config.teacher.num_steps == config.teacher.num_steps == 7
    assert (config.dataset.genre, config.dataset.split_by) == ('War', 'user')


def test_what_is_not_of_one_search_is_refused(monkeypatch):
    """Choices with other trials, another optimizer or teacher, or of an earlier version."""
    record = {'trials': 12, 'seeds': 3, 'steps': 800, 'fixed': {'teacher.num_steps': 7}}
    searched = {
        'supervised': record,
        'td': record | {'fixed': {'teacher.num_steps': 7, 'model.dropout': 0.2}},
    }
    of_user = {
        'teacher': {'teacher.num_steps': 7},
        'supervised': {'model.dropout': 0.2, 'num_steps': 5},
        'td': {'model.dropout': 0.2, 'td.rounds': 3, 'num_steps': 11},
        'searched': searched,
    }
    monkeypatch.setattr(cells, 'read_tuned', lambda name: {'movielens_by_user': of_user})
    table = tables.TABLES['3_user']
    assert cells.cell_config(table, 'Genre 8', 'TD').num_steps == 11
    # Options that were not searched stay at their defaults.
    assert cells.cell_config(table, 'Genre 8', 'LD').teacher.num_steps == 7
    changes = (
        {'searched': searched | {'td': searched['td'] | {'trials': 40}}},
        {'searched': searched | {'td': searched['td'] | {'steps': 1600}}},
        {'searched': {'supervised': record}},
        {'searched': {'td': searched['td']}},
        {'supervised': {'model.dropout': 0.4, 'num_steps': 5}},
        {'teacher': {'teacher.num_steps': 8}},
    )
    for change in changes:
        monkeypatch.setattr(
            cells, 'read_tuned', lambda name, change=change: {'movielens_by_user': of_user | change}
        )
        with pytest.raises(UserError, match='of td under movielens_by_user that are not of the search of'):
            cells.cell_config(table, 'Genre 8', 'TD')


def test_controls_differ_from_their_method_in_their_teacher_alone():
    table, changes_by_row = tables.TABLES['3x'], {}
    for column in ('Genre 1', 'Genre 8'):
        for row in table.rows:
            method, _, control = row.partition(', ')
            if control and method in ('TD', 'LD'):
                usual_config = json.loads(config_lib.to_json(cells.cell_config(table, column, method)))
                changed = config_lib.differences(cells.cell_config(table, column, row), usual_config)
                changes_by_row[column, row] = {key: value for key, (_, value) in changed.items()}
    assert changes_by_row == {
        (column, row): changes
        for column, genre in (('Genre 1', 'Drama'), ('Genre 8', 'War'))
        for row, changes in {
            'TD, untrained teacher': {'teacher.control': 'untrained'},
            'TD, shuffled teacher': {'teacher.control': 'shuffled'},
            'LD, shuffled teacher': {'teacher.control': 'shuffled'},
            'TD, teacher of equal size': {
                'teacher.seed': 100,
                'teacher.model.hidden': [128, 64],
                'teacher.dataset.genre': genre,
            },
        }.items()
    }


def test_controls_of_td_with_logits_differ_from_it_in_one_thing():
    table = tables.TABLES['3x_user']
    with_logits = json.loads(config_lib.to_json(cells.cell_config(table, 'Genre 8', 'TD + LD')))
    changes_by_row = {}
    for row in table.rows:
        if row.startswith('TD + LD, '):
            changed = config_lib.differences(cells.cell_config(table, 'Genre 8', row), with_logits)
            changes_by_row[row] = {key: value for key, (_, value) in changed.items()}
    assert changes_by_row == {
        'TD + LD, no interactions': {'td.rounds': 0},
        'TD + LD, shuffled states': {'teacher.control': 'shuffled_states'},
    }


def test_a_row_may_have_the_hyperparameters_of_another_but_its_weights():
    tuned = {
        'movielens_by_user': {
            'supervised': {'model.dropout': 0.4, 'num_steps': 5},
            'td': {'model.dropout': 0.2, 'num_steps': 9, 'td.weights.state': 7.0, 'td.rounds': 3},
            'td_ld': {'num_steps': 8, 'td.weights.logits': 7.0},
            'ld': {'optimizer.learning_rate': 0.5, 'ld.weights.logits': 7.0},
        }
    }
    table, changes_by_row = tables.TABLES['3x_user'], {}
    scratch = json.loads(config_lib.to_json(cells.cell_config(table, 'Genre 8', SCRATCH, {})))
    for row in table.rows:
        if row.startswith(SCRATCH) and row not in table.compute_matched_to:
            changed = config_lib.differences(cells.cell_config(table, 'Genre 8', row, tuned), scratch)
            changes_by_row[row] = {key: value for key, (_, value) in changed.items()}
    assert changes_by_row == {
        SCRATCH: {'model.dropout': 0.4, 'num_steps': 5},
        f"{SCRATCH}, LD's hyperparameters": {'optimizer.learning_rate': 0.5},
        f"{SCRATCH}, TD's hyperparameters": {'model.dropout': 0.2, 'num_steps': 9},
        f"{SCRATCH}, TD + LD's hyperparameters": {'num_steps': 8},
    }


def test_controls_of_images_differ_in_one_thing():
    tuned = {
        'cifar10': {
            'supervised': {'model.dropout': 0.4, 'num_steps': 5},
            'td': {'model.dropout': 0.2, 'num_steps': 9, 'td.weights.state': 7.0, 'td.rounds': 3},
        }
    }
    changes_by_row = {}
    for row, compared_with in (
        ("No distillation, TD's hyperparameters", 'No distillation'),
        ('TD, shuffled teacher', 'TD'),
    ):
        a, b = (
            cells.cell_config(tables.TABLES['4x_small'], '50 images per class', name, tuned)
            for name in (row, compared_with)
        )
        changed = config_lib.differences(a, json.loads(config_lib.to_json(b)))
        changes_by_row[row] = {key: value for key, (_, value) in changed.items()}
    assert changes_by_row == {
        "No distillation, TD's hyperparameters": {'model.dropout': 0.2, 'num_steps': 9},
        'TD, shuffled teacher': {'teacher.control': 'shuffled'},
    }


def count_products(config):
    """Multiplications and additions of a student's step on digits, by hand: [batch, m] @ [m, n] thrice."""
    inputs, (first, second), outputs = 64, config.model.hidden, 5
    forward = inputs * first + first * second + second * outputs
    # Backward, one product for the kernel and one for the input, except for the first layer's input.
    return 2 * config.batch_size * config.num_seeds * (3 * forward - inputs * first)


def test_operations_are_those_of_the_products(small_config):
    config = small_config(method='supervised')
    assert cells.operations(config) == count_products(config)
    # RKD needs the inner products of 8 examples with 3 and 11 numbers; the teacher's states are precomputed.
    related = count_products(config) + 2 * 2 * 8 * 8 * (3 + 11 + 2 * 3)
    assert cells.operations(small_config(method='rkd')) == related
    varied = 2 * 2 * 8 * (64 * 7 + 7 * 11 + 11 * 5)
    assert cells.operations(small_config(method='rkd', teacher__inputs='varied')) == related + varied


def test_a_row_may_have_the_operations_of_another(monkeypatch, small_config):
    table = tables.Table(
        'T',
        'digits',
        {'all': {}},
        {'scratch': {'method': 'supervised'}, 'TD': {'method': 'td', 'td.rounds': 2, 'num_steps': 50}},
        'TD',
        compute_matched_to={'scratch': 'TD'},
    )
    monkeypatch.setattr(cells, 'read_tuned', lambda name: {})
    monkeypatch.setattr(cells, 'base_config', lambda name: small_config())
    scratch, td = (cells.cell_config(table, 'all', row) for row in ('scratch', 'TD'))
    whole = [config.num_steps * cells.operations(config) for config in (scratch, td)]
    assert scratch.num_steps > 50
    assert abs(whole[0] - whole[1]) <= cells.operations(scratch) / 2


def test_the_teacher_of_a_table_is_not_that_of_a_control():
    table, score = tables.TABLES['3x'], {'teacher': 0.5}
    controls = {
        row: {'teacher': 0.9} for row in table.rows if row.startswith('TD, ') and 'shuffled' not in row
    }
    rows = {row: None for row in table.rows if row != 'Teacher'} | controls
    assert render.fill_teacher(table, {'Genre 1': rows})['Genre 1']['Teacher'] is None
    assert render.fill_teacher(table, {'Genre 1': rows | {'TD': score}})['Genre 1']['Teacher']['mean'] == 0.5


def test_steps_that_train_the_parts_apart_come_before_those_that_were_tuned():
    table = tables.TABLES['8']
    together = cells.cell_config(table, 'Genre 1', 'Train together')
    apart = cells.cell_config(table, 'Genre 1', 'Train E, D separately')
    # Section 6.5: the student for 1000 steps, then encoders and decoders for 500 or 1000.
    assert apart.td.ramp_up == (1000, 500)
    assert apart.num_steps == together.num_steps + 1500
    assert config_lib.differences(apart, json.loads(config_lib.to_json(together))).keys() == {
        'td.ramp_up',
        'num_steps',
    }


def test_a_folders_name_says_the_config(small_config):
    root, config = pathlib.Path('root'), small_config()
    assert cells.run_folder(root, config) == cells.run_folder(root, small_config())
    assert cells.run_folder(root, config) != cells.run_folder(root, small_config(td__rounds=2))
    assert cells.run_folder(root, config).parent == root / 'digits'
    assert cells.run_folder(root, config).name == f'td-{config_lib.digest(config)}'


def test_a_teacher_is_shared_by_all_that_would_train_the_same(small_config):
    def get_teacher_folder(**changes):
        return cells.teacher_folder(pathlib.Path(), small_config(**changes))

    assert get_teacher_folder() == get_teacher_folder(
        method='ld', num_steps=9, model__hidden=(4, 4), optimizer__learning_rate=0.1
    )
    assert get_teacher_folder() == get_teacher_folder(
        td__rounds=5, communication__hidden=9, log_every=1, teacher__labels='auxiliary'
    )
    assert get_teacher_folder() != get_teacher_folder(dataset__split='validation')
    assert get_teacher_folder() == get_teacher_folder(
        dataset__movie_oov_rate=0.3
    )  # MovieLens alone has films
    assert get_teacher_folder() != get_teacher_folder(batch_size=4)
    assert get_teacher_folder() != get_teacher_folder(teacher__optimizer__learning_rate=0.1)
    validated = {'dataset__split': 'validation'}
    assert get_teacher_folder(**validated, eval_every=1) == get_teacher_folder(**validated, eval_every=3)


def test_a_shared_teacher_is_validated_at_its_end_alone(tmp_path, small_config):
    config = small_config(dataset__split='validation', eval_every=1, teacher__num_steps=4)
    folder = cells.share_teacher(epath.Path(tmp_path), config)
    lines = metric_log.read(folder)
    assert not [line for line in lines if line['step'] < 4 and 'validation_accuracy' in line]
    assert max(line['step'] for line in lines) == 4
    assert json.loads((folder / 'result.json').read_text())['steps'] == 4


def test_shards_have_each_run_once_and_few_teachers(tmp_path):
    root = epath.Path(tmp_path)
    columns = tables.TABLES['3'].columns
    runs = [
        run
        for column in list(columns)[:2]
        for row in (SCRATCH, 'LD', 'TD', SCRATCH)
        for run in cells.runs_of(tables.TABLES['3'], column, row)
    ]
    assert cells.share_of(root, runs, None) == runs
    parts = [cells.share_of(root, runs, jobs.Shard(index, 4)) for index in range(4)]
    names = [cells.run_name(run) for part in parts for run in part]
    assert len(names) == len(set(names)) == 2 * (1 + 10 + 10)
    assert set(names) == set(cells.run_names(runs))
    runs_with_teachers = [[run for run in part if cells.shares_teacher(run)] for part in parts]
    assert [len(part) for part in runs_with_teachers] == [10, 10, 10, 10]
    # Ten teachers of four students each.
    assert all(len(cells.own_teachers(root, part)) <= 4 for part in runs_with_teachers)


def test_a_process_gets_runs_of_one_program(monkeypatch, tmp_path):
    """The runs of a cell, whose teachers differ, have one program; other options or data make another."""
    tasks_by_kind = {}

    def record_tasks(function, tasks, count, folder, what, kinds=()):
        tasks_by_kind[what] = list(zip(tasks, kinds, strict=True)) if kinds else tasks

    monkeypatch.setattr(jobs, 'run_tasks', record_tasks)
    runs_of_cells = [
        cells.runs_of(tables.TABLES['5'], column, row)
        for column in ('Genre 1', 'Genre 8')
        for row in ('No interactions', '1 iteration')
    ]
    root = epath.Path(tmp_path)
    cells.run_missing(root, [run for runs in runs_of_cells for run in runs], 2)
    assert len(tasks_by_kind['teachers']) == 10
    assert [task for task, _ in tasks_by_kind['runs']] == cells._tasks(
        root, [r for runs in runs_of_cells for r in runs]
    )[::-1]
    kinds = [kind for _, kind in tasks_by_kind['runs']]
    assert len(kinds) == 40
    assert len({*kinds}) == 4
    assert [kinds[i : i + 10] for i in range(0, 40, 10)] == [[kinds[i]] * 10 for i in range(0, 40, 10)]


def test_only_teachers_that_are_trained_are_trained_first(small_config):
    """A public teacher exists already, and an untrained one has no run."""
    trained = small_config()
    others = (
        small_config(method='supervised'),
        small_config(teacher__control='untrained'),
        small_config(teacher__pretrained='teacher.npz'),
        small_config(method='ld'),  # the same teacher again
    )
    configs_of_teachers = cells.own_teachers(pathlib.Path('root'), [trained, *others])
    assert [cells.teacher_folder(pathlib.Path(), config) for config in configs_of_teachers] == [
        cells.teacher_folder(pathlib.Path(), trained)
    ]


@pytest.fixture
def trained_methods(monkeypatch, small_config, one_table):
    """The methods of the runs that were trained for a table of two rows, in order."""
    # The teacher has the student's classes, and so a score on them.
    one_table(
        {SCRATCH: {'method': 'supervised'}, 'LD': {'method': 'ld'}, 'Teacher': tables.TEACHER},
        lambda: small_config(teacher__dataset__classes=(5, 6, 7, 8, 9), teacher__labels='shared'),
    )
    trained, finish = [], loop.Loop.finish

    def finish_and_record(self):
        trained.append(self.config.method)
        return finish(self)

    monkeypatch.setattr(loop.Loop, 'finish', finish_and_record)
    return trained


def make_table(root, only_show):
    """The tiny table as Markdown."""
    results = cells.make(['tiny'], ['Drama'], ['CIFAR10'], root, only_show)
    return render.make(['tiny'], results, ['Drama'], ['CIFAR10'])


def test_only_what_is_missing_is_run(trained_methods, tmp_path):
    text = make_table(tmp_path, only_show=True)
    assert find_cells(text, 'LD')[2] == find_cells(text, 'Teacher')[2] == 'missing'
    assert list(tmp_path.iterdir()) == trained_methods == []

    text = make_table(tmp_path, only_show=False)
    # The teacher; its student, which takes longer and so is started first; the student without a teacher.
    assert trained_methods == ['supervised', 'ld', 'supervised']
    paths = list(tmp_path.rglob(workdir.RESULT))
    results = {path.parent.name.split('-')[0]: path for path in paths}
    assert len(paths) == 3
    assert set(results) == {'supervised', 'teacher', 'ld'}
    # The teacher was trained on the student's task, so its own run has the same score.
    teacher = json.loads(results['teacher'].read_text())
    assert teacher['seeds'] == [0]
    assert find_cells(text, 'Teacher')[2] == f'{teacher["mean"]:.4f}'
    result = json.loads(results['ld'].read_text())
    # Of two seeds: 12.7062 is t(0.975) of one degree of freedom.
    assert find_cells(text, 'LD')[1:3] == ['2', f'{result["mean"]:.4f} ± {12.7062 * result["stderr"]:.4f}']
    assert find_cells(text, 'Teacher')[2] == f'{result["teacher"]:.4f}'
    scratch = json.loads(results['supervised'].read_text())
    interval = scipy.stats.ttest_rel(result['values'], scratch['values']).confidence_interval()
    difference = np.subtract(result['values'], scratch['values']).mean()
    assert find_cells(text, 'LD')[3] == f'{difference:+.4f} ± {(interval.high - interval.low) / 2:.4f}'

    assert make_table(tmp_path, only_show=False) == text
    assert make_table(tmp_path, only_show=True) == text
    assert len(trained_methods) == 3

    results['ld'].unlink()
    assert make_table(tmp_path, only_show=False) == text
    assert trained_methods[3:] == ['ld']


def test_what_a_file_has_is_not_run_on_another_machine(trained_methods, tmp_path, small_config, monkeypatch):
    columns, here, there = (['Drama'], ['CIFAR10']), tmp_path / 'here', tmp_path / 'there'
    first = cells.make(['tiny'], *columns, here, only_show=False)
    path = epath.Path(tmp_path / 'errors.npz')
    del first['tiny']['all']['LD']
    errors.write(path, first)
    stored = errors.read(path)
    assert trained_methods == ['supervised', 'ld', 'supervised']
    # The row that is missing in the file needs its teacher; the other row needs nothing.
    second = cells.make(['tiny'], *columns, there, only_show=False, stored_results=stored)
    assert trained_methods[3:] == ['supervised', 'ld']
    assert [path.name.split('-')[0] for path in sorted((there / 'digits').iterdir())] == ['ld', 'teacher']
    assert second['tiny']['all'][SCRATCH] == stored['tiny']['all'][SCRATCH]
    assert second['tiny']['all']['LD']['runs'][0].startswith('digits/ld-')
    assert cells.cells_of_other_runs(second, stored) == []
    errors.write(path, errors.merge(stored, second))
    stored, text = errors.read(path), make_table(here, only_show=True)
    third = cells.make(['tiny'], *columns, tmp_path / 'nothing', only_show=False, stored_results=stored)
    assert render.make(['tiny'], third, *columns) == text
    assert not (tmp_path / 'nothing').exists()

    # With other options nothing of the file is used, and its cells are replaced.
    monkeypatch.setattr(cells, 'base_config', lambda name: small_config(num_steps=3))
    others = cells.make(['tiny'], *columns, there, only_show=True, stored_results=stored)
    assert others == {'tiny': {'all': {SCRATCH: None, 'LD': None}}}
    assert cells.cells_of_other_runs(others, stored) == [('tiny', 'all', SCRATCH), ('tiny', 'all', 'LD')]
    assert errors.merge(stored, others) == {'tiny': {'all': {}}}


def make_with_teachers_in_turn(only_show=False, processes=1, root=None):
    """The results of the tiny table's only column, with three students and two teachers per cell."""
    table = tables.TABLES['tiny']._replace(students=3, teachers=2)
    tables.TABLES['tiny'] = table
    return cells.make(['tiny'], ['Drama'], ['CIFAR10'], root, only_show, processes)['tiny']['all']


@pytest.mark.long
def test_students_have_teachers_in_turn(trained_methods, tmp_path):
    root = epath.Path(tmp_path / 'table')
    rows = make_with_teachers_in_turn(root=root)
    # Students without a teacher are one run; the students of each teacher are one run.
    assert sorted(trained_methods) == ['ld'] * 2 + ['supervised'] * 3
    distilled, scratch = rows['LD'], rows[SCRATCH]
    assert distilled['seeds'] == scratch['seeds'] == [0, 1, 2]
    assert distilled['teachers'] == [0, 1, 0]
    config = cells.cell_config(tables.TABLES['tiny'], 'all', 'LD')
    scores = set()
    for seed, value in enumerate(distilled['values']):
        config.seed, config.num_seeds, config.teacher.seed = seed, 1, seed % 2
        alone = train(config, epath.Path(tmp_path / f'{seed}'))
        assert value == alone['values'][0]
        scores.add(alone['teacher'])
    assert distilled['teacher'] == pytest.approx(np.mean(list(scores)))
    assert distilled['mean'] == pytest.approx(np.mean(distilled['values']))
    assert distilled['stderr'] == pytest.approx(scipy.stats.sem(distilled['values']))
    # The sums that the bootstrap draws from give the same values.
    errors = distilled['errors']
    np.testing.assert_allclose(errors['sums'].sum(axis=1) / errors['counts'].sum(), distilled['values'])
    assert make_with_teachers_in_turn(only_show=True, root=root)['LD']['values'] == distilled['values']


@pytest.mark.long
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason='two processes side by side need two cores')
def test_runs_side_by_side_are_those_one_after_the_other(trained_methods, tmp_path):
    alone = make_with_teachers_in_turn(root=epath.Path(tmp_path / 'alone'))
    together = make_with_teachers_in_turn(processes=2, root=epath.Path(tmp_path / 'together'))
    for row in (SCRATCH, 'LD'):
        for key in ('seeds', 'teachers', 'values'):
            assert alone[row][key] == together[row][key]


@pytest.mark.long
def test_a_dry_run_counts_what_is_missing(tmp_path):
    run_plan = cells.plan(['6'], ['Drama'], ['CIFAR10'], tmp_path)
    _, _, *rows, _, total = render.render_plan(run_plan, device_tflops=50.0).splitlines()
    cells_by_row = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]
    assert [(row[0].split(', ')[2], row[1]) for row in cells_by_row] == [
        (row, 'missing') for row in tables.TABLES['6'].rows
    ]
    operations = [float(row[5]) for row in cells_by_row]
    for row in cells_by_row:
        assert float(row[5]) == pytest.approx(float(row[2]) * int(row[3]) * int(row[4]), rel=0.01)
        assert float(row[6]) == pytest.approx(float(row[5]) / 50e12 / 3600, rel=0.01)
    # Every round adds operations; a student of 4 blocks and a teacher of 12, at 384 pixels.
    assert 5e17 < operations[0] < operations[1] < operations[2] < 2e18
    assert float(total.split()[3]) == pytest.approx(sum(operations), rel=0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_table_without_images_is_refused(tmp_path):
    for name in ('3', 'digits'):
        with pytest.raises(UserError, match=rf'^--dry_run counts runs on cifar10, .*; table {name} has runs'):
            cells.plan([name], ['Drama'], ['CIFAR10'], tmp_path)


def test_an_unknown_genre_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r'--genres .Wra. is not known\. Did you mean War\?.*Drama'):
        cells.make(['3'], ['Drama', 'Wra'], ['CIFAR10'], tmp_path, only_show=False)
    assert list(tmp_path.iterdir()) == []
