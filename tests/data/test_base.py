"""Batches: every example counts once in an evaluation and at most once in an epoch."""

import collections

import jax
import numpy as np
import pytest

from td_jax.data import base
from td_jax.errors import UserError

COUNT = 35  # 5 * 7


@pytest.mark.parametrize('batch_size', [1, 2, 5, 7, 11, 34, 35, 36, 101])
def test_padded_batches_count_every_example_once(batch_size):
    examples = {'x': np.arange(COUNT * 3).reshape(COUNT, 3), 'labels': np.arange(COUNT)}
    batches, mask = base.padded_batches(examples, batch_size)
    num_batches = int(np.ceil(COUNT / batch_size))
    assert batches['x'].shape == (num_batches, batch_size, 3)
    assert batches['labels'].shape == mask.shape == (num_batches, batch_size)
    is_real = np.asarray(mask) == 1
    assert set(np.unique(mask)) <= {0, 1}
    # Each once, in order; the padding repeats examples.
    np.testing.assert_array_equal(batches['labels'][is_real], examples['labels'])
    np.testing.assert_array_equal(batches['x'][is_real], examples['x'])
    assert set(batches['labels'][~is_real]) <= set(examples['labels'])


@pytest.mark.parametrize('batch_size', [1, 3, 7, 35])
def test_an_epoch_has_all_whole_batches_and_no_example_twice(batch_size):
    order = base.epoch_order(jax.random.key(2), 3, COUNT)
    np.testing.assert_array_equal(np.sort(order), np.arange(COUNT))
    num_batches = COUNT // batch_size
    # The steps of the fourth epoch.
    steps = range(3 * num_batches, 4 * num_batches)
    rows = np.stack([base.batch_rows(order, step, batch_size) for step in steps])
    np.testing.assert_array_equal(rows.ravel(), order[: num_batches * batch_size])


def test_what_an_epoch_leaves_over_comes_in_others():
    times_drawn = collections.Counter()
    for epoch in range(7):
        order = base.epoch_order(jax.random.key(0), epoch, COUNT)
        times_drawn.update(np.asarray(order[:33]).tolist())
    assert set(times_drawn) == set(range(COUNT))


def test_the_order_depends_on_key_and_epoch_alone():
    key = jax.random.key(5)
    orders = {
        name: np.asarray(base.epoch_order(k, epoch, COUNT)).tobytes()
        for name, k, epoch in (
            ('first', key, 0),
            ('again', jax.random.key(5), 0),
            ('next epoch', key, 1),
            ('other key', jax.random.key(6), 0),
        )
    }
    assert orders['first'] == orders['again']
    assert len(set(orders.values())) == 3
    # The order is the same if the epoch is traced, as in the training loop.
    traced = jax.jit(base.epoch_order, static_argnums=2)(key, 1, COUNT)
    assert np.asarray(traced).tobytes() == orders['next epoch']


def test_take_picks_rows_of_every_array():
    examples = {'x': np.arange(6).reshape(3, 2), 'labels': np.array([7, 8, 9])}
    taken = base.take(examples, np.array([2, 0]))
    np.testing.assert_array_equal(taken['x'], [[4, 5], [0, 1]])
    np.testing.assert_array_equal(taken['labels'], [9, 7])


# --- What a data set must not hold -----------------------------------------------------------------


def make_source(task='classification', train=None, evaluation=None, label_names=('a', 'b', 'c')):
    """A source of four training and two evaluation examples, with some arrays replaced."""
    examples = {
        count: {'image': np.zeros((count, 2, 2), np.float32), 'labels': np.arange(count) % 3}
        for count in (4, 2)
    }
    return base.Source(
        name='shapes',
        train={**examples[4], **(train or {})},
        evaluation={**examples[2], **(evaluation or {})},
        task=task,
        label_names=label_names,
        vocabularies={},
        tables=(),
        inputs=None,
    )


def make_array_with(shape, index, value):
    array = np.zeros(shape, np.float32)
    array[index] = value
    return array


def test_a_good_source_passes():
    base.check(make_source())
    base.check(make_source('regression', {'labels': make_array_with(4, 1, -7.5)}, label_names=('size',)))


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        (
            make_source(train={'image': np.zeros((0, 2, 2)), 'labels': np.zeros(0, int)}),
            'dataset shapes has no training examples.',
        ),
        (
            make_source(evaluation={'image': np.zeros((0, 2, 2)), 'labels': np.zeros(0, int)}),
            'dataset shapes has no evaluation examples.',
        ),
        (
            make_source()._replace(train=base.TrainStream(0, {}, None)),
            'dataset shapes has no training examples.',
        ),
        (
            make_source()._replace(evaluation=base.EvaluationStream(0, None)),
            'dataset shapes has no evaluation examples.',
        ),
        (
            make_source(train={'labels': np.array([0, 1, 3, 4])}),
            'dataset shapes, training examples: label of row 2 is 3; it must be from 0 to 2.',
        ),
        (
            make_source(evaluation={'labels': np.array([0, -1])}),
            'dataset shapes, evaluation examples: label of row 1 is -1; it must be from 0 to 2.',
        ),
        (
            make_source(train={'image': make_array_with((4, 2, 2), (2, 1, 0), np.nan)}),
            'dataset shapes, training examples: image of row 2 holds nan; it must be a finite number.',
        ),
        (
            make_source('regression', evaluation={'labels': make_array_with(2, 1, np.inf)}),
            'dataset shapes, evaluation examples: labels of row 1 is inf; it must be a finite number.',
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_field_and_row(source, message):
    with pytest.raises(UserError) as error_info:
        base.check(source)
    assert str(error_info.value).removesuffix(' Repair the data set, or prepare it anew.') == message
