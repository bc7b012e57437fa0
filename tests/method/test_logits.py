"""Terms of predictions where probabilities are 0, 1 or all the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.method import logits

LABELS = jnp.array([0, 1, 2])


def test_decoupled_parts_make_up_the_divergence():
    """Zhao et al. 2022, equation 5: KL = target + (1 - p_c of the teacher) others."""
    keys = jax.random.split(jax.random.key(0))
    student, teacher = (3 * jax.random.normal(key, (3, 5)) for key in keys)
    temperature = 2.0
    target, others = logits.decoupled(student, teacher, LABELS, temperature)
    rest = 1 - jax.nn.softmax(teacher / temperature)[np.arange(3), LABELS]
    expected = logits.kl_divergence(student, teacher, temperature)
    np.testing.assert_allclose(target + rest * others, expected, rtol=1e-5)


@pytest.mark.parametrize('size', [30.0, 1000.0])
def test_decoupled_parts_of_certain_models_are_finite(size):
    student, teacher = -size * jnp.eye(3), size * jnp.eye(3)
    target, others = logits.decoupled(student, teacher, LABELS, 1.0)
    # The teacher is sure of the label, the student of the others, two that are the same to both.
    np.testing.assert_allclose(target, np.full(3, size + np.log(2)), rtol=1e-5)
    np.testing.assert_allclose(others, np.zeros(3), atol=1e-5)
    gradient = jax.grad(lambda y: sum(x.sum() for x in logits.decoupled(y, teacher, LABELS, 1.0)))(student)
    assert np.all(np.isfinite(gradient))


def test_of_two_classes_nothing_is_left_among_the_others():
    student, teacher = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, -1.0]])
    target, others = logits.decoupled(student, teacher, jnp.array([1]), 1.0)
    np.testing.assert_allclose(target, logits.kl_divergence(student, teacher, 1.0), rtol=1e-6)
    np.testing.assert_array_equal(others, [0.0])


def test_correlation_does_not_see_shift_and_size():
    x = jax.random.normal(jax.random.key(0), (7, 3))
    for axis, length in ((0, 3), (1, 7)):
        found = logits.one_minus_correlation(x, 2 * x + 3, axis)
        np.testing.assert_allclose(found, np.zeros(length), atol=5e-3)
        np.testing.assert_allclose(logits.one_minus_correlation(x, -x, axis), np.full(length, 2.0), rtol=5e-4)


@pytest.mark.parametrize('spread', [3.0, 0.3, 0.03, 0.003])
@pytest.mark.parametrize('axis', [0, 1])
def test_correlations_are_those_of_numpy_with_a_floor_under_each_variance(spread, axis):
    """In float64, of probabilities; a standard deviation of a hundredth of the mean is under the floor."""
    rng = np.random.default_rng(0)
    a, b = (np.exp(size * rng.normal(size=(11, 7))) for size in (spread, 1.0))
    a, b = (x / x.sum(axis=1, keepdims=True) for x in (a, b))

    def deviations(x):
        return x - x.mean(axis=axis, keepdims=True)

    def length(x):
        return np.sqrt((deviations(x) ** 2).mean(axis=axis) + 1e-4 * x.mean(axis=axis) ** 2)

    expected = 1 - (deviations(a) * deviations(b)).mean(axis=axis) / length(a) / length(b)
    found = logits.one_minus_correlation(jnp.float32(a), jnp.float32(b), axis)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    if spread == 3.0:
        without_floor = 1 - np.diagonal(
            np.corrcoef(a, b, rowvar=bool(axis))[: a.shape[1 - axis], a.shape[1 - axis] :]
        )
        np.testing.assert_allclose(found, without_floor, rtol=1e-3)


@pytest.mark.parametrize('value', [0.0, 0.25])
def test_what_is_constant_correlates_with_nothing(value):
    x, constant = jax.random.normal(jax.random.key(0), (7, 3)), jnp.full((7, 3), value)

    def loss(a):
        return logits.one_minus_correlation(a, x, 0).sum()

    found, gradient = jax.value_and_grad(loss)(constant)
    assert float(found) == 3.0
    assert np.all(np.isfinite(gradient))


def test_a_head_that_starts_at_zero_has_a_gradient_of_a_usual_size():
    """Of DIST's two terms; it was 600,000. Cross entropy has one of 0.6 there."""
    rng = np.random.default_rng(0)
    representations, teacher = rng.normal(size=(64, 32)), jax.nn.softmax(2 * rng.normal(size=(64, 10)))

    def dist(kernel):
        p = jax.nn.softmax(representations @ kernel)
        return sum(logits.one_minus_correlation(p, teacher, axis).mean() for axis in (0, 1))

    assert 1.0 < jnp.linalg.norm(jax.grad(dist)(jnp.zeros((32, 10)))) < 100.0
