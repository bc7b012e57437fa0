"""Intervals against SciPy's own tests, and by hand."""

import numpy as np
import pytest
import scipy.stats

from td_jax import statistics


@pytest.mark.parametrize('count', [2, 3, 5, 20])
def test_an_interval_is_that_of_a_t_test(count):
    values = np.random.default_rng(count).normal(size=count)
    found = statistics.of(values)
    low, high = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert found.count == count


@pytest.mark.parametrize('count', [2, 3, 5, 20])
def test_a_difference_has_the_interval_of_a_paired_t_test(count):
    ours, theirs = np.random.default_rng(count).normal(size=(2, count))
    found = statistics.paired_difference(ours, theirs)
    low, high = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


def test_three_seeds_by_hand():
    """1, 2 and 3: s is 1, t(0.975) of two degrees of freedom 4.303, and 4.303 / sqrt(3) is 2.484."""
    assert statistics.of([1.0, 2.0, 3.0]) == (2.0, pytest.approx(2.484, abs=5e-4), 3)


def test_one_value_has_no_interval_and_equal_ones_have_one_of_no_width():
    assert statistics.of([0.5]) == (0.5, None, 1)
    assert statistics.of([0.5, 0.5, 0.5]) == (0.5, 0.0, 3)


def test_other_numbers_of_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match='shape'):
        statistics.paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
