"""Splits and vocabularies of ratings, by hand."""

import numpy as np
import pytest

from td_jax.configs import common
from td_jax.data import ratings

# 10 ratings of user 0 in the even rows below 20, 10 of user 2 in the odd ones, then 21 of user 1.
USERS = [0, 2] * 10 + [1] * 21


def split_rows(users, **changes):
    config = common.get_config()
    config.dataset.update(changes)
    return [rows.tolist() for rows in ratings.split(np.array(users), config.dataset)]


@pytest.mark.parametrize(
    ('changes', 'train', 'evaluation'),
    [
        ({'split': 'test'}, range(180), range(180, 200)),
        ({'split': 'test', 'validation_slice': 2}, range(180), range(180, 200)),
        ({'split': 'validation'}, range(162), range(162, 180)),
        # 180 ratings for training, in slices of 18.
        ({'split': 'validation', 'validation_slice': 1}, range(144), range(144, 162)),
        ({'split': 'validation', 'validation_slice': 5}, range(72), range(72, 90)),
    ],
)
def test_split_by_time_by_hand(changes, train, evaluation):
    assert split_rows([0, 1] * 100, **changes) == [list(train), list(evaluation)]


@pytest.mark.parametrize('count', [1, 7, 9, 10, 11, 33, 99_999, 100_000])
def test_a_split_by_time_rounds_down(count):
    """Of 33 ratings 29 are for training, and 26 before the validation slice."""
    users, test_start = [0] * count, int(count * 0.9)
    assert split_rows(users, split='test') == [list(range(test_start)), list(range(test_start, count))]
    start = int(test_start * 0.9)
    assert split_rows(users, split='validation') == [list(range(start)), list(range(start, test_start))]


@pytest.mark.parametrize(
    ('changes', 'evaluation'),
    [
        # Users 0 and 2: 9 ratings for training, the last one is the test. User 1: 18, then 3.
        ({'split': 'test'}, [18, 19, 38, 39, 40]),
        # int(9 * 0.9) is 8: their ninth. int(18 * 0.9) is 16: user 1's 17th and 18th.
        ({'split': 'validation'}, [16, 17, 36, 37]),
        ({'split': 'validation', 'validation_slice': 1}, [14, 15, 34, 35]),
        ({'split': 'validation', 'validation_slice': 5}, [6, 7, 26, 27]),
    ],
)
def test_split_by_user_by_hand(changes, evaluation):
    train, held_out = split_rows(USERS, split_by='user', **changes)
    assert held_out == evaluation
    # Training is what each user rated before.
    first = {user: min(row for row in evaluation if USERS[row] == user) for user in range(3)}
    assert train == [row for row, user in enumerate(USERS) if row < first[user]]


def test_a_user_with_too_few_ratings_is_only_evaluated():
    assert split_rows([0] * 10 + [1], split_by='user', split='test') == [list(range(9)), [9, 10]]
    # int(0.9) is 0: user 1 has no rating for training or validation. Slices are of 1 of user 0's 9 ratings.
    assert split_rows([0] * 10 + [1], split_by='user', split='validation') == [list(range(8)), [8]]


def test_vocabulary_by_hand():
    rows, count = ratings.vocabulary(np.array([4, 1, 4, 6, 1]), 8)
    np.testing.assert_array_equal(rows, [0, 1, 0, 0, 2, 0, 3, 0])
    assert count == 4


def test_bags_by_hand():
    titles = ['the big sleep 1946', "big night big day's", 'the sleep', 'big sleep']
    values = [title.split() for title in titles]
    # Items 0, 1 and 2 are seen: big and the are in two of their titles, sleep in 0 and 2, big twice in
    # one title counts once, and item 3 does not count.
    bags = ratings.bags_of([*values, []], np.array([2, 0, 1, 0]), 2)
    big, sleep, the = 1, 2, 3
    expected = np.zeros((6, 4))
    expected[0, [0, big, sleep, the]] = 1 / 4
    expected[1, [0, big]] = 1 / 2
    expected[2, [sleep, the]] = 1 / 2
    expected[3, [big, sleep]] = 1 / 2
    # Item 4 has no values; the last row is an item without known values.
    expected[5, 0] = 1
    np.testing.assert_allclose(bags, expected, rtol=1e-6)
    # With a minimum count of 1, every value of a seen item is known.
    assert ratings.bags_of(values, np.array([1]), 1).shape == (5, 1 + len({'big', 'night', "day's"}))
