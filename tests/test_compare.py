"""Comparing variants of one config: rules by hand, and a real comparison."""

import concurrent.futures
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from etils import epath

from td_jax import compare
from td_jax import config as config_lib
from td_jax.configs import common, searches
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reporting import runs
from td_jax.reproduction import cells, jobs, summary, tuning, variants
from td_jax.training import dispatch, finished
from td_jax.training.run import train
from tests import forked

EFFORT = {'trials': 2, 'steps': 0, 'search_seeds': 2, 'seeds': 3, 'teachers': 0}


def make_plan(config, methods=('ld',), own=None, fixed=(), **effort):
    return variants.make_plan(config, methods, own or {}, fixed, **{**EFFORT, **effort})


# --- Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'arguments', 'message'),
    [
        ({'dataset__split': 'validation'}, {}, r'^dataset\.split is validation; leave it out'),
        ({}, {'methods': ('ldd',)}, r"^--methods 'ldd' is not known\. Did you mean ld\?"),
        ({}, {'methods': ('td_ld', 'td')}, r'^td_ld is searched on top of td and ld; name ld in --methods'),
        ({}, {'own': {'td': {'td.rounds': 2}}}, r'^--variants has td, a name that td_jax has itself'),
        (
            {},
            {'own': {'wide': {'td.round': 2}}},
            r'^--variants: wide: td\.round is not a key of the config\. Did you mean td\.rounds\?$',
        ),
        (
            {},
            {'own': {'wide': {'td.rounds': 'two'}}},
            r"^--variants: wide: td\.rounds is 'two', which is no",
        ),
        ({}, {'own': {'wide': {'batch_size': 0}}}, r'^batch_size is 0'),
        ({}, {'teachers': 4}, r'^--teachers is 4, but only 3 students have one'),
        ({'dataset__examples_per_class': 500}, {}, r'^dataset\.examples_per_class is 500; only'),
        # Of the two splits that a comparison has, a teacher of the one cannot teach on the other.
        ({'teacher__checkpoint': 'a'}, {}, r'^teacher\.checkpoint is a, but the search needs a teacher that'),
        ({}, {'methods': (), 'teachers': 2}, r'^--teachers is 2, but no variant trains a teacher; leave it'),
        # A search has 493 of the 627 training images, and 494 of the teacher's 630.
        (
            {'batch_size': 494, 'dataset__examples_per_class': 0},
            {},
            r'^batch_size is 494, but digits 5, 6, 7, 8, 9 has 493 training examples; lower',
        ),
        (
            {'batch_size': 495, 'dataset__classes': (), 'dataset__examples_per_class': 0},
            {},
            r'^batch_size is 495, but digits 0, 1, 2, 3, 4 has 494 training examples; lower',
        ),
        # The runs of the search are shorter than those of the config.
        (
            {'teacher__optimizer__warmup_steps': 3},
            {'steps': 3},
            r'^teacher\.optimizer\.warmup_steps takes 3 steps, but a run of the search has 3: raise',
        ),
        (
            {'num_steps': 20},
            {'steps': 5, 'own': {'late': {'method': 'td', 'td.ramp_up': (2, 4)}}},
            r'^td\.ramp_up takes 6 steps, but a run of the search has 5: raise --steps or lower td\.ramp_up',
        ),
        (
            {},
            {'own': {'wide': {'method': 'td', 'communication.grid': None}}},
            r"^communication\.grid is None; it must be a value like 'student'",
        ),
        *(
            ({}, {'own': {'wide': {key: value}}}, rf'^--variants: wide: {key} is the same for all variants')
            for key, value in {
                # Students of other examples, or of other labels, have scores that cannot be compared.
                'dataset.classes': (5, 6),
                'dataset.genre': 'War',
                'dataset.name': 'cifar10',
                'dataset.split': 'test',
                'dataset.test_part': 'development',
                'num_seeds': 3,
                'role': 'teacher',
                'seed': 1,
                'seed_step': 2,
            }.items()
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(small_config, changes, arguments, message):
    with pytest.raises(UserError, match=message):
        make_plan(small_config(**changes), **arguments)


def test_what_a_variant_cannot_set_are_keys_of_the_config():
    assert set(variants.OF_ALL_VARIANTS) <= config_lib.flatten(common.get_config()).keys()


def test_what_the_command_refuses(tmp_path):
    with pytest.raises(UserError, match=r'^--variants .*none\.json is not there'):
        compare._read_variants(str(tmp_path / 'none.json'))
    (tmp_path / 'wide.json').write_text('{"wide": 3}')
    with pytest.raises(UserError, match=r"wide\.json: 'wide' must be a word"):
        compare._read_variants(str(tmp_path / 'wide.json'))
    with pytest.raises(UserError, match=r'^--shard=0/2 is none of N shards; write --shard=I/N with I from'):
        compare.run(None, tmp_path, shard='0/2')
    with pytest.raises(UserError, match=r'^--only_show has no effect with --shard'):
        compare.run(None, tmp_path, shard='1/2', only_show=True)
    for changes in ({'seeds': 10**30}, {'teachers': 1001}, {'search_seeds': 1001}):
        with pytest.raises(UserError, match=rf'^--{next(iter(changes))} must be at most 1,000\.$'):
            compare.run(None, tmp_path, **changes)
    with pytest.raises(UserError, match=r'^--trials must be at most 10,000\.$'):
        compare.run(None, tmp_path, trials=10**30)
    with pytest.raises(UserError, match=r'^--trials and --hours both say'):
        compare.run(None, tmp_path, trials=8, hours=2.0)
    for hours in (float('inf'), float('nan'), 0.0, -1.0, 1e18):
        with pytest.raises(
            UserError,
            match=r'^--hours is (inf|nan|0|-1|1e\+18); it must be more than 0 and at most 100,000\.',
        ):
            compare.run(None, tmp_path, hours=hours)
    with pytest.raises(UserError, match=r'^--steps has no effect with --trials=0; leave one of them out'):
        compare.run(None, tmp_path, trials=0, steps=5)
    with pytest.raises(UserError, match=r'^jobs is 2, but models'):
        compare.run(None, tmp_path, jobs=2, models={'own': None})
    # Before the config is checked, which may take minutes.
    with pytest.raises(UserError, match=r'^--jobs is 9999, but this process has'):
        compare.run(None, tmp_path, jobs=9999)
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(UserError, match=r' holds a run, by its config\.json; choose another --workdir'):
        compare.run(None, tmp_path)


def test_a_folder_without_a_comparison_is_not_shown_and_nothing_is_made(small_config, tmp_path):
    plan, root = make_plan(small_config()), epath.Path(tmp_path / 'none')
    with pytest.raises(UserError, match=r'/none holds no comparison; call this without --only_show first'):
        variants.run(plan, root, 1, only_show=True)
    assert not root.exists()


def test_a_comparison_is_no_run(small_config, tmp_path):
    """What trains or reads a run names the folder that the best student is in, and makes nothing there."""
    for name in ('search', 'journals', 'best'):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r' is a workdir of td_jax\.compare; choose another --workdir'):
        train(small_config(method='supervised'), epath.Path(tmp_path))
    with pytest.raises(UserError, match=r'config\.json or result\.json is missing\.$'):
        finished.load(epath.Path(tmp_path))
    (tmp_path / 'best' / 'result.json').write_text('{}')
    with pytest.raises(UserError, match=rf'of td_jax\.compare, whose best student is in {tmp_path}/best\.$'):
        finished.load(epath.Path(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['best', 'journals', 'search']


# --- The search ------------------------------------------------------------------------------------


def test_what_a_person_or_a_variant_sets_is_not_searched(small_config):
    own = {
        'wide': {'method': 'td', 'communication.message': 9, 'td.rounds': 2, 'optimizer.learning_rate': 1.0}
    }
    plan = make_plan(small_config(), ('ld',), own, fixed=['optimizer.weight_decay', 'td.weights.state'])
    assert plan.names == ('supervised', 'ld', 'wide')
    spaces = {name: set(tuning.ranges_of(plan.search.space, name)) for name in ('teacher', *plan.names)}
    assert spaces == {
        'teacher': set(searches.OPTIMIZER),
        'supervised': {'optimizer.learning_rate', 'model.dropout'},
        'ld': {'ld.weights.logits'},
        'wide': {'td.weights.interact', 'td.weights.message'},
    }
    record = {key: getattr(plan.search, key) for key in ('trials', 'seeds', 'steps')}
    chosen = {'optimizer.learning_rate': 0.5, 'model.dropout': 0.2, 'num_steps': 4}
    choices = {'digits': {'supervised': chosen, 'searched': {'supervised': record | {'fixed': {}}}}}
    config = tuning.run_of(plan.search, tuning.make_plan(plan.search, 'wide', choices), 0, 0, '')
    assert (config.optimizer.learning_rate, config.model.dropout, config.td.rounds) == (1.0, 0.2, 2)
    assert (config.communication.message, config.dataset.split) == (9, 'validation')


def test_td_with_ld_starts_from_the_weight_that_a_person_sets(small_config):
    methods, config = ('ld', 'td', 'td_ld'), small_config(td__weights__logits=0.25)
    weights = {}
    for fixed in ((), ('td.weights.logits',)):
        plan = make_plan(config, methods, fixed=fixed)
        weights[fixed] = variants._start_config(plan, 'td_ld').td.weights.logits
    assert weights == {(): 1.0, ('td.weights.logits',): 0.25}


def test_options_that_no_student_reads_are_named(small_config):
    config, keys = small_config(method='ld'), ('method', 'num_seeds', 'seed', 'td.rounds', 'eval_every')
    about = dict(
        line.split(' has no effect: ')
        for line in variants.describe_without_effect(make_plan(config), (*keys, 'teacher.num_steps'))
    )
    assert about.keys() == {*keys, 'teacher.num_steps'} - {'seed'}
    assert about['td.rounds'] == 'method is supervised; method is ld'
    assert about['teacher.num_steps'] == 'the search chooses it, up to 6 (--steps)'
    # The steps of the config are the most that can be chosen, unless --steps says how many those are.
    expected = ['num_steps has no effect: the search chooses it, up to --steps=4']
    for steps, lines in ((0, []), (4, expected)):
        assert variants.describe_without_effect(make_plan(config, steps=steps), ['num_steps']) == lines
    # A variant without a method has that of the config, and nothing chooses steps without a search.
    plan = make_plan(
        config, own={'wide': {'communication.message': 3}, 'td_wide': {'method': 'td'}}, trials=0
    )
    about = variants.describe_without_effect(plan, (*keys, 'teacher.num_steps'))
    assert [line.split()[0] for line in about] == ['num_seeds', 'eval_every']


def test_without_a_search_the_score_is_that_of_the_last_step(small_config):
    """No student is of an earlier step, however good that was."""
    for trials, chosen in ((0, 0.6), (2, 0.7)):
        space = make_plan(small_config(), trials=trials).search.space
        assert space.chooses_step == bool(trials)
        curves = {0: [{2: 0.7, 4: 0.5, 6: 0.6}]}
        warmup = tuning.warmup_of(space, small_config())
        ((score, *_),) = tuning.rank(curves, False, warmup)
        assert score == chosen


def test_with_a_schedule_the_last_step_alone_can_be_chosen(small_config):
    """The learning rate of an earlier step is not that of a run which ends there."""
    plan = make_plan(small_config(teacher__optimizer__schedule='cosine'))
    best = {}
    for name in ('teacher', 'supervised'):
        config = tuning.start_config(plan.search, name, '', 0)
        warmup = tuning.warmup_of(plan.search.space, config)
        ((_, step, _, at_last_step),) = tuning.rank({0: [{2: 0.7, 4: 0.5, 6: 0.6}]}, False, warmup)
        best[name] = step, at_last_step
    assert best == {'teacher': (6, False), 'supervised': (2, False)}


def test_students_of_several_teachers_have_the_seeds_of_those_without(small_config):
    """All are paired by seed, whatever the step between two seeds is."""
    seeds = []
    for method in ('supervised', 'ld'):
        plan = make_plan(small_config(seed=3, seed_step=2), seeds=5, teachers=2)
        runs = variants._student_runs(plan, small_config(method=method, seed=3, seed_step=2))
        seeds.append(sorted(seed for run in runs for seed in dispatch.seeds(run)))
    assert seeds == [[3, 5, 7, 9, 11]] * 2


def test_a_variant_with_examples_without_labels_has_its_own_choice(small_config):
    own = {'ld_rest': {'method': 'ld', 'dataset.unlabelled': 'rest'}}
    plan = make_plan(small_config(method='ld', teacher__labels='probe'), own=own)
    record = {key: getattr(plan.search, key) for key in ('trials', 'seeds', 'steps')} | {'fixed': {}}
    choices = {
        'digits': {
            'teacher': {'teacher.num_steps': 3},
            'ld': {'num_steps': 4, 'ld.weights.logits': 1.5},
            'searched': {'supervised': record, 'ld': record},
        },
        'digits_unlabelled': {
            'ld_rest': {'num_steps': 5, 'ld.weights.logits': 2.5},
            'searched': {'ld_rest': record},
        },
    }
    configs = [variants.config_of(plan, name, choices) for name in ('ld', 'ld_rest')]
    values = [
        (config.teacher.num_steps, config.num_steps, config.ld.weights.logits, config.dataset.unlabelled)
        for config in configs
    ]
    assert values == [(3, 4, 1.5, ''), (3, 5, 2.5, 'rest')]


def test_a_model_without_dropout_has_none_searched(small_config):
    config = small_config(method='supervised')
    config.update_from_flattened_dict({'dataset.name': 'cifar10', 'model.name': 'resnet'})
    assert set(variants._unread_keys(config)) == {'model.dropout'}


def test_sgd_has_larger_learning_rates(small_config):
    plan = make_plan(small_config(optimizer__name='sgd'))
    assert tuning.ranges_of(plan.search.space, 'supervised')['optimizer.learning_rate'] == (3e-3, 0.3)
    assert tuning.ranges_of(plan.search.space, 'teacher')['optimizer.learning_rate'] == (1e-4, 3e-3)


def test_weights_fit_the_loss_of_the_task(small_config, recommender):
    """The weights for cross-entropy are smaller than those for squared errors of ratings."""
    ratings = recommender.config
    ratings.batch_size, ratings.teacher.labels = 2, 'shared'
    ratings.teacher.model.embeddings.update(ratings.model.embeddings)
    for config, bounds in ((small_config(), (1e-3, 100.0)), (ratings, (0.1, 1000.0))):
        ranges = tuning.ranges_of(make_plan(config).search.space, 'td')
        assert {ranges[f'td.weights.{term}'] for term in ('interact', 'message', 'state')} == {bounds}


def test_a_schedule_is_validated_at_its_end_alone(small_config):
    assert make_plan(small_config()).search.space.points > 1
    assert make_plan(small_config(optimizer__schedule='cosine')).search.space.points == 1


def test_a_teacher_that_is_named_is_not_searched(small_config, tmp_path):
    config = small_config(method='ld')
    assert tuning.TEACHER in tuning.searchable_names(make_plan(config).search.space)
    space = make_plan(config).search.space
    config.teacher.checkpoint = str(tmp_path)
    space_with_named_teacher = space._replace(config=config.copy_and_resolve_references)
    assert tuning.TEACHER not in tuning.searchable_names(space_with_named_teacher)


def test_the_cost_by_hand(small_config):
    config = small_config(model__hidden=(5, 3), batch_size=8, num_steps=6)
    plan = make_plan(config, ('ld',), trials=4, seeds=3)
    cost = variants.estimate_cost(plan)
    # 4 + 2 + 1 trials; the three students without distillation are one run, those of LD three. Of teachers,
    # the search has as many runs and one for each rung, and the students have three.
    assert cost.runs == 7 + 1 + 7 + 3 + 7 + 3 + 3
    parameters = 64 * 5 + 5 + 5 * 3 + 3 + 3 * 5 + 5
    parameters_of_teacher = 64 * 7 + 7 + 7 * 11 + 11 + 11 * 5 + 5
    assert variants.count_parameters(config) == parameters
    assert cost.size == 2 * 3 * 4 * (2 * 3 * parameters + 6 * parameters_of_teacher)
    # One product forward and two backward, except that of the first layer's input.
    products = 2 * 8 * (2 * 64 * 5 + 3 * (5 * 3 + 3 * 5))
    assert plan.operations['supervised'] == products
    products_of_teacher = 2 * 8 * (2 * 64 * 7 + 3 * (7 * 11 + 11 * 5))
    steps, steps_of_teachers = 6 * (7 * 2 + 3), 6 * (7 * 2 + 6)
    operations = steps * sum(plan.operations.values()) + steps_of_teachers * products_of_teacher
    assert cost.operations == pytest.approx(operations)
    # No student of a search has more steps than its runs.
    shorter = variants.estimate_cost(plan._replace(search=plan.search._replace(steps=3)))
    assert shorter.operations == pytest.approx(operations / 2)
    # Without a search, three runs of each variant choose the best, and teachers have the steps of the config.
    plan = make_plan(config, ('ld',), trials=0, seeds=3)
    steps, steps_of_teachers = 6 * (3 * 2 + 3), 4 * 6
    assert variants.estimate_cost(plan).operations == pytest.approx(
        steps * sum(plan.operations.values()) + steps_of_teachers * products_of_teacher
    )


def test_the_cost_is_said_with_the_time_that_it_takes_at_least():
    cost = variants.Cost(12, 3e12, 1.5e6)
    assert compare._describe_cost(cost, 1e10) == (
        '12 runs, 3e+12 operations of matrix products, at least 5 min of this machine, up to 2 MB of '
        'checkpoints; finished runs are read back'
    )
    assert 'at least' not in compare._describe_cost(cost, 1e13)


@pytest.mark.parametrize(
    ('seconds', 'left', 'processes', 'trials'),
    [
        # Two searches, of 7 runs of 4 seconds with 4 trials, and of 8 runs with 5 trials.
        ({'supervised': 1.0, 'td': 4.0}, 56, 1, 4),
        ({'supervised': 1.0, 'td': 4.0}, 64, 1, 5),
        ({'supervised': 1.0, 'td': 4.0}, 55.9, 1, 3),
        ({'supervised': 1.0, 'td': 4.0}, 28, 2, 4),
        # Three searches, and a teacher for each of the three rungs.
        ({'teacher': 2.0, 'supervised': 1.0, 'td': 4.0}, 84 + 6, 1, 4),
        ({'supervised': 1.0, 'td': 4.0}, 23, 1, 0),
        # A search has 1 + 1/2 + 1/4 runs per trial.
        ({'td': 1.0}, 7e12, 1, 4 * 10**12),
    ],
)
def test_the_slowest_variant_says_how_many_trials_fit(seconds, left, processes, trials):
    assert variants.count_trials(seconds, left, processes) == trials


@pytest.mark.long
def test_hours_are_the_same_number_of_trials_for_every_variant(small_config, tmp_path):
    plan, root = make_plan(small_config(method='ld', teacher__labels='probe')), epath.Path(tmp_path / 'here')
    with pytest.raises(UserError, match=r'^--hours=1e-06 is too short: a trial of each of 3 searches'):
        variants.fit_trials(plan, root, 1e-6, 1)
    assert not (root / variants.HOURS).exists()
    fitted_plan = variants.fit_trials(plan, root, 1.0, 1)
    stored = workdir.read_json(root / variants.HOURS)
    assert stored['seconds'].keys() == {'teacher', 'supervised', 'ld'}
    assert fitted_plan.search.trials == stored['trials'] > 2
    # The timing used a part of the hour.
    assert stored['trials'] <= variants.count_trials(stored['seconds'], 3600, 1)
    # The stored number applies, even on a faster machine.
    workdir.write(root / variants.HOURS, json.dumps(stored | {'trials': 2}))
    fitted_plan = variants.fit_trials(plan, root, 1.0, 1)
    rows = variants.run(fitted_plan, root, 1)
    record = workdir.read_json(root / variants.CHOICES)['digits']['searched']
    assert {name: len(record[name]['completed']) for name in record} == dict.fromkeys(stored['seconds'], 1)
    assert [row.name for row in rows] == ['supervised', 'ld']


def test_a_worker_waits_for_the_number_of_trials_of_the_one_that_times(small_config, tmp_path):
    plan, root = make_plan(small_config()), epath.Path(tmp_path)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        # The worker that times the trials holds the lock.
        with workdir.lock(root / variants.HOURS_LOCK):
            waiting = pool.submit(variants.fit_trials, plan, root, 2.0, 1, jobs.Shard(1, 2))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            workdir.write(root / variants.HOURS, json.dumps({'hours': 2.0, 'trials': 7, 'seconds': {}}))
        # The other worker has timed nothing.
        assert waiting.result(timeout=60).search.trials == 7
    # What the lock leaves is no run.
    with pytest.raises(UserError, match=r'holds no run of td_jax'):
        runs.find_runs(root)


def test_hours_of_other_searches_are_not_read(small_config, tmp_path):
    plan, root = make_plan(small_config(method='ld')), epath.Path(tmp_path)
    runs = {
        name: cells.run_name(tuning.start_config(plan.search, name, '', 0))
        for name in ('teacher', 'supervised', 'ld')
    }
    stored = {'hours': 2.0, 'trials': 7, 'seconds': {}, 'runs': runs}
    workdir.write(root / variants.HOURS, json.dumps(stored))
    assert variants.fit_trials(plan, root, 2.0, 1, only_show=True).search.trials == 7
    others = (
        make_plan(small_config(method='ld'), ('ld', 'fd')),
        make_plan(small_config(method='ld', num_steps=9)),
    )
    for other, hours in ((plan, 3.0), *((other, 2.0) for other in others)):
        with pytest.raises(UserError, match=r'hours\.json has no number of trials for --hours=[23] '):
            variants.fit_trials(other, root, hours, 1, only_show=True)
    assert json.loads((root / variants.HOURS).read_text()) == stored


@pytest.mark.long
def test_a_run_with_a_warm_up_is_timed(small_config, tmp_path):
    config = small_config(method='td', optimizer__warmup_steps=2, td__ramp_up=(1, 2), num_steps=5)
    task = str(tmp_path), config_lib.to_json(config)
    assert 0 < variants._time_run(task) < 600
    paths = [path for path in tmp_path.rglob(workdir.RESULT) if 'teacher' not in path.parent.name]
    # The first run, which compiles, has the fewest steps that such a config may have.
    assert {json.loads(path.read_text())['steps'] for path in paths} == {4, 5}


# --- Messages --------------------------------------------------------------------------------------


def make_row(name, values, validation=0.5):
    result = {'values': values, 'seeds': list(range(len(values))), 'mean': float(np.mean(values))}
    return variants.Row(name, None, validation, result | {'metric': 'accuracy', 'runs': []}, [], 10)


def test_the_sentence_says_what_the_intervals_allow(small_config):
    plan = make_plan(small_config(), seeds=5)
    base = np.array([0.5, 0.6, 0.55, 0.52, 0.58])
    gain = np.array([0.02, 0.03, 0.025, 0.02, 0.03])
    rows = [
        make_row('supervised', base),
        make_row('ld', base + gain),
        make_row('td', base + [0.05, -0.05, 0.02, -0.01, 0.0]),
        make_row('fd', base - gain),
    ]
    low, high = 100 * np.array(scipy.stats.t.interval(0.95, 4, gain.mean(), scipy.stats.sem(gain)))
    assert summary.sentence(plan, rows, summary.compare(rows)) == (
        f'ld: 2.5 percentage points better than no distillation (95% CI {low:.1f} to {high:.1f}); '
        f'fd: 2.5 percentage points worse than no distillation (95% CI {low:.1f} to {high:.1f}); '
        'td does not differ significantly.'
    )
    none = [rows[0], rows[2]]
    assert summary.sentence(plan, none, summary.compare(none)) == (
        'No variant differs significantly from no distillation.'
    )
    two = [make_row(row.name, row.result['values'][:2]) for row in rows[:2]]
    assert summary.sentence(plan._replace(seeds=2), two, summary.compare(two)) == (
        'Fewer than 3 students or teachers support no verdict; raise --seeds.'
    )
    of_two_teachers = [
        row._replace(result=row.result | {'teachers': [0, 0, 0, 1, 1]}) if row.name == 'ld' else row
        for row in rows[:2]
    ]
    assert summary.sentence(plan, of_two_teachers, summary.compare(of_two_teachers)) == (
        'Fewer than 3 students or teachers support no verdict; raise --teachers.'
    )


def test_a_table_has_a_row_for_each_variant(small_config):
    plan = make_plan(small_config(), seeds=3)
    rows = [make_row('supervised', [0.5, 0.6, 0.55], 0.625), make_row('ld', [0.6, 0.71, 0.65], 0.75)]
    seconds = {'supervised': 1.5e-6, 'ld': 1.234e-3}
    head, _, *lines = summary.table(plan, rows, summary.compare(rows), seconds).splitlines()
    cells_by_row = [
        dict(
            zip(*([cell.strip() for cell in line.strip('|').split('|')] for line in (head, row)), strict=True)
        )
        for row in lines[:2]
    ]
    keys = 'variant', 'n', 'validation accuracy', 'parameters', 'µs per example'
    assert [[cells_of_row[key] for key in keys] for cells_of_row in cells_by_row] == [
        ['supervised', '3', '0.6250', '10', '1.5'],
        ['ld', '3', '0.7500', '10', '1,234'],
    ]
    assert cells_by_row[0]['Δ to no distillation'] == ''
    for teachers, words in (
        (3, '3 students'),
        (2, '3 students of 2 teachers'),
        (1, '3 students of 1 teacher'),
    ):
        text = summary.table(plan._replace(teachers=teachers), rows, summary.compare(rows), seconds)
        assert f't interval over {words}. A difference' in text
    # (0.1 + 0.11 + 0.1) / 3
    assert cells_by_row[1]['Δ to no distillation'].startswith('+0.1033 ± ')


def test_the_best_is_that_of_validation_data(small_config):
    plan = make_plan(small_config())
    rows = [
        make_row('supervised', [0.9, 0.9], 0.6),
        make_row('ld', [0.1, 0.1], 0.7),
        make_row('td', [1.0], 0.7),
    ]
    assert variants.choose_best(plan, rows).name == 'ld'


# --- A comparison ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def comparison_on_digits(small_config, tmp_path_factory):
    """(folder, config, function that repeats the call, record) of a comparison on digits."""
    folder = tmp_path_factory.mktemp('compared') / 'digits'
    config = small_config(method='ld', num_steps=20, optimizer__weight_decay=0.3, teacher__labels='probe')
    # Runs this short would spend most of their time writing.
    config.eval_every, config.log_every, config.save_every = 5, 10, 20
    own = {'td_quiet': {'method': 'td', 'td.rounds': 0}}
    options = {'variants': own, 'fixed': ['optimizer.weight_decay'], 'trials': 2, 'seeds': 3}
    record = compare.run(config, folder, methods=('ld',), **options)
    return folder, config, (lambda: compare.run(config, folder, methods=('ld',), **options)), record


@pytest.mark.long
def test_the_rows_are_runs_of_the_chosen_configs(comparison_on_digits, tmp_path):
    """A run of a row, trained by itself with the config in the JSON, has the row's values."""
    folder, _, _, record = comparison_on_digits
    assert [row['variant'] for row in record['rows']] == ['supervised', 'ld', 'td_quiet']
    assert json.loads((folder / compare.COMPARISON).read_text()) == json.loads(json.dumps(record))
    for row in record['rows']:
        assert row['config']['optimizer.weight_decay'] == 0.3
        assert row['config']['dataset.split'] == 'test'
        assert row['seeds'] == [0, 1, 2]
    first, *others = record['rows']
    config = config_lib.from_json(
        json.loads((folder / 'students' / first['runs'][0] / workdir.CONFIG).read_text())
    )
    assert train(config, epath.Path(tmp_path / 'alone'))['values'] == first['test_accuracy']
    for row in others:
        gains = np.subtract(row['test_accuracy'], first['test_accuracy'])
        assert row['difference']['mean'] == pytest.approx(gains.mean())
        expected = scipy.stats.t.interval(0.95, 2, gains.mean(), scipy.stats.sem(gains))
        np.testing.assert_allclose(row['difference']['t_interval'], expected)


@pytest.mark.long
def test_the_test_split_is_read_by_the_students_alone(comparison_on_digits):
    folder, *_ = comparison_on_digits
    splits = {
        part: {
            json.loads(path.read_text())['dataset']['split'] for path in (folder / part).rglob('config.json')
        }
        for part in (workdir.SEARCH, variants.STUDENTS)
    }
    assert splits == {'search': {'validation'}, 'students': {'test'}}


@pytest.mark.long
def test_the_best_student_predicts(comparison_on_digits, tmp_path):
    folder, _, _, record = comparison_on_digits
    scores = {row['variant']: row['validation_accuracy'] for row in record['rows']}
    assert record['best'] == max(scores, key=scores.get)
    (best,) = (row for row in record['rows'] if row['variant'] == record['best'])
    run = finished.load(folder / workdir.BEST, with_examples=True)
    assert run.config.seed == 0
    result = finished.read_result(folder / workdir.BEST)
    assert result['values'][0] == best['test_accuracy'][0]


@pytest.mark.long
def test_the_same_call_trains_nothing_again(comparison_on_digits, monkeypatch, capsys):
    folder, _, compare_again, record = comparison_on_digits
    times = {path: path.stat().st_mtime_ns for path in (folder / 'students').rglob('*') if path.is_file()}
    second_record = compare_again()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for each_record in (second_record, record):
        each_record.pop('seconds_per_example')
    assert second_record == record
    out = capsys.readouterr().out
    assert out.startswith('| variant | n | test accuracy |')
    assert record['sentence'] in out


@pytest.mark.long
def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path):
    """Nothing is compiled for a cache in that folder before."""
    (tmp_path / 'file').write_text('')
    env = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    flags = '--config=configs/digits.py', '--methods=ld', '--trials=1', f'--workdir={tmp_path / "file"}'
    completed = forked.run(['-m', 'td_jax.compare', *flags], env)
    assert (completed.returncode, completed.stdout) == (2, '')
    lines = completed.stderr.splitlines()
    assert [line for line in lines if not line.startswith('td_jax: ')] == []
    assert lines[-1].startswith(f'td_jax: workdir {tmp_path / "file"} cannot be written (File exists); ')


@pytest.mark.long
def test_the_command_keeps_the_hyperparameters_of_the_config(tmp_path):
    flags = [
        '--config=configs/digits.py',
        '--config.num_steps=6',
        '--config.teacher.num_steps=4',
        '--config.diagnostics=False',
        '--methods=fd',
        '--trials=0',
        '--seeds=2',
        '--jobs=2',
        f'--workdir={tmp_path / "runs"}',
    ]
    completed = forked.run(['-m', 'td_jax.compare', *flags])
    assert completed.returncode == 0, completed.stderr
    assert 'Fewer than 3 students or teachers support no verdict; raise --seeds.' in completed.stdout
    record = json.loads((tmp_path / 'runs' / compare.COMPARISON).read_text())
    assert {row['config']['num_steps'] for row in record['rows']} == {6}
    assert (tmp_path / 'runs' / compare.REPORT).stat().st_size > 10_000


@pytest.mark.long
def test_a_bucket_that_cannot_be_looked_at_is_one_line(tmp_path):
    """In a process of its own, because fsspec reads the environment when it is imported."""
    (tmp_path / 'credentials.json').write_text('none')
    completed = subprocess.run(
        [sys.executable, '-m', 'td_jax.compare', '--config=configs/digits.py', '--workdir=gs://b/run'],
        env=os.environ | {'FSSPEC_GCS': json.dumps({'token': str(tmp_path / 'credentials.json')})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (completed.returncode, completed.stdout) == (2, '')
    (line,) = completed.stderr.splitlines()
    assert line.startswith('td_jax: gs://b/run/config.json cannot be read: ')
