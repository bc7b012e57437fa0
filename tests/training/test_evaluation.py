"""Metrics against scikit-learn and SciPy, whatever the batch size and the number of seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from td_jax.configs import common
from td_jax.data import base as data
from td_jax.devices import sharding
from td_jax.models import base
from td_jax.training import evaluation

COUNT, WIDTH, CLASSES, SEEDS = 47, 3, 5, 2
MESH = sharding.make_mesh(common.get_config())


def make_case(task):
    """A linear model with stacked parameters, its source, and each seed's predictions by NumPy."""
    rng = np.random.default_rng(11)
    outputs = 1 if task == 'regression' else CLASSES
    x = rng.normal(size=(COUNT, WIDTH)).astype(np.float32)
    labels = (
        rng.uniform(1, 5, COUNT).astype(np.float32)
        if task == 'regression'
        else rng.integers(0, CLASSES, COUNT)
    )
    params = rng.normal(size=(SEEDS, WIDTH, outputs)).astype(np.float32)
    model = base.Model(
        init=None,
        lower=lambda params, inputs, key: inputs['x'] @ params,
        upper=lambda params, s, key: s,
        head=lambda params, e: e,
    )
    source = data.Source(
        name='linear',
        train={},
        evaluation={'x': x, 'labels': labels},
        task=task,
        label_names=tuple(map(str, range(outputs))),
        vocabularies={},
        tables=(np.float32(2),),
        inputs=lambda tables, examples, key: {'x': examples['x'] / tables[0]},
    )
    return model, source, params, [x / 2 @ weights for weights in params]


def compute_sklearn_metric(task, predictions, labels):
    if task == 'regression':
        return sklearn.metrics.root_mean_squared_error(labels, predictions[:, 0])
    return sklearn.metrics.accuracy_score(labels, predictions.argmax(axis=1))


@pytest.mark.parametrize('task', ['regression', 'classification'])
def test_metrics_are_those_of_sklearn_for_every_batch_size(task):
    model, source, params, predictions = make_case(task)
    expected = [compute_sklearn_metric(task, p, source.evaluation['labels']) for p in predictions]
    assert expected[0] != expected[1]
    values = {}
    for batch_size in (1, 7, COUNT, COUNT + 3):
        evaluate = evaluation.make_evaluation(model, source, batch_size, MESH)
        values[batch_size] = evaluate(jnp.asarray(params)).metric
        assert values[batch_size].shape == (SEEDS,)
        np.testing.assert_allclose(values[batch_size], expected, rtol=1e-6)
    if task == 'classification':
        # Counts are exact, so these are the same to the last bit.
        assert len({value.tobytes() for value in values.values()}) == 1
        np.testing.assert_array_equal(values[1], expected)
    # Rounding of products may depend on the batch size.
    for value in values.values():
        np.testing.assert_allclose(value, values[1], rtol=3e-7)


@pytest.mark.parametrize('batch_size', [7, COUNT, 2 * COUNT])
@pytest.mark.parametrize('task', ['regression', 'classification'])
def test_each_example_has_its_value(task, batch_size):
    model, source, params, predictions = make_case(task)
    labels = source.evaluation['labels']
    scores = evaluation.make_evaluation(model, source, batch_size, MESH)(params)
    if task == 'regression':
        expected = [(p[:, 0].astype(np.float64) - labels) ** 2 for p in predictions]
        finish = np.sqrt
    else:
        expected = [p.argmax(axis=1) == labels for p in predictions]
        finish = np.asarray
    assert scores.values.shape == (SEEDS, COUNT)
    assert scores.values.dtype == np.float32
    np.testing.assert_allclose(scores.values, expected, rtol=1e-4, atol=1e-6)
    # The metric is that of these values, to the last bit.
    sums = [sum(map(float, values)) for values in scores.values]
    np.testing.assert_allclose(scores.metric, finish(np.array(sums) / COUNT), rtol=1e-14)


@pytest.mark.parametrize('task', ['regression', 'classification'])
def test_the_metric_of_each_group_is_that_of_its_examples_alone(task):
    model, source, params, predictions = make_case(task)
    labels, is_even = source.evaluation['labels'], np.arange(COUNT) % 2 == 0
    groups = {'even': is_even, 'odd': ~is_even, 'none': np.zeros(COUNT, bool)}
    source = source._replace(groups=groups)
    scores = evaluation.make_evaluation(model, source, 13, MESH)(params)
    scores_by_group = evaluation.score_groups(source, scores.values)
    assert scores_by_group.keys() == {'even', 'odd'}
    for name, group in scores_by_group.items():
        rows = np.flatnonzero(groups[name])
        expected = [compute_sklearn_metric(task, p[rows], labels[rows]) for p in predictions]
        np.testing.assert_allclose(group['values'], expected, rtol=1e-6)
        assert group['count'] == {'even': 24, 'odd': 23}[name]
        assert all(type(value) is float for value in group['values'])


def test_a_stream_has_a_metric_and_no_values():
    model, source, params, predictions = make_case('regression')
    examples = source.evaluation

    def open_stream(batch_size, part, parts):
        assert (part, parts) == (0, 1)
        batches, mask = data.padded_batches(examples, batch_size)
        for i in range(len(mask)):
            yield data.take(batches, i), mask[i]

    stream = data.EvaluationStream(COUNT, open_stream)
    source = source._replace(evaluation=stream)
    scores = evaluation.make_evaluation(model, source, 10, MESH)(params)
    expected = [compute_sklearn_metric('regression', p, examples['labels']) for p in predictions]
    np.testing.assert_allclose(scores.metric, expected, rtol=1e-6)
    assert scores.values is None


def test_other_examples_than_the_sources_can_be_evaluated():
    model, source, params, predictions = make_case('regression')
    evaluate = evaluation.make_evaluation(model, source, 13, MESH)
    rows = np.arange(5, 22)
    expected = [
        compute_sklearn_metric('regression', p[rows], source.evaluation['labels'][rows]) for p in predictions
    ]
    scores = evaluate(params, data.take(source.evaluation, rows))
    np.testing.assert_allclose(scores.metric, expected, rtol=1e-6)
    assert scores.values.shape == (SEEDS, len(rows))


def test_evaluation_has_no_dropout_and_no_variation():
    keys = []
    model, source, params, _ = make_case('regression')

    def inputs(tables, examples, key):
        keys.append(key)
        return source.inputs(tables, examples, key)

    def lower(params, inputs, key):
        keys.append(key)
        return model.lower(params, inputs, key)

    evaluation.make_evaluation(model._replace(lower=lower), source._replace(inputs=inputs), 7, MESH)(params)
    assert keys
    assert set(keys) == {None}


def test_which_metric_is_better_when_less():
    (_, _, _, rmse), (_, _, _, accuracy) = (evaluation.METRICS[t] for t in ('regression', 'classification'))
    assert rmse
    assert not accuracy


@pytest.mark.parametrize('count', [2, 3, 5, 11])
def test_mean_and_standard_error_are_scipys(count):
    values = np.random.default_rng(count).normal(1.0, 0.01, count)
    mean, stderr = evaluation.mean_and_stderr(values)
    np.testing.assert_allclose(mean, np.mean(values), rtol=1e-12)
    np.testing.assert_allclose(stderr, scipy.stats.sem(values), rtol=1e-12)


def test_one_value_has_no_standard_error():
    assert evaluation.mean_and_stderr(jax.numpy.array([0.25])) == (0.25, None)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('task', ['regression', 'classification'])
def test_a_prediction_that_is_not_finite_leaves_its_seed_without_a_score(task, value):
    """It is one of 47 examples, in a padded batch, for one of two seeds."""
    model, source, params, _ = make_case(task)
    features = source.evaluation['x'].copy()
    # A feature that the second seed alone reads.
    features[46, 2], params[0][2] = value, 0
    features[:46, 2] = 0
    examples = {**source.evaluation, 'x': features}
    source = source._replace(
        inputs=lambda tables, examples, key: {'x': examples['x'], 'odd': examples['x'][:, 2:]}
    )
    model = model._replace(
        lower=lambda params, inputs, key: (
            jnp.where(params[2:] == 0, 0.0, inputs['odd'] * params[2:]) + inputs['x'][:, :2] @ params[:2]
        )
    )
    values = evaluation.make_evaluation(model, source, 10, MESH)(params, examples).metric
    finite = features[:, :2] @ params[0][:2]
    np.testing.assert_allclose(values[0], compute_sklearn_metric(task, finite, examples['labels']), rtol=1e-5)
    assert not np.isfinite(values[1])


def test_a_model_of_nans_has_no_score():
    model, source, params, _ = make_case('classification')
    values = evaluation.make_evaluation(model, source, 16, MESH)(np.full_like(params, np.nan)).metric
    assert np.isnan(values).all()


@pytest.mark.parametrize('batch_size', [COUNT, 2**31 - 1])
def test_a_batch_is_no_larger_than_the_examples(batch_size):
    model, source, params, predictions = make_case('regression')
    rows = []
    inputs = source.inputs
    source = source._replace(
        inputs=lambda tables, examples, key: rows.append(len(examples['x'])) or inputs(tables, examples, key)
    )
    values = evaluation.make_evaluation(model, source, batch_size, MESH)(params).metric
    expected = [compute_sklearn_metric('regression', p, source.evaluation['labels']) for p in predictions]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert set(rows) == {COUNT}
