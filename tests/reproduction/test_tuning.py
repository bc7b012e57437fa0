"""How the knobs of a method are chosen, on made-up curves and on one real search."""

import collections
import json
import math

import optuna
import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax.errors import Diverged, UserError
from td_jax.method import objectives
from td_jax.reproduction import cells, jobs, tables, tuning
from td_jax.training import evaluation

COMMON = {'optimizer.learning_rate', 'optimizer.weight_decay', 'model.dropout'}
STEPS = 60
DIGITS = tuning.Search('digits', {}, ('digits',), 7, 1, STEPS)
RATINGS = tuning.Search('movielens', {'dataset.split_by': 'user'}, ('Drama', 'War'), 7, 1, STEPS)


@pytest.mark.parametrize(
    ('module', 'name', 'drawn'),
    [
        ('movielens', 'teacher', set()),
        ('movielens', 'supervised', set()),
        ('movielens', 'ld', {'ld.weights.logits'}),
        ('movielens', 'hybrid', {'hybrid.weights.logits', 'hybrid.weights.feature'}),
        # What a module or a variant leaves at 0 stays there.
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
def test_what_is_drawn(module, name, drawn):
    assert tuning.space(module, name).keys() == COMMON | drawn


def test_weights_are_drawn_over_four_orders_of_magnitude_and_rounds_from_none():
    space = tuning.space('digits', 'td')
    weight, rounds = space['td.weights.state'], space['td.rounds']
    assert (weight.low, weight.high, weight.log) == (0.1, 1000, True)
    assert (rounds.low, rounds.high) == (0, 3)


def test_images_draw_smaller_weights_after_the_random_trials():
    key = 'td.weights.state'
    for module, number, bounds in (
        ('vit_tiny_cifar10', 5, (0.1, 1000)),
        ('vit_tiny_cifar10', 6, (0.01, 10)),
        ('digits', 6, (0.1, 1000)),
    ):
        weight = tuning.space(module, 'td', number)[key]
        assert (weight.low, weight.high, weight.log) == (*bounds, True)


@pytest.mark.parametrize('module', tuning.CONFIGS)
def test_all_that_a_task_allows_is_searched(module):
    names = tuning.names_for(module)
    assert names[0] == tuning.TEACHER
    of_classes = {'dkd', 'dist'} if module == 'movielens' else set()
    assert set(names) == {tuning.TEACHER, *objectives.METHODS, *tables.VARIANTS} - of_classes


def test_each_rung_has_other_seeds_and_another_slice_of_time():
    runs = [tuning.prepared(RATINGS._replace(seeds=2), 'td', 'War', rung) for rung in range(3)]
    assert [run.dataset.validation_slice for run in runs] == [0, 1, 2]
    assert [run.seed for run in runs] == [0, 2, 4]
    assert [run.teacher.seed for run in runs] == [0, 1, 2]
    for run in runs:
        assert (run.dataset.split, run.dataset.split_by, run.dataset.genre) == ('validation', 'user', 'War')
        assert (run.num_steps, run.num_seeds) == (STEPS, 2)
        config_lib.check(run)


def test_images_are_searched_with_few_labels_and_with_more():
    search = tuning.search_of('vit_tiny_cifar10', 'time', None, 4, 1, 600)
    runs = [tuning.prepared(search, 'td', column, 1) for column in search.columns]
    assert [run.dataset.examples_per_class for run in runs] == [50, 500]
    assert {(run.dataset.split, run.num_steps, run.eval_every) for run in runs} == {('validation', 600, 100)}
    assert {run.teacher.dataset.examples_per_class for run in runs} == {0}
    with pytest.raises(UserError, match="--columns '40' is not known"):
        tuning.check(search._replace(columns=('40',)), ['td'], epath.Path('j'), epath.Path('o.json'))


def test_the_teacher_is_searched_on_its_own_task():
    run = tuning.prepared(RATINGS, tuning.TEACHER, 'Drama', 1)
    assert (run.method, run.dataset.genre, run.num_steps) == ('supervised', 'all', STEPS)
    assert (run.dataset.split, run.dataset.validation_slice, run.seed) == ('validation', 1, 1)
    assert run.model.hidden == (512, 256)


class Made:
    """Stands where a run would: its curve is a function of its knobs."""

    def __init__(self, score, fails_at=None):
        self.score, self.fails_at, self.runs = score, fails_at, []

    def __call__(self, root, config, name):
        if len(self.runs) == self.fails_at:
            self.fails_at = None
            raise KeyboardInterrupt
        self.runs.append(config)
        return self.score(config)


def distance(config):
    """How far a learning rate is from the best one, in orders of magnitude."""
    return abs(math.log10(config.optimizer.learning_rate) + 3)


def curve_of(config):
    """Better at step 40 than before and after."""
    worse = 0.1 * config.dataset.validation_slice
    return {20: 2 + distance(config), 40: 1 + distance(config) + worse, 60: 3.0}


def searched(monkeypatch, folder, made, search=RATINGS, name='ld', taught_by=None):
    """What search_one returns with made-up runs, and the trials of its journal."""
    monkeypatch.setattr(tuning, '_curve', made)
    folder.mkdir(exist_ok=True)
    record = tuning.search_one(search, name, taught_by or {}, epath.Path(folder), epath.Path(folder))
    (path,) = folder.glob(f'*-{name}.journal')
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    (study,) = (optuna.load_study(study_name=None, storage=storage),)
    return record, study.get_trials()


@pytest.mark.parametrize('search', [RATINGS, DIGITS])
def test_the_best_of_all_that_climbed_to_the_top_is_chosen(monkeypatch, tmp_path, search):
    sign = 1 if search is RATINGS else -1
    made = Made(lambda config: {step: sign * value for step, value in curve_of(config).items()})
    record, trials = searched(monkeypatch, tmp_path, made, search)
    assert len(trials) == 7
    done = [trial for trial in trials if trial.state.name == 'COMPLETE']
    assert {trial.state.name for trial in trials} == {'COMPLETE', 'PRUNED'}
    assert record['scores'] == [trial.value for trial in done]
    # Equal scores cannot be, as rates are drawn.
    best = min(done, key=lambda trial: abs(math.log10(trial.params['optimizer.learning_rate']) + 3))
    assert record['chosen'] == {**best.params, 'num_steps': 40}
    slices = (0, 1, 2) if search is RATINGS else (0, 0, 0)
    rate = best.params['optimizer.learning_rate']
    mean = sum(1 + abs(math.log10(rate) + 3) + 0.1 * slice for slice in slices) / 3
    assert record['score'] == pytest.approx(sign * mean)


def test_the_estimator_has_a_say_from_the_seventh_trial_on(monkeypatch, tmp_path):
    """Knobs of the first six do not depend on what came of those before."""

    def other(config):
        return {step: 9 - value for step, value in curve_of(config).items()}

    drawn = []
    for name, score in (('one', curve_of), ('other', other)):
        _, trials = searched(monkeypatch, tmp_path / name, Made(score))
        drawn.append([trial.params for trial in trials])
    assert drawn[0][:6] == drawn[1][:6]
    assert drawn[0][6] != drawn[1][6]


def test_one_of_three_goes_on_to_the_next_rung(monkeypatch, tmp_path):
    """By successive halving: a trial goes on if it is in the best third of those that came so far."""
    made = Made(curve_of)
    _, trials = searched(monkeypatch, tmp_path, made)
    scores, climbed = [], []
    for trial in trials:
        scores.append(abs(math.log10(trial.params['optimizer.learning_rate']) + 3))
        place = sorted(scores).index(scores[-1])
        climbed.append(place < max(1, len(scores) // 3))
    rungs = [len(trial.intermediate_values) for trial in trials]
    assert [rung > 1 for rung in rungs] == climbed
    # Two columns a rung.
    assert len(made.runs) == 2 * sum(rungs)
    assert rungs[0] == 3


def test_every_column_counts(monkeypatch, tmp_path):
    """War alone would choose the other rate."""

    def score(config):
        high = config.optimizer.learning_rate > 1e-3
        return {40: {'Drama': 1.0 - 0.5 * high, 'War': 1.0 + 0.2 * high}[config.dataset.genre]}

    record, _ = searched(monkeypatch, tmp_path, Made(score), RATINGS._replace(trials=12))
    assert record['chosen']['optimizer.learning_rate'] > 1e-3
    assert record['score'] == pytest.approx(0.85)


def test_a_step_that_not_all_runs_have_is_not_chosen(monkeypatch, tmp_path):
    def score(config):
        return {20: 1.0, **({} if config.dataset.genre == 'War' else {40: 0.1})}

    record, _ = searched(monkeypatch, tmp_path, Made(score))
    assert record['chosen']['num_steps'] == 20
    assert record['score'] == 1.0


def test_knobs_that_diverge_are_not_chosen(monkeypatch, tmp_path):
    made = Made(lambda config: {} if config.optimizer.learning_rate < 1e-3 else {40: distance(config)})
    record, trials = searched(monkeypatch, tmp_path, made)
    assert record['chosen']['optimizer.learning_rate'] > 1e-3
    fell = [trial for trial in trials if trial.params['optimizer.learning_rate'] < 1e-3]
    assert fell
    assert {trial.state.name for trial in fell} == {'PRUNED'}


def test_all_that_diverge_are_refused(monkeypatch, tmp_path):
    with pytest.raises(UserError, match='every trial of ld diverged; raise --trials, now 7'):
        searched(monkeypatch, tmp_path, Made(lambda config: {}))


@pytest.mark.parametrize('fails_at', [0, 1, 5])
def test_an_interrupted_search_ends_as_another(monkeypatch, tmp_path, fails_at):
    whole, trials = searched(monkeypatch, tmp_path / 'whole', Made(curve_of))
    made = Made(curve_of, fails_at)
    with pytest.raises(KeyboardInterrupt):
        searched(monkeypatch, tmp_path / 'cut', made)
    cut, all_trials = searched(monkeypatch, tmp_path / 'cut', made)
    assert cut == whole
    over = [trial for trial in all_trials if trial.state.name != 'FAIL']
    assert len(all_trials) == len(over) + 1
    assert [trial.params for trial in over] == [trial.params for trial in trials]


def test_more_trials_are_those_and_more(monkeypatch, tmp_path):
    _, few = searched(monkeypatch, tmp_path / 'grown', Made(curve_of), RATINGS._replace(trials=3))
    grown = searched(monkeypatch, tmp_path / 'grown', Made(curve_of), RATINGS._replace(trials=12))
    whole = searched(monkeypatch, tmp_path / 'whole', Made(curve_of), RATINGS._replace(trials=12))
    assert [trial.params for trial in few] == [trial.params for trial in grown[1][:3]]
    assert grown[0] == whole[0]
    assert [trial.params for trial in grown[1]] == [trial.params for trial in whole[1]]


IMAGES = tuning.Search('vit_tiny_cifar10', {}, ('50', '500'), 9, 1, STEPS)


def accuracy_of(config):
    return {40: -distance(config)}


@pytest.mark.parametrize('fails_at', [None, 'in the trial from scratch'])
def test_a_trial_of_images_starts_from_scratch(monkeypatch, tmp_path, fails_at):
    _, trials = searched(monkeypatch, tmp_path, Made(accuracy_of), IMAGES, 'supervised')
    done = [trial for trial in trials[:6] if trial.state.name == 'COMPLETE']
    best = max(done, key=lambda trial: trial.value).params
    assert best.keys() == COMMON
    if fails_at:
        before = Made(accuracy_of)
        searched(monkeypatch, tmp_path / 'before', before, IMAGES._replace(trials=6), 'td')
        made = Made(accuracy_of, len(before.runs) + 1)
        with pytest.raises(KeyboardInterrupt):
            searched(monkeypatch, tmp_path, made, IMAGES, 'td')
    record, trials = searched(monkeypatch, tmp_path, Made(accuracy_of), IMAGES, 'td')
    over = [trial for trial in trials if trial.state.name != 'FAIL']
    assert len(trials) == len(over) + bool(fails_at)
    assert len(over) == 9
    weights = [f'td.weights.{term}' for term in ('interact', 'message', 'state')]
    start = dict(over[6].params)
    assert start.pop('td.rounds') in range(4)
    assert start == {**best, **dict.fromkeys(weights, 0.01)}
    for trial in over[7:]:
        assert all(0.01 <= trial.params[key] <= 10 for key in weights)
        assert trial.params != over[6].params
    # It is in the best third so far, as scratch was.
    assert record['score'] >= max(trial.value for trial in done)


def test_a_trial_that_starts_from_scratch_needs_it(monkeypatch, tmp_path):
    places = epath.Path(tmp_path), epath.Path(tmp_path / 'o.json')
    tuning.check(IMAGES, ['supervised', 'td'], *places)
    tuning.check(IMAGES._replace(trials=6), ['td'], *places)
    tuning.check(DIGITS, ['td'], *places)
    said = r'trial 7 of td starts from the best of 6 of supervised, which .*cifar10-supervised\.journal does '
    for trials in (0, 3):
        if trials:
            few = IMAGES._replace(trials=trials)
            searched(monkeypatch, tmp_path, Made(accuracy_of), few, 'supervised')
        with pytest.raises(UserError, match=said + 'not have; name supervised in --methods, too'):
            tuning.check(IMAGES, ['teacher', 'td'], *places)
    searched(monkeypatch, tmp_path, Made(accuracy_of), IMAGES._replace(trials=6), 'supervised')
    tuning.check(IMAGES, ['teacher', 'td'], *places)
    (tmp_path / 'cifar10-supervised.journal').write_text('{}\n')
    with pytest.raises(UserError, match=r'supervised\.journal is damaged'):
        tuning.check(IMAGES, ['td'], *places)


def test_scratch_that_always_diverged_is_no_start(monkeypatch, tmp_path):
    few = IMAGES._replace(trials=6)
    with pytest.raises(UserError, match='every trial of supervised diverged'):
        searched(monkeypatch, tmp_path, Made(lambda config: {}), few, 'supervised')
    with pytest.raises(UserError, match=r'every trial of supervised in .* diverged, and td starts'):
        tuning.check(IMAGES, ['td'], epath.Path(tmp_path), epath.Path(tmp_path / 'o.json'))


@pytest.mark.parametrize(
    ('search', 'parts'),
    [(IMAGES, [['supervised'], ['td', 'ld']]), (DIGITS, [['td', 'supervised', 'ld']])],
)
def test_scratch_is_searched_before_what_starts_from_it(monkeypatch, tmp_path, search, parts):
    found = []

    def each(function, tasks, count, folder, what):
        found.append([task[1] for task in tasks])
        return [{'chosen': {'num_steps': 20}} for _ in tasks]

    monkeypatch.setattr(jobs, 'each', each)
    monkeypatch.setattr(cells, 'train_teachers', lambda root, configs, count: None)
    places = (epath.Path(tmp_path / name) for name in ('runs', 'journals', 'o.json'))
    names = [name for name, _ in tuning.tune(search, ['td', 'supervised', 'ld'], *places, 2)]
    assert names == [name for part in parts for name in part]
    assert found == parts


def test_a_finished_search_runs_nothing(monkeypatch, tmp_path):
    record, _ = searched(monkeypatch, tmp_path, Made(curve_of))
    made = Made(curve_of)
    assert searched(monkeypatch, tmp_path, made)[0] == record
    assert made.runs == []


@pytest.mark.parametrize(
    ('search', 'taught_by', 'said'),
    [
        (RATINGS._replace(steps=30), {}, r'its steps is 60, here 30'),
        (RATINGS, {'teacher.num_steps': 5}, r"its taught_by is {}, here {'teacher.num_steps': 5}"),
    ],
)
def test_a_journal_of_another_search_is_refused(monkeypatch, tmp_path, search, taught_by, said):
    searched(monkeypatch, tmp_path, Made(curve_of))
    with pytest.raises(
        UserError, match=f'movielens_by_user_Drama_War-ld.journal is of another search: {said}; choose'
    ):
        searched(monkeypatch, tmp_path, Made(curve_of), search, taught_by=taught_by)


@pytest.mark.parametrize(
    'text', ['{"op_code": 0', 'nothing\n{}\n', '{}\n', '[1]\n', '{"op_code": 99, "worker_id": "a"}\n']
)
def test_a_damaged_journal_is_refused(monkeypatch, tmp_path, text):
    (tmp_path / 'movielens_by_user_Drama_War-ld.journal').write_text(text)
    with pytest.raises(UserError, match=r'movielens_by_user_Drama_War-ld\.journal is damaged; delete it'):
        searched(monkeypatch, tmp_path, Made(curve_of))


def test_a_search_on_other_columns_has_a_journal_of_its_own(monkeypatch, tmp_path):
    """But the teacher's, whose runs are the same whatever the columns."""
    usual = RATINGS._replace(columns=tuning.CONFIGS['movielens'].mean_of)
    for search in (usual, RATINGS, RATINGS._replace(columns=('War',))):
        made = Made(curve_of)
        monkeypatch.setattr(tuning, '_curve', made)
        for name in ('ld', tuning.TEACHER):
            tuning.search_one(search, name, {}, epath.Path(tmp_path), epath.Path(tmp_path))
        genres = {run.dataset.genre for run in made.runs if run.method == 'ld'}
        assert genres == set(search.columns)
        assert any(run.method == 'supervised' for run in made.runs) == (search is usual)
    assert {path.name for path in tmp_path.iterdir()} == {
        'movielens_by_user-teacher.journal',
        'movielens_by_user-ld.journal',
        'movielens_by_user_Drama_War-ld.journal',
        'movielens_by_user_War-ld.journal',
    }


@pytest.mark.parametrize('module', tuning.CONFIGS)
def test_the_teacher_of_a_search_is_the_same_in_every_column(module):
    search = tuning.search_of(module, 'time', None, 4, 1, 600)
    runs = [tuning.prepared(search, tuning.TEACHER, column, 1) for column in tuning.CONFIGS[module].columns]
    assert len({config_lib.digest(run) for run in runs}) == 1


def test_the_teacher_s_knobs_are_those_of_the_runs(monkeypatch, tmp_path):
    made = Made(curve_of)
    searched(monkeypatch, tmp_path, made, taught_by={'teacher.num_steps': 77})
    assert {run.teacher.num_steps for run in made.runs} == {77}


@pytest.mark.parametrize(
    ('change', 'names', 'said'),
    [
        ({}, ['td', 'tdd'], "--methods 'tdd' is not known. Did you mean td?"),
        ({}, ['dkd'], "--methods 'dkd' is not known."),
        ({'columns': ('Drama', 'Horror')}, ['td'], "--columns 'Horror' is not known."),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, change, names, said):
    places = epath.Path(tmp_path / 'journals'), epath.Path(tmp_path / 'o.json')
    tuning.check(RATINGS, ['teacher', 'td', 'td_ld'], *places)
    with pytest.raises(UserError) as refused:
        tuning.check(RATINGS._replace(**change), names, *places)
    assert str(refused.value).startswith(said)


def test_places_that_cannot_be_written_are_refused(tmp_path):
    here = epath.Path(tmp_path / 'journals'), epath.Path(tmp_path / 'o.json')
    with pytest.raises(UserError, match=r'--journals gs://bucket/j is in a bucket, .* name a folder'):
        tuning.check(DIGITS, ['td'], epath.Path('gs://bucket/j'), here[1])
    with pytest.raises(UserError, match=r'--output .*/a/o\.json cannot be written: its folder is missing'):
        tuning.check(DIGITS, ['td'], here[0], epath.Path(tmp_path / 'a' / 'o.json'))


@pytest.mark.parametrize('name', ['workdir', 'journals'])
def test_folders_that_cannot_be_made_are_refused(tmp_path, name):
    (tmp_path / name).write_text('a file')
    places = (epath.Path(tmp_path / place) for place in ('workdir', 'journals', 'o.json'))
    with pytest.raises(
        UserError, match=rf'^{name} .*{name} cannot be written \(.*\); choose another --{name}\.$'
    ):
        list(tuning.tune(DIGITS, ['ld'], *places, 1))


@pytest.mark.parametrize(
    ('named', 'columns'),
    [
        (None, ('Drama', 'Adventure', 'War')),
        (['War', 'Drama', 'Adventure'], ('Drama', 'Adventure', 'War')),
        (['War', 'Comedy', 'War'], ('Comedy', 'War')),
        (['Horror'], ('Horror',)),
    ],
)
def test_columns_in_another_order_are_the_same_search(named, columns):
    assert tuning.search_of('movielens', 'user', named, 4, 1, 9).columns == columns


def test_a_split_of_what_is_not_split_is_refused():
    assert tuning.search_of('movielens', 'user', None, 4, 1, 9).columns == ('Drama', 'Adventure', 'War')
    with pytest.raises(UserError, match='--split_by is user, but digits has no ratings'):
        tuning.search_of('digits', 'user', None, 4, 1, 9)
    with pytest.raises(UserError, match="--config 'digit' is not known"):
        tuning.search_of('digit', 'time', None, 4, 1, 9)


@pytest.mark.parametrize(
    ('columns', 'filed_under'),
    [(tuning.CONFIGS['movielens'].mean_of, 'movielens_by_user'), (('War',), 'movielens_by_user_War')],
)
def test_what_was_chosen_is_written_and_what_was_there_stays(monkeypatch, tmp_path, columns, filed_under):
    target = tmp_path / 'o.json'
    before = {'teacher': {'teacher.num_steps': 5}}
    target.write_text(
        json.dumps({'movielens_by_time': {'td': {'num_steps': 3}}, 'movielens_by_user': before})
    )
    tasks = []

    def each(function, some, count, folder, what):
        tasks.extend(some)
        return [{'chosen': {'num_steps': 20 + len(tasks)}} for _ in some]

    monkeypatch.setattr(jobs, 'each', each)
    taught = []
    monkeypatch.setattr(cells, 'train_teachers', lambda root, configs, count: taught.extend(configs))
    places = (epath.Path(tmp_path / name) for name in ('runs', 'journals', 'o.json'))
    found = list(tuning.tune(RATINGS._replace(columns=columns), ['ld', 'teacher'], *places, 2))
    assert [name for name, _ in found] == ['teacher', 'ld']
    # The teacher's knobs are those that the methods are searched with, and not the teacher.
    assert [task[2] for task in tasks] == [{}, {'teacher.num_steps': 21}]
    assert [run.teacher.num_steps for run in taught[-3:]] == [21] * 3
    expected = {
        'movielens_by_time': {'td': {'num_steps': 3}},
        'movielens_by_user': {'teacher': {'teacher.num_steps': 21}},
    }
    expected.setdefault(filed_under, {})['ld'] = {'num_steps': 22}
    assert json.loads(target.read_text()) == expected


@pytest.mark.parametrize('task', evaluation.METRICS)
def test_best(task):
    less_is_better = evaluation.METRICS[task][3]
    curve = {10: 0.7, 20: 0.5, 30: 0.9, 40: 0.5, 50: 0.9}
    assert tuning.best(curve, less_is_better) == ((20, 0.5) if less_is_better else (30, 0.9))


@pytest.mark.long
def test_a_real_search(tmp_path):
    """Its score is the mean of what its runs logged, and what diverges ends no search."""
    search = DIGITS._replace(trials=2, steps=4)
    places = epath.Path(tmp_path / 'runs'), epath.Path(tmp_path / 'journals'), epath.Path(tmp_path / 'o.json')
    (found,) = tuning.tune(search, ['supervised'], *places, 1)
    assert found[0] == 'supervised'
    curves = collections.defaultdict(list)
    chosen = found[1]['chosen']
    for folder in (tmp_path / 'runs' / 'digits').iterdir():
        config = json.loads((folder / 'config.json').read_text())
        if config['optimizer']['learning_rate'] == chosen['optimizer.learning_rate']:
            for line in map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines()):
                if 'validation_accuracy' in line:
                    curves[line['step']].append(line['validation_accuracy'])
        assert not (folder / 'checkpoints').exists()
    assert {len(values) for values in curves.values()} == {3}
    means = {step: sum(values) / 3 for step, values in curves.items()}
    assert found[1]['score'] == pytest.approx(max(means.values()))
    assert means[chosen['num_steps']] == max(means.values())


def test_a_run_that_diverged_has_no_curve(monkeypatch, tmp_path):
    def diverges(root, config):
        raise Diverged('the loss is not finite')

    monkeypatch.setattr(cells, 'run_one', diverges)
    assert tuning._curve(epath.Path(tmp_path), tuning.prepared(DIGITS, 'td', 'digits', 0), 'x') == {}
