"""Searching hyperparameters, with made-up curves and one real search."""

import collections
import json
import math
import pathlib

import numpy as np
import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax.configs import searches
from td_jax.errors import Diverged, UserError
from td_jax.method import objectives
from td_jax.reproduction import cells, journal, tables, tuning
from td_jax.training import evaluation

OPTIMIZER = {'optimizer.learning_rate', 'optimizer.weight_decay', 'model.dropout'}
STEPS = 60
DIGITS = tuning.Search(tuning.CONFIGS['digits'], {}, tables.USUAL, 4, 2, STEPS)
# Configs whose teacher is a public checkpoint, which is not searched.
PUBLIC = {'public_vit_cifar10', 'public_cnn_cifar10'}
EIGHT = DIGITS._replace(trials=8)
RATINGS = tuning.Search(
    tuning.CONFIGS['movielens'], {'dataset.split_by': 'user'}, tables.ChosenBy(('Drama', 'War')), 8, 2, STEPS
)


@pytest.mark.parametrize(
    ('module', 'name', 'keys'),
    [
        ('movielens', 'teacher', OPTIMIZER),
        ('movielens', 'supervised', OPTIMIZER),
        # In addition to the chosen optimizer.
        ('movielens', 'ld', {'ld.weights.logits'}),
        ('movielens', 'hybrid', {'hybrid.weights.logits', 'hybrid.weights.feature'}),
        # A weight that is 0 in the config or the variant stays 0.
        ('movielens', 'rkd', {'rkd.weights.distance'}),
        ('digits', 'rkd', {'rkd.weights.distance', 'rkd.weights.angle'}),
        ('digits', 'td', {*(f'td.weights.{term}' for term in ('interact', 'message', 'state')), 'td.rounds'}),
        (
            'digits',
            'td_ld',
            {*(f'td.weights.{term}' for term in ('interact', 'message', 'state', 'logits')), 'td.rounds'},
        ),
    ],
)
def test_what_is_drawn(module, name, keys):
    assert tuning.ranges_of(tuning.CONFIGS[module], name).keys() == keys


def test_ranges():
    assert [searches.LogUniform(0.1, 1000.0).at(share) for share in (0, 0.25, 0.5)] == [0.1, 1.0, 10.0]
    assert [searches.OneOf((0.0, 0.2, 0.4)).at(share) for share in (0, 0.33, 0.34, 0.99)] == [
        0.0,
        0.0,
        0.2,
        0.4,
    ]
    for module, bounds in (
        ('vit_tiny_cifar10', (0.01, 10.0)),
        ('digits', (0.001, 100.0)),
        ('movielens', (0.1, 1000.0)),
    ):
        assert tuning.ranges_of(tuning.CONFIGS[module], 'td')['td.weights.state'] == bounds


def test_a_draw_is_that_of_its_name_its_trial_and_its_seed():
    draws = {
        (name, seed): [tuning.draw(name, number, seed) for number in range(400)]
        for name in ('weights.state', 'weights.message')
        for seed in (0, 1)
    }
    # By hand, on any machine: the share of trial 5 and the parts of trials 4 to 7.
    assert draws['weights.state', 0][5] == pytest.approx(0.38641453555017335)
    for shares in draws.values():
        assert len(set(shares)) == 400
        # Of four trials in a row one is in each quarter.
        parts = np.floor(4 * np.array(shares)).reshape(-1, 4)
        assert (np.sort(parts) == np.arange(4)).all()
        assert abs(np.mean(shares) - 0.5) < 0.01
        # In many of the 24 orders.
        assert len({tuple(row) for row in parts}) > 20
    correlations = np.corrcoef(list(draws.values())) - np.eye(4)
    assert np.abs(correlations).max() < 0.15


def make_earlier_choices(search, **names):
    """The part of a search's choices on top of which other methods are searched."""
    optimizer = {'optimizer.learning_rate': 1e-3, 'optimizer.weight_decay': 0.1, 'model.dropout': 0.2}
    record = {key: getattr(search, key) for key in cells.BUDGET}
    under = {
        'supervised': optimizer | {'num_steps': 20},
        'searched': {'supervised': record | {'fixed': {}, 'at_last_step': False}},
    }
    for name, values in names.items():
        under[name] = optimizer | {'num_steps': 40} | values
        under['searched'][name] = record | {'fixed': optimizer, 'at_last_step': False}
    return {tuning._setting_name(search, 'supervised'): under}


TD = {'td.weights.interact': 2.0, 'td.weights.message': 3.0, 'td.weights.state': 5.0, 'td.rounds': 3}
LD = {'ld.weights.logits': 7.0}


def test_methods_share_the_draws_of_what_they_have_in_common():
    choices = make_earlier_choices(EIGHT, td=TD, ld=LD)
    trials = {
        name: tuning.make_plan(EIGHT, name, choices).trials
        for name in ('td', 'td_ld', 'ld', 'hybrid', 'fd', 'fitnet', 'supervised', 'teacher')
    }
    assert {len(of_one) for of_one in trials.values()} == {8}
    for number in range(3, 8):
        td, td_ld, ld, hybrid, fd, fitnet = (
            trials[name][number] for name in ('td', 'td_ld', 'ld', 'hybrid', 'fd', 'fitnet')
        )
        assert td.items() <= td_ld.items()
        assert td_ld['td.weights.logits'] == ld['ld.weights.logits'] == hybrid['hybrid.weights.logits']
        assert hybrid['hybrid.weights.feature'] == fd['fd.weights.feature']
        assert fitnet['fitnet.weights.state'] == td['td.weights.state']
    assert trials['teacher'] == trials['supervised']
    assert {trial['td.rounds'] for trial in trials['td'][:4]} == {0, 1, 2, 3}
    # First the optimizer chosen without distillation, then those of its trials with the same numbers.
    chosen = {'optimizer.learning_rate': 1e-3, 'optimizer.weight_decay': 0.1, 'model.dropout': 0.2}
    for name in ('td', 'td_ld', 'ld', 'hybrid', 'fd', 'fitnet'):
        for number in range(3, 8):
            expected = chosen if number < 4 else trials['supervised'][number]
            assert trials[name][number].items() >= expected.items()
    # Another sampler seed gives other trials; a larger number of trials begins with these.
    by = EIGHT._replace(chosen_by=tables.ChosenBy((), 1))
    others = tuning.make_plan(by, 'supervised', {}).trials
    assert all(one != other for one, other in zip(others, trials['supervised'], strict=True))
    more = tuning.make_plan(EIGHT._replace(trials=12), 'supervised', {}).trials
    assert more[:8] == trials['supervised']


def test_td_with_ld_begins_with_what_was_chosen_for_both():
    trials = tuning.make_plan(EIGHT, 'td_ld', make_earlier_choices(EIGHT, td=TD, ld=LD)).trials
    weak = {f'td.weights.{term}': 0.001 for term in ('interact', 'message', 'state')}
    optimizer = {'optimizer.learning_rate': 1e-3, 'optimizer.weight_decay': 0.1, 'model.dropout': 0.2}
    assert trials[:3] == [
        optimizer | TD | {'td.weights.logits': 7.0},
        optimizer | TD | {'td.weights.logits': 0.001},
        optimizer | weak | {'td.rounds': 0, 'td.weights.logits': 7.0},
    ]
    # If TD and LD have optimizers of their own, each starts with its own, and TD + LD with LD's.
    own = [{'model.dropout': rate} for rate in (0.0, 0.4)]
    choices = make_earlier_choices(EIGHT, td=TD | own[0], ld=LD | own[1])
    starts = tuning.make_plan(EIGHT, 'td_ld', choices).trials[:3]
    assert [start['model.dropout'] for start in starts] == [0.4, 0.0, 0.4]
    two_trials = EIGHT._replace(trials=2)
    assert (
        tuning.make_plan(two_trials, 'td_ld', make_earlier_choices(two_trials, td=TD, ld=LD)).trials
        == trials[:2]
    )


def test_what_both_chose_alike_is_not_tried_twice():
    """If TD and LD have chosen the same trial, TD + LD draws another one instead."""
    trials = {
        name: tuning.make_plan(EIGHT, name, make_earlier_choices(EIGHT)).trials for name in ('td', 'ld')
    }
    choices = make_earlier_choices(EIGHT, td=trials['td'][5], ld=trials['ld'][5])
    trials_of_both = tuning.make_plan(EIGHT, 'td_ld', choices).trials
    more = EIGHT._replace(trials=9)
    (ninth,) = tuning.make_plan(more, 'td', make_earlier_choices(more)).trials[8:]
    assert trials_of_both[0].items() >= trials['td'][5].items()
    assert trials_of_both[5].items() >= ninth.items()
    assert len({json.dumps(trial) for trial in trials_of_both}) == 8


def test_methods_have_the_optimizer_of_the_student_without_distillation():
    choices = make_earlier_choices(RATINGS)
    choices['movielens_by_user'] = {'teacher': {'teacher.num_steps': 77}}
    choices['movielens_by_user_Drama_War']['searched']['supervised']['fixed'] = {'teacher.num_steps': 77}
    plan = tuning.make_plan(RATINGS, 'td', choices)
    run = tuning.run_of(RATINGS, plan, 3, 1, 'War')
    assert (run.optimizer.learning_rate, run.optimizer.weight_decay, run.model.dropout) == (1e-3, 0.1, 0.2)
    assert (run.teacher.num_steps, run.num_steps, run.num_seeds) == (77, STEPS, 2)
    assert config_lib.flatten(run).items() >= plan.trials[3].items()
    # The student's run has all choices of the teacher.
    assert tuning.make_plan(RATINGS, 'supervised', choices).fixed == {'teacher.num_steps': 77}


@pytest.mark.parametrize(
    ('trials', 'hand'), [(12, [12, 6, 3]), (16, [16, 8, 4]), (7, [7, 3, 1]), (1, [1, 1, 1])]
)
def test_quotas(trials, hand):
    assert tuning.quotas(trials) == hand


def test_ranks_by_hand():
    curves = {
        0: [{20: 3.0, 40: 1.0}, {20: 1.0, 40: 2.0}],  # 2.0 and 1.5
        1: [{20: 1.0, 40: 9.0}, {20: 1.0, 40: 9.0}],  # 1.0 and 9.0
        2: [{20: 1.0}, {40: 0.1}],  # No common step.
        3: [{20: 0.5, 40: 0.1}, {20: 1.5}],  # 1.0 at the common step, as trial 1.
        4: [{20: 0.1, 40: 0.1}, {}],
    }
    assert tuning.rank(curves, less_is_better=True) == [
        (1.0, 20, 1, False),
        (1.0, 20, 3, False),
        (1.5, 40, 0, True),
    ]
    assert [trial.number for trial in tuning.rank(curves, less_is_better=False)] == [1, 0, 3]


def test_the_number_of_steps_is_larger_than_the_warm_up(tmp_path):
    """Fewer steps would be refused. The journals hold all runs of a search, whose score is best at first."""
    search = tuning.make_search('public_cnn_cifar10', 'time', None, 2, 2, 24)
    plan, less_is_better = tuning.make_plan(search, 'supervised', {}), False
    path = tmp_path / 'cifar10_unlabelled-supervised.jsonl'
    of_method = journal.Journal(epath.Path(path))
    for rung, number in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)):
        run = cells.run_name(tuning.run_of(search, plan, number, rung, '50'))
        of_method.append(run, {8: 0.9, 16: 0.5, 24: 0.3 + number / 10}, {})
    places = [epath.Path(tmp_path / name) for name in ('runs', '.', 'choices.json')]
    ((_, record),) = tuning.tune(search, ['supervised'], *places, 1, only_show=True)
    assert record['chosen'] == plan.trials[1] | {'num_steps': 24}
    assert record['at_last_step']
    config = tuning.start_config(search, 'supervised', '50', 0)
    config.update_from_flattened_dict(record['chosen'])
    config_lib.check(config)
    curves = {0: [{20: 0.9, 21: 0.5, 24: 0.4}], 1: [{20: 0.9}]}
    assert tuning.rank(curves, less_is_better, warmup_steps=20) == [(0.5, 21, 0, False)]


@pytest.mark.parametrize('module', tuning.CONFIGS)
def test_all_that_a_task_allows_is_searched(module):
    names = tuning.searchable_names(tuning.CONFIGS[module])
    assert (names[0] == tuning.TEACHER) == (module not in PUBLIC)
    left_out = {'dkd', 'dist'} if module == 'movielens' else {tuning.TEACHER} if module in PUBLIC else set()
    assert set(names) == {tuning.TEACHER, *objectives.METHODS, *tables.VARIANTS} - left_out
    assert set(tuning.searchable_names(tuning.CONFIGS[module], 1)) == {'supervised', 'ld', 'td', 'td_ld'}


def test_each_rung_has_other_seeds_and_another_slice_of_time():
    runs = [tuning.start_config(RATINGS, 'td', 'War', rung) for rung in range(3)]
    assert [run.dataset.validation_slice for run in runs] == [0, 1, 2]
    assert [run.seed for run in runs] == [0, 2, 4]
    assert [run.teacher.seed for run in runs] == [0, 1, 2]
    for run in runs:
        assert (run.dataset.split, run.dataset.split_by, run.dataset.genre) == ('validation', 'user', 'War')
        assert (run.num_steps, run.num_seeds) == (STEPS, 2)
        config_lib.check(run)


def test_images_are_searched_with_few_labels_and_with_more():
    search = tuning.make_search('vit_tiny_cifar10', 'time', None, 4, 2, 600)
    plan = tuning.make_plan(search, 'supervised', {})
    runs = [tuning.run_of(search, plan, 0, 1, column) for column in plan.columns]
    assert [run.dataset.examples_per_class for run in runs] == [50, 500]
    assert {(run.dataset.split, run.num_steps, run.eval_every) for run in runs} == {('validation', 600, 100)}
    assert {run.teacher.dataset.examples_per_class for run in runs} == {0}


@pytest.mark.parametrize('module', sorted(PUBLIC))
def test_a_public_teacher_is_searched_with_and_without_unlabelled_images(module):
    for unlabelled, folder, value in (
        (None, 'cifar10_unlabelled', 'rest'),
        ('rest', 'cifar10_unlabelled', 'rest'),
        ('none', 'cifar10', ''),
    ):
        search = tuning.make_search(module, 'time', None, 4, 2, 30, unlabelled=unlabelled, teacher='photos')
        run = tuning.start_config(search, 'ld', '10', 1)
        assert (run.dataset.unlabelled, run.dataset.examples_per_class) == (value, 10)
        assert (run.teacher.pretrained, run.dataset.split) == ('photos', 'validation')
        assert cells.setting(run) == folder
        config_lib.check(run)
    assert tuning.ranges_of(search.space, 'ld') == {'ld.weights.logits': (1e-3, 100.0)}
    ranges = tuning.ranges_of(search.space, 'supervised')
    assert ranges.keys() == OPTIMIZER
    assert ranges['optimizer.learning_rate'] == ((1e-5, 1e-3) if 'vit' in module else (1e-4, 3e-3))


def test_the_teacher_is_searched_on_its_own_task():
    run = tuning.start_config(RATINGS, tuning.TEACHER, 'Drama', 1)
    assert (run.method, run.dataset.genre, run.num_steps) == ('supervised', 'all', STEPS)
    assert (run.dataset.split, run.dataset.validation_slice, run.seed, run.num_seeds) == (
        'validation',
        1,
        2,
        2,
    )
    assert run.model.hidden == (512, 256)
    config_lib.check(run)


class MadeUpRuns:
    """Replaces training: the curve of a run is a function of its config."""

    def __init__(self, score, fails_at=None):
        self.score, self.fails_at, self.runs = score, fails_at, []

    def __call__(self, root, config, name):
        if len(self.runs) == self.fails_at:
            self.fails_at = None
            raise KeyboardInterrupt
        self.runs.append(config)
        return self.score(config)


def measure_distance(config):
    """The distance of a run's learning rate and weights from the best ones, in orders of magnitude."""
    weights = objectives.weights_of(config)
    distances = [abs(math.log10(weight)) for term, weight in weights.items() if weight and term != 'probe']
    return abs(math.log10(config.optimizer.learning_rate) + 3) + sum(distances)


def make_curve(config):
    """A curve that is best at step 40."""
    worse = 0.1 * config.dataset.validation_slice
    return {20: 2 + measure_distance(config), 40: 1 + measure_distance(config) + worse, 60: 30.0}


def search_made_up_runs(monkeypatch, folder, made_runs, search=RATINGS, names=('supervised', 'ld')):
    """({name: record of its choice}, choices in the file) of a search with made-up runs."""
    monkeypatch.setattr(tuning, '_curve', made_runs)
    monkeypatch.setattr(cells, 'train_teachers', lambda root, configs, count: None)
    monkeypatch.setattr(tuning, 'describe_program', lambda config: '')
    folder.mkdir(exist_ok=True)
    places = [epath.Path(folder / name) for name in ('runs', 'journals', 'o.json')]
    tuning.check(search, names, *places[1:])
    return dict(tuning.tune(search, names, *places, 1)), json.loads((folder / 'o.json').read_text())


def read_lines(folder, name):
    """The lines of a method's journal."""
    (path,) = (folder / 'journals').glob(f'*-{name}.jsonl')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_of_a_rung_are_run_before_the_best_half_is_promoted(monkeypatch, tmp_path):
    made_runs = MadeUpRuns(make_curve)
    records, _ = search_made_up_runs(monkeypatch, tmp_path, made_runs)
    slices = [run.dataset.validation_slice for run in made_runs.runs if run.method == 'ld']
    # 8, 4 and 2 trials in two columns each.
    assert slices == [0] * 16 + [1] * 8 + [2] * 4
    lines = read_lines(tmp_path, 'ld')
    weights = {line['trial']: line['values']['ld.weights.logits'] for line in lines}
    rates = {line['trial']: line['values']['optimizer.learning_rate'] for line in lines}
    distance_by_trial = {
        number: abs(math.log10(weights[number])) + abs(math.log10(rates[number]) + 3) for number in rates
    }
    order = sorted(distance_by_trial, key=distance_by_trial.get)
    for rung, quota in enumerate((8, 4, 2)):
        on_rung = collections.Counter(line['trial'] for line in lines if line['rung'] == rung)
        assert on_rung == dict.fromkeys(order[:quota], 2)
    record = records['ld']
    assert [trial['values']['ld.weights.logits'] for trial in record['completed']] == [
        weights[number] for number in order[:2]
    ]
    assert record['chosen'] == record['completed'][0]['values']
    assert record['completed'][0]['score'] == pytest.approx(
        1.1 + np.mean([measure_distance(run) for run in made_runs.runs[-4:-2]])
    )


@pytest.mark.parametrize(
    ('search', 'names'),
    [
        (DIGITS, tuning.searchable_names(tuning.CONFIGS['digits'])[1:]),
        (RATINGS._replace(trials=4), ['supervised', 'ld']),
    ],
    ids=['accuracy', 'rmse'],
)
def test_every_method_has_as_many_completed_trials(monkeypatch, tmp_path, search, names):
    sign = 1 if search is not DIGITS else -1
    made_runs = MadeUpRuns(lambda config: {step: sign * value for step, value in make_curve(config).items()})
    records, choices = search_made_up_runs(monkeypatch, tmp_path, made_runs, search, names)
    assert set(records) == set(names)
    assert {len(record['completed']) for record in records.values()} == {1}
    columns = len(search.chosen_by.columns) or 1
    assert len(made_runs.runs) == (4 + 2 + 1) * columns * len(names)
    assert {run.num_seeds for run in made_runs.runs} == {2}
    (chosen,) = choices.values()
    of_optimizer = {key: chosen['supervised'][key] for key in OPTIMIZER}
    for name in names:
        assert chosen[name].items() >= (of_optimizer | {'num_steps': 40}).items()
        assert chosen[name] == records[name]['chosen']
        assert chosen['searched'][name] | {'chosen': chosen[name]} == records[name]
    rates = [trial['optimizer.learning_rate'] for trial in tuning.make_plan(search, 'supervised', {}).trials]
    assert of_optimizer['optimizer.learning_rate'] == min(rates, key=lambda rate: abs(math.log10(rate) + 3))


def test_variants_with_the_same_runs_share_them(monkeypatch, tmp_path):
    made_runs, space = MadeUpRuns(make_curve), DIGITS.space
    search = DIGITS._replace(space=space._replace(variants={**space.variants, 'again': {'method': 'ld'}}))
    records, _ = search_made_up_runs(monkeypatch, tmp_path, made_runs, search, ['supervised', 'ld', 'again'])
    assert records['again'] == records['ld']
    assert read_lines(tmp_path, 'again') == [
        {**line, 'method': 'again'} for line in read_lines(tmp_path, 'ld')
    ]
    names = [cells.run_name(config) for config in made_runs.runs]
    assert len(set(names)) == len(names)


def test_td_with_ld_is_searched_after_both(monkeypatch, tmp_path):
    made_runs = MadeUpRuns(make_curve)
    records, choices = search_made_up_runs(
        monkeypatch, tmp_path, made_runs, DIGITS, ['td_ld', 'td', 'ld', 'supervised']
    )
    assert list(records) == ['supervised', 'td', 'ld', 'td_ld']
    (chosen,) = choices.values()
    hyperparameters_of_both = {key: chosen['td'][key] for key in TD} | {
        'td.weights.logits': chosen['ld']['ld.weights.logits']
    }
    optimizer = {key: chosen['ld'][key] for key in OPTIMIZER}
    assert read_lines(tmp_path, 'td_ld')[0]['values'] == hyperparameters_of_both | optimizer


def test_every_column_counts(monkeypatch, tmp_path):
    """War alone would choose other learning rates."""

    def score(config):
        high = config.optimizer.learning_rate > 1e-3
        return {40: {'Drama': 1.0 - 0.5 * high, 'War': 1.0 + 0.2 * high}[config.dataset.genre], 60: 2.0}

    records, _ = search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(score), names=['supervised'])
    record = records['supervised']
    assert record['chosen']['optimizer.learning_rate'] > 1e-3
    assert record['completed'][0]['score'] == pytest.approx(0.85)


def test_hyperparameters_that_diverge_are_not_chosen(monkeypatch, tmp_path):
    made_runs = MadeUpRuns(
        lambda config: (
            {} if config.optimizer.learning_rate < 1e-3 else {40: measure_distance(config), 60: 99.0}
        )
    )
    records, _ = search_made_up_runs(monkeypatch, tmp_path, made_runs, names=['supervised'])
    rates = [trial['values']['optimizer.learning_rate'] for trial in records['supervised']['completed']]
    assert len(rates) == 2
    assert min(rates) > 1e-3
    assert {line['rung'] for line in read_lines(tmp_path, 'supervised') if line['curve'] == {}} == {0}


def test_all_that_diverge_are_refused(monkeypatch, tmp_path):
    with pytest.raises(UserError, match='every trial of supervised diverged; raise --trials, now 8'):
        search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(lambda config: {}))


NAMES = ['supervised', 'ld', 'td', 'td_ld']


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """(result, names of runs) of an uninterrupted search."""
    made_runs = MadeUpRuns(make_curve)
    with pytest.MonkeyPatch.context() as monkeypatch:
        result = search_made_up_runs(monkeypatch, tmp_path_factory.mktemp('whole'), made_runs, DIGITS, NAMES)
    return result, cells.run_names(made_runs.runs)


@pytest.mark.parametrize('fails_at', [0, 4, 11, 20])
def test_an_interrupted_search_ends_as_another(monkeypatch, tmp_path, uninterrupted, fails_at):
    """It resumes from its journals, and no run is repeated."""
    made_runs = MadeUpRuns(make_curve, fails_at)
    with pytest.raises(KeyboardInterrupt):
        search_made_up_runs(monkeypatch, tmp_path, made_runs, DIGITS, NAMES)
    result = search_made_up_runs(monkeypatch, tmp_path, made_runs, DIGITS, NAMES)
    assert result == uninterrupted[0]
    assert cells.run_names(made_runs.runs) == uninterrupted[1]


def test_a_search_goes_on_from_a_torn_journal(monkeypatch, tmp_path, capsys):
    whole = MadeUpRuns(make_curve)
    expected = search_made_up_runs(monkeypatch, tmp_path, whole, DIGITS, ['supervised'])
    (path,) = (tmp_path / 'journals').glob('*.jsonl')
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    made_runs = MadeUpRuns(make_curve)
    assert search_made_up_runs(monkeypatch, tmp_path, made_runs, DIGITS, ['supervised']) == expected
    assert cells.run_names(made_runs.runs) == cells.run_names(whole.runs[-1:])
    assert 'is torn' in capsys.readouterr().err
    assert path.read_bytes() == content


def test_a_damaged_journal_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    folder = tmp_path / 'journals'
    folder.mkdir()
    (folder / 'digits-supervised.jsonl').write_text('{"torn')
    (folder / 'digits-ld.jsonl').write_text('{}\n')
    with pytest.raises(UserError, match=r'digits-ld\.jsonl is damaged in line 1'):
        search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), DIGITS)
    assert sorted(path.name for path in tmp_path.rglob('*')) == [
        'digits-ld.jsonl',
        'digits-supervised.jsonl',
        'journals',
    ]
    assert (folder / 'digits-supervised.jsonl').read_text() == '{"torn'


def test_two_searches_at_once(monkeypatch, tmp_path):
    """A second search of the same setting is refused and leaves the first alone; another setting may run."""
    records_of_other = []

    def search_again(config):
        if not records_of_other:
            records_of_other.append(None)
            with pytest.raises(UserError, match=r'the journals of digits in .* are in use by process'):
                search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), DIGITS, ['supervised'])
            other = RATINGS._replace(trials=1)
            records_of_other.append(
                search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), other, ['supervised'])[0]
            )
        return make_curve(config)

    records, choices = search_made_up_runs(
        monkeypatch, tmp_path, MadeUpRuns(search_again), DIGITS, ['supervised']
    )
    expected, _ = search_made_up_runs(
        monkeypatch, tmp_path / 'alone', MadeUpRuns(make_curve), DIGITS, ['supervised']
    )
    assert records == expected
    # The file also has the choices of the other search.
    assert choices['movielens_by_user_Drama_War']['supervised'] == records_of_other[1]['supervised']['chosen']


def test_journals_of_an_earlier_version_stay_as_they_are(monkeypatch, tmp_path):
    (tmp_path / 'journals').mkdir()
    old = tmp_path / 'journals' / 'digits-supervised.journal'
    old.write_text('{"op_code": 0}\n')
    search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), DIGITS, ['supervised'])
    assert old.read_text() == '{"op_code": 0}\n'
    assert old.with_suffix('.jsonl').exists()


def test_more_trials_or_steps_take_nothing_of_another_search(monkeypatch, tmp_path):
    first = MadeUpRuns(make_curve)
    search_made_up_runs(monkeypatch, tmp_path, first, DIGITS)
    more = DIGITS._replace(trials=8)
    with pytest.raises(
        UserError,
        match=r'^ld is searched on top of supervised, for which --output has no choice of this search '
        r'\(8 trials, 2 seeds, 60 steps, the same teacher\); name supervised in --methods, too\.$',
    ):
        search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), more, ['ld'])
    made_runs = MadeUpRuns(make_curve)
    expected = search_made_up_runs(monkeypatch, tmp_path / 'whole', MadeUpRuns(make_curve), more)
    assert search_made_up_runs(monkeypatch, tmp_path, made_runs, more) == expected
    # The four additional trials of the first rung, and those that are promoted now.
    assert not set(cells.run_names(made_runs.runs)) & set(cells.run_names(first.runs))
    longer = MadeUpRuns(make_curve)
    search_made_up_runs(monkeypatch, tmp_path, longer, DIGITS._replace(steps=2 * STEPS))
    assert len(longer.runs) == len(first.runs)


def test_another_sampler_seed_is_filed_under_its_name(monkeypatch, tmp_path):
    before, _ = search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), DIGITS)
    search = DIGITS._replace(chosen_by=tables.ChosenBy((), 1))
    after, choices = search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), search)
    assert choices.keys() == {'digits', 'digits_sampler_seed_1'}
    assert choices['digits']['ld'] == before['ld']['chosen']
    assert choices['digits_sampler_seed_1']['ld'] == after['ld']['chosen'] != before['ld']['chosen']
    assert {path.name for path in (tmp_path / 'journals').glob('*.jsonl')} == {
        f'digits{seed}-{name}.jsonl' for seed in ('', '_sampler_seed_1') for name in ('supervised', 'ld')
    }
    with pytest.raises(UserError, match='--sampler_seed is 1, but the teacher is that of --sampler_seed=0'):
        search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), search, ['teacher'])


def test_other_columns_are_filed_under_their_names_with_the_usual_teacher(monkeypatch, tmp_path):
    choices = {}
    for search in (RATINGS, RATINGS._replace(chosen_by=tables.ChosenBy(('War',)))):
        made_runs = MadeUpRuns(make_curve)
        _, choices = search_made_up_runs(monkeypatch, tmp_path, made_runs, search, ['teacher', 'supervised'])
        genres = {run.dataset.genre for run in made_runs.runs} - {'all'}
        assert genres == set(search.chosen_by.columns)
    assert choices.keys() == {'movielens_by_user', 'movielens_by_user_Drama_War', 'movielens_by_user_War'}
    assert choices['movielens_by_user'].keys() == {'teacher', 'searched'}
    assert all(key.startswith('teacher.') for key in choices['movielens_by_user']['teacher'])
    # The second search uses the chosen teacher and runs none.
    assert not any(run.dataset.genre == 'all' for run in made_runs.runs)
    fixed = choices['movielens_by_user_War']['searched']['supervised']['fixed']
    assert fixed == choices['movielens_by_user']['teacher']


def test_a_method_is_searched_on_top_of_the_same_teacher(monkeypatch, tmp_path):
    search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), DIGITS)
    with pytest.raises(
        UserError, match='ld is searched on top of supervised, for which --output has no choice'
    ):
        search_made_up_runs(monkeypatch, tmp_path, MadeUpRuns(make_curve), DIGITS, ['teacher', 'ld'])
    search_made_up_runs(
        monkeypatch, tmp_path, MadeUpRuns(make_curve), DIGITS, ['teacher', 'supervised', 'ld']
    )


@pytest.mark.parametrize('module', sorted(tuning.CONFIGS.keys() - PUBLIC))
def test_the_teacher_of_a_search_is_the_same_in_every_column(module):
    search = tuning.make_search(module, 'time', None, 4, 2, 600)
    runs = [
        tuning.start_config(search, tuning.TEACHER, column, 1) for column in tuning.CONFIGS[module].columns
    ]
    assert len({config_lib.digest(run) for run in runs}) == 1


def test_who_chose_the_last_step(monkeypatch, tmp_path):
    """A warning needs more than half of the methods: 3 of 4, not 2. The teacher is judged by itself."""
    names, search = ['supervised', 'ld', 'td', 'fd'], DIGITS._replace(trials=1)
    for late, expected in (({'ld', 'td'}, []), ({'ld', 'td', 'fd'}, ['fd', 'ld', 'td'])):
        made_runs = MadeUpRuns(lambda config, late=late: {20: 1.0, 40: 2.0 if config.method in late else 0.1})
        folder = tmp_path / str(len(late))
        records, choices = search_made_up_runs(monkeypatch, folder, made_runs, search, names)
        assert {name for name, record in records.items() if record['at_last_step']} == late
        assert sorted(tuning.at_last_step(search, names, choices)) == expected
    # All methods of the search count, whatever names are given; a search with another budget does not.
    assert sorted(tuning.at_last_step(search, ['supervised'], choices)) == ['fd', 'ld', 'td']
    assert tuning.at_last_step(search._replace(steps=7), ['supervised'], choices) == []
    teacher = RATINGS._replace(trials=1)
    _, choices = search_made_up_runs(
        monkeypatch, folder, MadeUpRuns(lambda config: {20: 1.0, 40: 0.1}), teacher, ['teacher']
    )
    assert tuning.at_last_step(teacher, ['teacher'], choices) == ['teacher']
    assert tuning.at_last_step(teacher, ['supervised'], choices) == []


def test_variants_with_a_setting_of_their_own_count_at_the_last_step():
    """Two of three chose it, one of them filed under the setting of examples without labels."""
    rest = {'rest': {'method': 'ld', 'dataset.unlabelled': 'rest'}}
    search = DIGITS._replace(space=DIGITS.space._replace(variants={**DIGITS.space.variants, **rest}))
    record = {key: getattr(search, key) for key in cells.BUDGET}
    early, late = ({**record, 'at_last_step': is_late} for is_late in (False, True))
    choices = {
        'digits': {'searched': {'supervised': early, 'ld': late}},
        'digits_unlabelled': {'searched': {'rest': late}},
    }
    assert tuning.at_last_step(search, ['supervised', 'ld', 'rest'], choices) == ['ld', 'rest']
    assert tuning.at_last_step(search, ['supervised', 'ld'], choices) == []


@pytest.mark.parametrize(
    ('change', 'names', 'message'),
    [
        ({}, ['td', 'tdd'], "--methods 'tdd' is not known. Did you mean td?"),
        ({}, ['dkd'], "--methods 'dkd' is not known."),
        ({'chosen_by': tables.ChosenBy(('Drama', 'Horror'))}, ['td'], "--columns 'Horror' is not known."),
        ({}, ['td', 'ld', 'td_ld'], 'td is searched on top of supervised, for which --output has no choice'),
        ({}, ['supervised', 'td_ld'], 'td_ld is searched on top of td, for which --output has no choice'),
        (
            {'space': tuning.CONFIGS['vit_tiny_cifar10'], 'setting': {}, 'chosen_by': tables.USUAL},
            ['teacher'],
            'teacher.optimizer.warmup_steps takes 200 steps, but a run of the search has 60: raise',
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, change, names, message):
    places = epath.Path(tmp_path / 'journals'), epath.Path(tmp_path / 'o.json')
    tuning.check(RATINGS, ['teacher', 'td_ld', 'ld', 'td', 'supervised'], *places)
    with pytest.raises(UserError) as error_info:
        tuning.check(RATINGS._replace(**change), names, *places)
    assert str(error_info.value).startswith(message)


def test_places_that_cannot_be_written_are_refused(tmp_path):
    here = epath.Path(tmp_path / 'journals'), epath.Path(tmp_path / 'o.json')
    with pytest.raises(UserError, match=r'--output .*/a/o\.json cannot be written: its folder is missing'):
        tuning.check(DIGITS, ['supervised'], here[0], epath.Path(tmp_path / 'a' / 'o.json'))


@pytest.mark.parametrize('name', ['workdir', 'journals'])
def test_folders_that_cannot_be_made_are_refused(tmp_path, name):
    (tmp_path / name).write_text('a file')
    places = (epath.Path(tmp_path / place) for place in ('workdir', 'journals', 'o.json'))
    with pytest.raises(
        UserError, match=rf'^{name} .*{name} cannot be written \(.*\); choose another --{name}\.$'
    ):
        list(tuning.tune(DIGITS, ['supervised'], *places, 1))


@pytest.mark.parametrize(
    ('named', 'columns'),
    [
        (None, ()),
        (['War', 'Drama', 'Adventure'], ()),
        (['War', 'Comedy', 'War'], ('Comedy', 'War')),
        (['Horror'], ('Horror',)),
    ],
)
def test_columns_in_another_order_are_the_same_search(named, columns):
    assert tuning.make_search('movielens', 'user', named, 4, 2, 9, 5).chosen_by == (columns, 5)


def test_a_split_of_what_is_not_split_is_refused():
    assert tuning.make_search('movielens', 'user', None, 4, 2, 9).setting == {'dataset.split_by': 'user'}
    with pytest.raises(UserError, match='--split_by is user, but digits has no ratings'):
        tuning.make_search('digits', 'user', None, 4, 2, 9)
    with pytest.raises(UserError, match=r'^--unlabelled is rest, but movielens has ratings; leave it out'):
        tuning.make_search('movielens', 'time', None, 4, 2, 9, unlabelled='rest')
    with pytest.raises(UserError, match="--unlabelled 'all' is not known"):
        tuning.make_search('digits', 'time', None, 4, 2, 9, unlabelled='all')
    with pytest.raises(UserError, match=r'^--teacher=photos has no effect: no run here has a public'):
        tuning.make_search('digits', 'time', None, 4, 2, 9, teacher='photos')
    with pytest.raises(UserError, match="--config 'digit' is not known"):
        tuning.make_search('digit', 'time', None, 4, 2, 9)


@pytest.mark.parametrize('task', evaluation.METRICS)
def test_best(task):
    less_is_better = evaluation.METRICS[task][3]
    curve = {10: 0.7, 20: 0.5, 30: 0.9, 40: 0.5, 50: 0.9}
    assert tuning.best(curve, less_is_better) == ((20, 0.5) if less_is_better else (30, 0.9))


@pytest.mark.long
def test_a_real_search(tmp_path):
    """The score is the mean of the values that its runs logged."""
    search = DIGITS._replace(trials=2, steps=4)
    places = epath.Path(tmp_path / 'runs'), epath.Path(tmp_path / 'journals'), epath.Path(tmp_path / 'o.json')
    (result,) = tuning.tune(search, ['supervised'], *places, 1)
    assert result[0] == 'supervised'
    curves = collections.defaultdict(list)
    chosen = result[1]['chosen']
    for folder in (tmp_path / 'runs' / 'digits').iterdir():
        config = json.loads((folder / 'config.json').read_text())
        if config['optimizer']['learning_rate'] == chosen['optimizer.learning_rate']:
            for line in map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines()):
                if 'validation_accuracy' in line:
                    curves[line['step']].append(line['validation_accuracy'])
        assert not (folder / 'checkpoints').exists()
    assert {len(values) for values in curves.values()} == {3}
    means = {step: sum(values) / 3 for step, values in curves.items()}
    assert result[1]['completed'][0]['score'] == pytest.approx(max(means.values()))
    assert means[chosen['num_steps']] == max(means.values())
    # It can be repeated from the runs alone, and from the journal alone.
    journals = tmp_path / 'journals'
    content = (journals / 'digits-supervised.jsonl').read_bytes()
    assert len(journal.read(journals / 'digits-supervised.jsonl')[0]) == 4
    (journals / 'digits-supervised.jsonl').unlink()
    assert list(tuning.tune(search, ['supervised'], *places, 1)) == [result]
    assert (journals / 'digits-supervised.jsonl').read_bytes() == content
    other = places[0].parent / 'other'
    assert list(tuning.tune(search, ['supervised'], other, *places[1:], 1)) == [result]
    assert list(pathlib.Path(other).iterdir()) == []


def test_a_run_that_diverged_has_no_curve(monkeypatch, tmp_path):
    def raise_diverged(root, config):
        raise Diverged('the loss is not finite')

    monkeypatch.setattr(cells, 'run_one', raise_diverged)
    assert tuning._curve(epath.Path(tmp_path), tuning.start_config(DIGITS, 'td', 'digits', 0), 'x') == {}
