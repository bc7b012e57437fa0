"""Shared code of data sets of ratings: splits, vocabularies, bags of words and inputs.

The protocol: ratings in order of time; the first 90% are for training and the rest is the test, of all
ratings (`split_by` 'time') or of each user's own ('user'); the filter of a task comes after the split. The
validation slice is the last tenth of the training part, or, for a higher number of it, one of the tenths
before; training then has what lies before the slice alone. Ids that a task's own training examples never
show share row 0 of their embedding, which training teaches by sending a share of all ids there.
"""

import collections
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.data.base import Ids, Source
from td_jax.devices import memory
from td_jax.errors import UserError

TRAIN_SHARE = 0.9
SPLITS_BY = 'time', 'user'
# The highest number of a validation slice; four tenths of the training part lie before it.
LAST_SLICE = 5
OUT_OF_VOCABULARY = 0


class Column(NamedTuple):
    """The ids of users, or of what they rate."""

    field: str  # name in examples and inputs
    name: str  # name of the column in a table
    number: np.ndarray  # [ratings] int32, the number of the id, from 0
    raw: np.ndarray  # [ids], text


class Ratings(NamedTuple):
    """All ratings, in order of time."""

    user: Column
    item: Column
    labels: np.ndarray  # [ratings] float32


def cut(ratings: Ratings, config, is_chosen: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Splits ratings, then keeps those of some items.

    Args:
      ratings: all of them.
      config: `config.dataset`, for the split.
      is_chosen: [items] bool, which items a task is about.
      what: how a refusal calls those.

    Returns:
      Row numbers of (training, evaluation), in order of time.

    Raises:
      UserError: one of the two has no ratings.
    """
    parts = [rows[is_chosen[ratings.item.number[rows]]] for rows in split(ratings.user.number, config)]
    for rows, part in zip(parts, ('training', config.split), strict=True):
        if not len(rows):
            raise UserError(f'{what} has no ratings in the {part} part.')
    return tuple(parts)


def source_of(
    name: str,
    ratings: Ratings,
    parts: tuple[np.ndarray, np.ndarray],
    bags: dict[str, np.ndarray],
    config,
) -> Source:
    """Makes a Source of ratings that are split.

    Inputs: {user's field: [batch] rows, item's field: [batch] rows, name of a bag: [batch, its width]}.

    Args:
      name: what a person calls it.
      ratings: all of them.
      parts: row numbers of (training, evaluation), by `cut`.
      bags: {name: [items + 1, width]}, what is known of an item except its id; the last row is that of an
        item that is not in the data.
      config: `config.dataset`, for the out-of-vocabulary rates.
    """
    train, evaluation = parts
    columns = ratings.user, ratings.item
    examples = {column.field: column.number for column in columns} | {'labels': ratings.labels}
    rows = {column.field: vocabulary(column.number[train], len(column.raw)) for column in columns}
    is_known = {field: id_rows != OUT_OF_VOCABULARY for field, (id_rows, _) in rows.items()}
    of_known_user = is_known[ratings.user.field][ratings.user.number[evaluation]]
    training = {field: array[train] for field, array in examples.items()}
    return Source(
        name=name,
        train=training,
        evaluation={field: array[evaluation] for field, array in examples.items()},
        task='regression',
        label_names=('rating',),
        vocabularies={field: count for field, (_, count) in rows.items()}
        | {bag: array.shape[1] for bag, array in bags.items()},
        tables={
            # The last row is that of an id that is not in the data.
            **{
                f'{field}_rows': np.append(id_rows, np.int32(OUT_OF_VOCABULARY))
                for field, (id_rows, _) in rows.items()
            },
            'bags': bags,
        },
        inputs=inputs_of(config, ratings.user.field, ratings.item.field),
        units=ratings.user.number[evaluation],
        groups={'known_users': of_known_user, 'unknown_users': ~of_known_user},
        ids={column.field: Ids(column.name, column.raw, is_known[column.field]) for column in columns},
        pairs={column.field: training[column.field] for column in columns},
    )


def inputs_of(config, user: str, item: str):
    """Makes Source.inputs of ratings.

    Args:
      config: `config.dataset`, for the out-of-vocabulary rates.
      user, item: what examples and inputs call the ids of users and of what they rate.
    """
    rates = {user: config.user_oov_rate, item: config.movie_oov_rate}
    return functools.partial(_make_inputs, rates=rates, item=item)


def _make_inputs(tables, examples, key, *, rates, item):
    """Makes inputs from numbers of users and items; with a key, some ids go out of vocabulary.

    An item whose id is hidden keeps what else is known of it, as a new one would have it.
    """
    id_rows = {field: jnp.asarray(tables[f'{field}_rows'])[examples[field]] for field in rates}
    if key is not None:
        chance = jax.random.uniform(key, (len(rates), *id_rows[item].shape), jnp.float32)
        id_rows = {
            field: jnp.where(chance[i] < rates[field], OUT_OF_VOCABULARY, rows)
            for i, (field, rows) in enumerate(id_rows.items())
        }
    return id_rows | {name: jnp.asarray(bag)[examples[item]] for name, bag in tables['bags'].items()}


def split(users: np.ndarray, config) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of (training, evaluation), in order of time.

    Args:
      users: [ratings], who gave each, in order of time.
      config: `config.dataset`.
    """
    if config.split_by == 'time':
        # All ratings are one series.
        users = np.zeros(len(users), np.int32)
    counts = np.bincount(users)
    start, stop = _evaluation_bounds(counts, config.split, config.validation_slice)
    # The place of each rating among those of its user, from 0.
    order = np.argsort(users, kind='stable')
    place = np.empty(len(users), np.int64)
    place[order] = np.arange(len(users)) - (np.cumsum(counts) - counts)[users[order]]
    is_evaluated = (place >= start[users]) & (place < stop[users])
    return np.flatnonzero(place < start[users]), np.flatnonzero(is_evaluated)


def _evaluation_bounds(counts, part, validation_slice):
    """Computes where the evaluated part of each series begins and ends: [series], [series].

    What lies before is for training. All validation slices of a series are as long as its last one.
    """
    test_start = (counts * TRAIN_SHARE).astype(int)
    if part == 'test':
        return test_start, counts
    length = test_start - (test_start * TRAIN_SHARE).astype(int)
    stop = np.maximum(test_start - validation_slice * length, 0)
    return np.maximum(stop - length, 0), stop


def vocabulary(numbers: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Makes ([count] row of each number, rows) from the numbers in training; others are out of vocabulary."""
    known_numbers = np.unique(numbers)
    rows = np.full(count, OUT_OF_VOCABULARY, np.int32)
    rows[known_numbers] = 1 + np.arange(len(known_numbers))
    return rows, len(known_numbers) + 1


def bags_of(values: list[list[str]], items: np.ndarray, min_count: int) -> np.ndarray:
    """Makes bags of values, such as the words of titles, whose weights add up to 1.

    Args:
      values: [items], those of each item.
      items: numbers of items that training shows, in any order and number.
      min_count: values that fewer of these items have share column 0 with those that none has.

    Returns:
      [items + 1, columns] float32; 0 for an item without values. The last row is an item of unknown values.

    Raises:
      UserError: they are larger than this machine.
    """
    counts = collections.Counter(value for i in np.unique(items) for value in set(values[i]))
    frequent_values = sorted(value for value, count in counts.items() if count >= min_count)
    column = {value: 1 + i for i, value in enumerate(frequent_values)}
    shape = len(values) + 1, len(frequent_values) + 1
    size = 4 * math.prod(shape)
    if size > memory.of_machine():
        raise UserError(
            f'{len(frequent_values)} values of {len(values)} items take {size / 1e9:,.1f} GB, '
            f'but this machine has {memory.of_machine() / 1e9:,.1f} GB of memory: '
            'raise dataset.min_title_word_count.'
        )
    bags = np.zeros(shape, np.float32)
    for row, item_values in enumerate(values):
        for value in item_values:
            bags[row, column.get(value, OUT_OF_VOCABULARY)] += 1 / len(item_values)
    bags[-1, OUT_OF_VOCABULARY] = 1
    return bags
