"""Linear CKA against its other formulas."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.analysis import linear_cka


def cka_from_unbiased_hsic(x, y):
    """The estimator of Song et al. 2012 as a U-statistic, summed over all different i, j, q, r.

    HSIC is the mean of K_ij L_ij + K_ij L_qr - 2 K_ij L_iq.
    """

    def unbiased_hsic(k, ell):
        terms = [
            k[i, j] * (ell[i, j] + ell[q, r] - 2 * ell[i, q])
            for i, j, q, r in itertools.permutations(range(len(k)), 4)
        ]
        return np.mean(terms)

    k, ell = x @ x.T, y @ y.T
    return unbiased_hsic(k, ell) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(ell, ell))


def compute_hsic(k, ell):
    """tr(K H L H) / (n - 1)^2 with the centring matrix, as it is defined."""
    n = len(k)
    h = np.eye(n) - np.full((n, n), 1 / n)
    return np.trace(k @ h @ ell @ h) / (n - 1) ** 2


def cka_from_hsic(x, y):
    k, ell = x @ x.T, y @ y.T
    return compute_hsic(k, ell) / np.sqrt(compute_hsic(k, k) * compute_hsic(ell, ell))


def cka_from_features(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    top = np.linalg.norm(y.T @ x) ** 2
    return top / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


@pytest.fixture
def pair():
    """Two representations of 7 examples that have something in common."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 5))
    return x, x @ rng.normal(size=(5, 11)) + rng.normal(size=(7, 11)) + 3


biased_cka = functools.partial(linear_cka.linear_cka, estimator='biased')


def test_the_debiased_number_is_that_of_the_u_statistic(pair):
    x, y = pair
    debiased = linear_cka.linear_cka(x, y)
    assert debiased == pytest.approx(cka_from_unbiased_hsic(x, y), rel=1e-10)
    assert linear_cka.linear_cka(y, x) == pytest.approx(debiased, rel=1e-14)
    assert linear_cka.linear_cka(x, x) == pytest.approx(1, rel=1e-14)
    assert abs(debiased - biased_cka(x, y)) > 0.05


def test_four_examples_by_hand():
    """Of (0, 0, 1, 1) and (0, 1, 1, 0) off the diagonal K is 1 at (2, 3), and L at (1, 2).

    U-centred, with row sums 0, 0, 1, 1 and a sum of 2: K_01 = 1/3, K_02 = -1/6, K_23 = 1 - 1 + 1/3 = 1/3, and
    so on: pairs 01 and 23 have 1/3, the four others -1/6. L has 1/3 in 12 and 03. So the products add up to
    2 (4 (1/3)(-1/6) + 2 / 36) = -1/3, and the squares to 2 (2/9 + 4/36) = 2/3.
    """
    x, y = np.array([[0.0], [0], [1], [1]]), np.array([[0.0], [1], [1], [0]])
    assert linear_cka.linear_cka(x, y) == pytest.approx(-0.5, rel=1e-12)


@pytest.mark.parametrize('width', [3, 512])
def test_independent_noise_has_nothing_in_common_at_twenty_examples(width):
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(20, 512)), rng.normal(size=(20, width))) for _ in range(200)]
    debiased = np.array([linear_cka.linear_cka(*draw) for draw in draws])
    # The mean of 200 is within four of its standard errors of 0, with the biased estimator far beyond.
    assert abs(debiased.mean()) < 4 * debiased.std() / np.sqrt(200)
    assert np.mean([biased_cka(*draw) for draw in draws]) > 0.3


def test_one_example_that_differs_says_nothing():
    """Once U-centred, such a representation is 0 but for rounding."""
    x = np.zeros((6, 4))
    x[2] = [0.1, 0.7, -0.3, 1e3]
    assert linear_cka.linear_cka(x, np.random.default_rng(0).normal(size=(6, 3))) == 0.0
    assert linear_cka.linear_cka(x, x) == 0.0


def test_it_is_what_hsic_and_the_features_give(pair):
    x, y = pair
    assert biased_cka(x, y) == pytest.approx(cka_from_hsic(x, y), rel=1e-12)
    assert biased_cka(x, y) == pytest.approx(cka_from_features(x, y), rel=1e-12)
    assert biased_cka(y, x) == pytest.approx(biased_cka(x, y), rel=1e-14)
    assert 0.1 < biased_cka(x, y) < 0.99


def test_what_two_rows_and_three_give_by_hand():
    """Centred, (0, 1, 2) is (-1, 0, 1) and (0, 3, 0) is (-1, 2, -1): their product is 0.

    (0, 1, 5) is (-2, -1, 3), whose product with the first is 5: 25 / (2 * 14).
    """
    x = np.array([[0.0], [1.0], [2.0]])
    assert biased_cka(x, np.array([[0.0], [3.0], [0.0]])) == 0.0
    assert biased_cka(x, np.array([[0.0], [1.0], [5.0]])) == pytest.approx(25 / 28, rel=1e-14)
    # Two examples are v and -v once they are centred.
    two = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[7.0, 0.0], [0.0, 1.0]])
    assert biased_cka(*two) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize('estimator', linear_cka.ESTIMATORS)
def test_a_rotation_a_scale_and_a_shift_change_nothing(pair, estimator):
    compute_cka = functools.partial(linear_cka.linear_cka, estimator=estimator)
    x, y = pair
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))
    assert compute_cka(x, -7 * x @ rotation + 2) == pytest.approx(1, rel=1e-12)
    assert compute_cka(0.01 * x @ rotation - 1, y) == pytest.approx(compute_cka(x, y), rel=1e-10)
    # A map that is no rotation changes it.
    assert compute_cka(x * np.array([9.0, 1, 1, 1, 1]), y) != pytest.approx(compute_cka(x, y), rel=1e-3)
    assert compute_cka(x, x) == pytest.approx(1, rel=1e-14)


def test_examples_must_be_paired(pair):
    x, y = pair
    assert linear_cka.linear_cka(x[::-1], y) != pytest.approx(linear_cka.linear_cka(x, y), rel=1e-3)
    assert linear_cka.linear_cka(x[::-1], y[::-1]) == pytest.approx(linear_cka.linear_cka(x, y), rel=1e-12)


def test_tokens_are_flattened(pair):
    x, y = pair
    tokens = np.stack([x, 2 * x, x**2], axis=1)  # [7, 3, 5]
    assert biased_cka(tokens, y) == pytest.approx(
        cka_from_features(np.concatenate([x, 2 * x, x**2], axis=1), y), rel=1e-12
    )


@pytest.mark.parametrize('scale', [1e-42, 1e-30, 1e30])
def test_no_scale_is_too_small_or_large(pair, scale):
    x, y = pair
    scaled_x = x * scale
    assert linear_cka.linear_cka(scaled_x, y) == pytest.approx(linear_cka.linear_cka(x, y), rel=1e-10)
    assert linear_cka.linear_cka(scaled_x, scaled_x) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize('value', [0.0, 0.1, -1e30, 1e-40])
@pytest.mark.parametrize('dtype', [np.float32, np.float64, jnp.bfloat16])
def test_constant_features_have_nothing_in_common_with_anything(pair, value, dtype):
    constant = np.full((7, 3), value, dtype)
    assert linear_cka.linear_cka(constant, pair[1]) == 0.0
    assert linear_cka.linear_cka(pair[0], constant) == 0.0
    assert linear_cka.linear_cka(constant, constant) == 0.0


def test_a_difference_of_one_rounding_is_none(pair):
    """A number computed in two ways differs by rounding alone, next to a feature that really differs."""
    x = np.full((7, 2), 0.1, np.float32)
    x[3, 0] = np.nextafter(np.float32(0.1), np.float32(1))
    assert linear_cka.linear_cka(x, pair[1]) == 0.0
    x[:, 1] = pair[0][:, 1]
    assert linear_cka.linear_cka(x, pair[0][:, 1:2].astype(np.float32)) == pytest.approx(1, rel=1e-12)


def test_no_features_at_all_are_constant(pair):
    assert linear_cka.linear_cka(np.zeros((7, 0)), pair[0]) == 0.0


@pytest.mark.parametrize(
    ('x', 'y', 'text'),
    [
        (np.ones((1, 3)), np.ones((1, 3)), 'at least 2 examples'),
        (np.ones((0, 3)), np.ones((0, 3)), 'at least 2 examples'),
        (np.eye(3), np.eye(4), 'not of the same examples'),
        (np.array([[np.nan], [1]]), np.eye(2), 'finite'),
        (np.eye(2), np.array([[np.inf], [1]]), 'finite'),
    ],
)
def test_what_cannot_be_compared_is_an_error(x, y, text):
    with pytest.raises(ValueError, match=text):
        linear_cka.linear_cka(x, y)
