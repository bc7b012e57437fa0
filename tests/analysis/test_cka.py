"""Linear CKA of runs: the examples it reads, its values and its table."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from td_jax.analysis import cka
from td_jax.data import base as data
from td_jax.errors import UserError
from td_jax.training import teachers, train_step
from td_jax.training.run import train

pytestmark = pytest.mark.usefixtures('shared_programs')


def cka_from_features(x, y):
    """|Yc^T Xc|^2 / (|Xc^T Xc| |Yc^T Yc|), the biased estimator."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    top = np.linalg.norm(y.T @ x) ** 2
    return top / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


@pytest.fixture(scope='module')
def runs(small_config, tmp_path_factory):
    """{method: workdir} of finished runs, which all have the teacher of the first one."""
    root, teacher = tmp_path_factory.mktemp('runs'), {}
    for method in ('td', 'ld'):
        config = small_config(method=method, num_steps=2, teacher__num_steps=1, **teacher)
        train(config, root / method)
        teacher = {'teacher__checkpoint': str(root / 'td' / 'teacher')}
    return root


# --- Examples --------------------------------------------------------------------------------------


def make_examples(labels):
    return {'labels': np.array(labels), 'image': 10 * np.arange(len(labels))}


def make_source(evaluation, num_labels):
    return data.Source('some', {}, evaluation, 'classification', tuple(range(num_labels)), {}, (), None)


def test_the_first_examples_of_each_class_are_taken():
    examples_by_class = cka.gather_examples(make_source(make_examples([2, 0, 2, 0, 2, 0, 0]), 4), 3)
    assert {label: list(examples['image']) for label, examples in examples_by_class.items()} == {
        0: [10, 30, 50],
        2: [0, 20, 40],
    }


def test_a_stream_is_read_until_all_classes_are_full():
    labels_read = []

    def batches(batch_size, part, parts):
        assert (part, parts) == (0, 1)
        for labels, mask in (([0, 1, 0], [1, 1, 1]), ([1, 0, 1], [1, 1, 0]), ([0, 1, 1], [1, 0, 1]), None):
            labels_read.append(labels)
            yield make_examples(labels), np.array(mask)

    examples_by_class = cka.gather_examples(make_source(data.EvaluationStream(9, batches), 2), 3)
    assert {label: list(examples['image']) for label, examples in examples_by_class.items()} == {
        0: [0, 20, 10],
        1: [10, 0, 20],
    }
    assert len(labels_read) == 3


# --- Runs ------------------------------------------------------------------------------------------


def test_it_is_of_what_both_models_compute(runs):
    """One pair of one class, computed from the models themselves."""
    finished = teachers.load_finished_with_teacher(runs / 'td', 1, with_examples=True)
    one_seed = cka.analyse([runs / 'td'], 6, 'biased', seed_index=1)
    rows = np.flatnonzero(finished.source.evaluation['labels'] == 2)[:6]
    inputs = {'image': finished.source.evaluation['image'][rows]}
    params = finished.params[train_step.STUDENT]
    s_g = finished.student.lower(params, inputs)
    e_g = finished.student.upper(params, s_g)
    s_h = finished.teacher.model.lower(finished.teacher.params, inputs)
    e_h = finished.teacher.model.upper(finished.teacher.params, s_h)
    row = one_seed.values['td'][1]['7']
    for name, x, y in (('s_g,s_h', s_g, s_h), ('e_g,e_h', e_g, e_h), ('s_g,e_h', s_g, e_h)):
        assert row[name] == pytest.approx(cka_from_features(np.float64(x), np.float64(y)), abs=1e-5)
    assert len(row) == 9
    assert list(one_seed.values['td']) == [1]
    both_seeds = cka.analyse([runs / 'td'], 6, 'biased')
    assert list(both_seeds.values['td']) == [0, 1]
    assert both_seeds.values['td'][1]['7'] == row
    assert both_seeds.values['td'][0]['7'] != row
    pair = 'm_g,s_h'
    means = [both_seeds.values['td'][seed]['7'][pair] for seed in (0, 1)]
    assert both_seeds.by_class()['td']['7'][pair] == pytest.approx(np.mean(means))


@pytest.fixture
def leave_few_examples(monkeypatch):
    """A function ({class: count}) that leaves so many evaluation examples of each class."""
    load = teachers.load_finished_with_teacher

    def leave_examples(counts):
        def load_with_few_examples(folder, seed_index=0, with_examples=True):
            finished = load(folder, seed_index, with_examples)
            labels = finished.source.evaluation['labels']
            rows = [np.flatnonzero(labels == c)[: counts.get(c, 30)] for c in range(5)]
            evaluation = data.take(finished.source.evaluation, np.concatenate(rows))
            return finished._replace(source=finished.source._replace(evaluation=evaluation))

        monkeypatch.setattr(teachers, 'load_finished_with_teacher', load_with_few_examples)

    return leave_examples


def test_classes_with_few_examples_are_named(runs, leave_few_examples, tmp_path):
    leave_few_examples({0: 0, 1: 1, 2: 3, 3: 4})
    result = cka.analyse([runs / 'ld'], 5, 'debiased')
    assert result.used == {'8': 4, '9': 5}
    assert result.left_out == {'5': 0, '6': 1, '7': 3}
    assert list(result.values['ld'][0]) == ['8', '9']
    text = cka.to_markdown(result)
    assert 'debiased linear CKA, mean over 2 classes of digits 5, 6, 7, 8, 9 (test).' in text
    assert 'Fewer than 5 examples of 8 (4).' in text
    assert 'Left out, with fewer than 4 examples: 5 (0), 6 (1), 7 (3).' in text
    cka.save(result, tmp_path)
    assert json.loads((tmp_path / 'cka.json').read_text())['left_out'] == {'5': 0, '6': 1, '7': 3}


def test_no_class_with_enough_examples_is_refused(runs, leave_few_examples):
    leave_few_examples(dict.fromkeys(range(5), 1))
    with pytest.raises(UserError, match='has no class with 4 evaluation examples to compare'):
        cka.analyse([runs / 'td'], 20, 'debiased')


def test_a_student_that_computes_the_same_for_all_is_aligned_with_nothing(runs, monkeypatch):
    load = teachers.load_finished_with_teacher

    def load_with_constant_student(folder, seed_index=0, with_examples=True):
        finished = load(folder, seed_index, with_examples)
        params = {**finished.params, train_step.STUDENT: {}}
        student = finished.student._replace(
            lower=lambda p, x, key=None: jnp.full((len(x['image']), 3), 0.1),
            upper=lambda p, s, key=None: s * 0,
            head=lambda p, e: e,
        )
        return finished._replace(params=params, student=student)

    monkeypatch.setattr(teachers, 'load_finished_with_teacher', load_with_constant_student)
    result = cka.analyse([runs / 'ld'], 5, 'debiased')
    rows = result.by_class()['ld'].values()
    assert {value for row in rows for value in row.values()} == {0.0}


def make_comparison(values):
    """A Comparison of one class with these numbers, {run: {seed: {pair: CKA}}}."""
    by_class = {run: {seed: {'cat': row} for seed, row in seeds.items()} for run, seeds in values.items()}
    return cka.Comparison('debiased', 'some', 'test', 20, {'cat': 20}, {}, by_class, {})


def test_runs_are_compared_seed_by_seed():
    ours, theirs = np.random.default_rng(0).uniform(size=(2, 4))
    result = make_comparison(
        {
            'td': {seed: {'s_g,s_h': value, 'm_g,m_h': value} for seed, value in enumerate(theirs)},
            'fd': {seed: {'s_g,s_h': value} for seed, value in enumerate(ours)},
        }
    )
    lines = cka.to_markdown(result).splitlines()
    assert lines[0] == '| student, teacher | td | fd | fd less td, paired |'
    interval = scipy.stats.ttest_rel(ours, theirs).confidence_interval()
    half = (interval.high - interval.low) / 2
    assert lines[2].endswith(f'| {np.mean(ours - theirs):+.3f} ± {half:.3f} |')
    # FD has no messages.
    assert lines[3].startswith(f'| m_g, m_h | {theirs.mean():.3f} ± ')
    assert lines[3].endswith('|  |  |')
    assert 'Seeds: td 4, fd 4; ± is the half-width of the 95% t interval over them.' in lines


def test_other_seeds_are_not_paired_and_one_has_no_interval():
    result = make_comparison({'td': {0: {'s_g,s_h': 0.5}}, 'fd': {3: {'s_g,s_h': 0.25}}})
    assert cka.to_markdown(result).splitlines()[2] == '| s_g, s_h | 0.500 | 0.250 |  |'


def test_runs_of_one_method_go_by_their_folders():
    class Run:
        """A run's method and nothing else."""

        def __init__(self, method):
            self.config = type('Config', (), {'method': method})

    runs = [Run('td'), Run('td'), Run('ld')]
    assert cka._name_runs(runs, [pathlib.Path(f'r/{n}') for n in 'abc']) == ['td (a)', 'td (b)', 'ld']
    paths = [pathlib.Path(f'{n}/r') for n in 'abc']
    assert cka._name_runs(runs, paths) == ['td (a/r)', 'td (b/r)', 'ld']


@pytest.mark.long
def test_runs_that_differ_in_their_seeds_alone_are_one(small_config, tmp_path):
    """Runs of one cell are joined, and each keeps the values that it has by itself."""
    changes = {
        'a': {},
        'b': {'seed': 1, 'teacher__seed': 1},
        # `other` has another number of steps; `again` has a student seed that `a` has, too.
        'other': {'seed': 2, 'num_steps': 3},
        'again': {'teacher__seed': 7},
    }
    for name, change in changes.items():
        short = {'method': 'ld', 'num_seeds': 1, 'num_steps': 2, 'teacher__num_steps': 1}
        train(small_config(**short | change), tmp_path / name)
    alone = {name: cka.analyse([tmp_path / name], 5, 'debiased').by_class()['ld'] for name in changes}
    folders = [tmp_path / name for name in ('other', 'a', 'b')]
    result = cka.analyse(folders, 5, 'debiased')
    assert list(result.values) == ['ld (other)', 'ld (a)']
    assert result.values['ld (a)'] == {0: alone['a'], 1: alone['b']}
    assert result.values['ld (other)'] == {2: alone['other']}
    stored = json.loads(cka.to_json(result))
    assert stored['runs']['ld (a)'] == {
        'workdirs': [str(tmp_path / 'a'), str(tmp_path / 'b')],
        'method': 'ld',
    }
    together = cka.analyse([tmp_path / 'a', tmp_path / 'again'], 5, 'debiased')
    assert list(together.values) == ['ld (a)', 'ld (again)']


@pytest.mark.long
def test_students_of_teachers_that_were_trained_differently_are_not_one(small_config, tmp_path):
    for i in range(2):
        config = small_config(method='ld', seed=i, num_seeds=1, num_steps=2, teacher__num_steps=1 + i)
        train(config, tmp_path / f'first_{i}')
        teacher = {'teacher__checkpoint': str(tmp_path / f'first_{i}' / 'teacher')}
        train(small_config(method='ld', seed=i, num_seeds=1, num_steps=2, **teacher), tmp_path / f'run_{i}')
    result = cka.analyse([tmp_path / f'run_{i}' for i in range(2)], 5, 'debiased')
    assert list(result.values) == ['ld (run_0)', 'ld (run_1)']


def test_runs_that_cannot_be_compared_are_refused(runs, monkeypatch):
    with pytest.raises(UserError, match='the same folder twice'):
        cka.analyse([runs / 'td', runs / 'td'], 5, 'debiased')
    load = teachers.load_finished_with_teacher

    def load_renamed(folder, seed_index=0, with_examples=True):
        finished = load(folder, seed_index, with_examples)
        source = finished.source._replace(name='other' if folder.name == 'ld' else 'some')
        return finished._replace(source=source)

    monkeypatch.setattr(teachers, 'load_finished_with_teacher', load_renamed)
    with pytest.raises(UserError, match=r'different data: some \(test\), other \(test\)\.'):
        cka.analyse([runs / 'td', runs / 'ld'], 5, 'debiased')

    def load_as_regression(folder, seed_index=0, with_examples=True):
        finished = load(folder, seed_index, with_examples)
        return finished._replace(source=finished.source._replace(task='regression'))

    monkeypatch.setattr(teachers, 'load_finished_with_teacher', load_as_regression)
    with pytest.raises(UserError, match='has no classes to compare by'):
        cka.analyse([runs / 'td'], 5, 'debiased')
