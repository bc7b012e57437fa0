"""Batches: every example counts once in an evaluation and at most once in an epoch."""

import collections

import jax
import numpy as np
import pytest

from td_jax.data import base

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
    # In their order, each once, and the padding is nothing but padding.
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
    drawn = collections.Counter()
    for epoch in range(7):
        order = base.epoch_order(jax.random.key(0), epoch, COUNT)
        drawn.update(np.asarray(order[:33]).tolist())
    assert set(drawn) == set(range(COUNT))


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
    # A traced epoch, as the training loop has it, is the same one.
    traced = jax.jit(base.epoch_order, static_argnums=2)(key, 1, COUNT)
    assert np.asarray(traced).tobytes() == orders['next epoch']


def test_take_picks_rows_of_every_array():
    examples = {'x': np.arange(6).reshape(3, 2), 'labels': np.array([7, 8, 9])}
    taken = base.take(examples, np.array([2, 0]))
    np.testing.assert_array_equal(taken['x'], [[4, 5], [0, 1]])
    np.testing.assert_array_equal(taken['labels'], [9, 7])
