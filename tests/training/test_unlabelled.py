"""Unlabelled examples in a step and in a run: the terms read them, and nothing reads their labels."""

import shutil

import jax
import numpy as np
import pytest
import scipy.special

from td_jax.configs import vit_tiny_cifar10
from td_jax.data import SOURCES, digits, movielens
from td_jax.devices import sharding
from td_jax.errors import UserError
from td_jax.method import logits, objectives, shared
from td_jax.models import base
from td_jax.training import assembly, dispatch, train_step
from td_jax.training.run import train
from tests.conftest import RATED

# The teacher has other classes, so the terms read a probe, which is fitted to labels.
CHANGES = {'dataset__unlabelled': 'rest', 'unlabelled_batch_size': 12}


def build(config):
    """(source, teacher, Dispatch, keys, state before the first step) of a config, the teacher untrained."""
    source, theirs = (assembly.load_source(config, task) for task in (config.dataset, config.teacher.dataset))
    teacher = assembly.untrained_teacher(config, theirs)
    run, keys = (
        assembly.assemble(config, source, teacher, sharding.make_mesh(config)),
        dispatch.seed_keys(config),
    )
    return source, teacher, run, keys, run.add_probe(run.init(keys))


def advance(run, keys, state, stop):
    """(state as arrays, {metric: [seeds]}) after the steps from 0 to `stop`."""
    progress, _ = run.run(run.begin(state), run.feed(keys, 0), keys, 0, stop)
    assert progress.finite
    return jax.tree.map(np.array, (progress.state, progress.sums))


@pytest.mark.parametrize('inputs', ['clean', 'varied'])
def test_the_terms_read_both_and_the_task_those_with_labels(comparable_config, inputs):
    """A first step of LD with a probe, by hand."""
    config = comparable_config(method='ld', teacher__inputs=inputs, **CHANGES)
    source, teacher, run, keys, state = build(config)
    before = jax.tree.map(np.array, state)
    orders = jax.tree.map(np.array, run.feed(keys, 0))
    assert (run.constants.teacher_states is not None) == (inputs == 'clean')
    _, sums = advance(run, keys, state, 1)
    student = assembly.build_model(config, config.model, source)
    for seed, number in enumerate(dispatch.data_seeds(config)):
        pool, params = source.train.examples, jax.tree.map(lambda x, seed=seed: x[seed], before)
        labelled = source.train.rows(number)[orders.labelled[seed][:8]]
        others = source.unlabelled.rows(number)[orders.unlabelled[seed][:12]]
        assert not set(labelled) & set(others)
        x, labels = pool['image'][np.concatenate([labelled, others])], pool['labels'][labelled]
        predicted = np.asarray(base.activations(student, params.params['student'], {'image': x}).logits)
        upper = np.asarray(base.activations(teacher.model, teacher.params, {'image': x}).upper)
        probed = upper @ params.probe['kernel'] + params.probe['bias']
        expected = {
            'task': -scipy.special.log_softmax(predicted[:8], axis=1)[np.arange(8), labels].mean(),
            'logits': np.mean((predicted - probed) ** 2),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(sums[name][seed], value, rtol=1e-4)
        total = expected['task'] + config.ld.weights.logits * expected['logits']
        np.testing.assert_allclose(sums['loss'][seed], total, rtol=1e-4)


def test_pairs_without_a_rating_are_compared_with_what_the_teacher_says(small_config, monkeypatch):
    """A first step of LD on ratings, by hand; the last of the four examples of a batch has no label."""
    monkeypatch.setattr(movielens, 'read_ratings', lambda *size: RATED)
    changes = {'batch_size': 3, 'unlabelled_batch_size': 1, 'teacher__labels': 'shared', 'num_seeds': 1}
    config = small_config(method='ld', dataset__name='movielens', dataset__unlabelled='1', **changes)
    config.dataset.classes = config.teacher.dataset.classes = ()
    config.dataset.user_oov_rate = config.dataset.movie_oov_rate = 0.0
    for model in (config.model, config.teacher.model):
        model.embeddings.update({'user': 3, 'movie': 5, 'title_words': 2, 'genres': 2})
    source, teacher, run, keys, state = build(config)
    before, order = (jax.tree.map(np.array, tree) for tree in (state, run.feed(keys, 0)))
    _, sums = advance(run, keys, state, 1)
    rows = order.labelled[0][:3]
    examples = {name: source.train[name][rows] for name in ('user', 'movie')}
    # The only unrated pair of known ids.
    examples = {name: np.append(array, {'user': 1, 'movie': 2}[name]) for name, array in examples.items()}
    inputs = source.inputs(source.tables, examples, None)
    params = jax.tree.map(lambda x: x[0], before.params['student'])
    student = assembly.build_model(config, config.model, source)
    ours, theirs = (
        np.asarray(base.activations(model, params, inputs).logits)
        for model, params in ((student, params), (teacher.model, teacher.params))
    )
    labels = source.train['labels'][rows]
    np.testing.assert_allclose(sums['task'][0], np.mean((ours[:3, 0] - labels) ** 2), rtol=1e-4)
    np.testing.assert_allclose(sums['logits'][0], np.mean((ours - theirs) ** 2), rtol=1e-4)


def test_the_probe_is_that_of_a_run_without_them(small_config):
    fits = [
        build(small_config(method='ld', num_seeds=1, **changes))[2].fit_probe()[0].params
        for changes in ({}, CHANGES)
    ]
    for name, array in fits[0].items():
        np.testing.assert_array_equal(fits[1][name], array)


def test_parts_of_a_batch_have_both(comparable_config):
    """Four micro batches give the result of one batch."""
    ends = []
    for micro_batches in (1, 4):
        config = comparable_config(method='ld', num_seeds=1, micro_batches=micro_batches, **CHANGES)
        _, _, run, keys, state = build(config)
        ends.append(advance(run, keys, state, 3))
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def change_unread_labels(monkeypatch, config):
    """Gives the examples that are unlabelled for all seeds the label of another class."""
    source = digits.load(config.dataset, config.dataset)
    read_rows = np.unique([source.train.rows(number) for number in dispatch.data_seeds(config)])

    def load(dataset, task):
        loaded = digits.load(dataset, task)
        if task != config.dataset:
            return loaded
        labels = (loaded.train.examples['labels'] + 1) % len(loaded.label_names)
        labels[read_rows] = loaded.train.examples['labels'][read_rows]
        assert (labels != loaded.train.examples['labels']).sum() > 300
        # The draw was made with the correct labels.
        pool = loaded.train._replace(examples={**loaded.train.examples, 'labels': labels})
        return loaded._replace(train=pool)

    monkeypatch.setitem(SOURCES, 'digits', load)


@pytest.mark.parametrize(
    'method', ['ld', *(pytest.param(name, marks=pytest.mark.long) for name in ('td', 'dkd'))]
)
def test_their_labels_are_read_nowhere(method, small_config, monkeypatch, tmp_path, outcome):
    """Wrong labels, set after the labelled examples are drawn, do not change a bit."""
    config = small_config(method=method, diagnostics=True, **CHANGES)
    config.td.weights.logits = 1.0
    train(config, tmp_path / 'right')
    change_unread_labels(monkeypatch, config)
    # The teacher's task is another one, so its run is reused.
    shutil.copytree(tmp_path / 'right' / 'teacher', tmp_path / 'nonsense' / 'teacher')
    train(config, tmp_path / 'nonsense')
    right, nonsense = (outcome(tmp_path / name) for name in ('right', 'nonsense'))
    assert right == nonsense
    assert {f'share_{term}' for term in objectives.active_terms(config)} <= right['metrics'][0].keys()


def test_a_run_without_terms_is_that_without_them(small_config, tmp_path):
    """It is the same run, which is therefore finished."""
    config = small_config(method='supervised', num_steps=2, **CHANGES)
    plain = small_config(method='supervised', num_steps=2)
    result = train(config, tmp_path)
    assert train(plain, tmp_path) == result


def test_dkd_takes_the_class_that_the_teacher_finds_most_probable(small_config):
    config = small_config(method='dkd', teacher__labels='shared')
    rng = np.random.default_rng(4)
    ours, theirs = (rng.normal(size=(6, 5)).astype(np.float32) for _ in range(2))
    participants = [shared.Participant(base.Activations(None, None, x), None) for x in (ours, theirs)]
    labels = np.array([3, 0], np.int32)
    terms = logits.dkd_terms({}, *participants, labels, config, None)
    filled_labels = np.concatenate([labels, theirs[2:].argmax(axis=1)])
    expected = logits.dkd_terms({}, *participants, filled_labels, config, None)
    assert terms.keys() == {'target', 'others'}
    for name, term in terms.items():
        np.testing.assert_array_equal(term, expected[name])
    terms_of_others = logits.dkd_terms({}, *participants, (filled_labels + 1) % 5, config, None)
    assert not np.allclose(terms['target'][2:], terms_of_others['target'][2:])


@pytest.mark.parametrize('method', [name for name in objectives.METHODS if name != 'supervised'])
def test_every_method_is_traced_with_them(method, small_config):
    config = small_config(method=method, num_seeds=1, **CHANGES)
    source, theirs = (assembly.load_source(config, task) for task in (config.dataset, config.teacher.dataset))
    teacher = assembly.abstract_teacher(config, theirs)
    abstract = assembly.abstract(config, source, teacher, sharding.make_mesh(config))
    assert abstract.progress.sums.keys() >= {'task', *objectives.active_terms(config)} - {'interact'}
    assert abstract.progress.state.params[train_step.STUDENT]


def test_a_step_is_compiled_without_their_images():
    """In each of five classes of CIFAR-10, 50 of 5,000 images are labelled."""
    config = vit_tiny_cifar10.get_config()
    config.num_seeds, config.dataset.unlabelled = 1, 'rest'
    for model in (config.model, config.teacher.model):
        model.layers, model.width, model.heads, model.mlp, model.split = 2, 8, 2, 8, 1
    mesh = sharding.make_mesh(config)
    constants = assembly.abstract_images(config, mesh).constants
    assert constants.train['image'].shape == (25_000, 32, 32, 3)
    assert constants.unlabelled_rows.shape == (1, 24_750)
    config.dataset.unlabelled = 'folder'
    with pytest.raises(UserError, match=r'^dataset\.unlabelled is folder, whose number of examples is known'):
        assembly.abstract_images(config, mesh)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'unlabelled_batch_size': 5000},
            r'^unlabelled_batch_size is 5000, but there are \d+ examples without',
        ),
        (
            {'dataset__unlabelled': '7', 'unlabelled_batch_size': 0},
            '^batch_size is 8, but there are 7 example',
        ),
        ({'micro_batches': 8}, '^unlabelled_batch_size is 12, which 1 device times micro_batches=8 do not'),
        ({'unlabelled_batch_size': -1}, '^unlabelled_batch_size is -1; it must be 0 or more'),
    ],
)
def test_a_batch_that_cannot_be_is_refused(changes, message, small_config, tmp_path):
    with pytest.raises(UserError, match=message):
        train(small_config(**{**CHANGES, **changes}), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
