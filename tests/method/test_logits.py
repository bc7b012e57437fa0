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
        np.testing.assert_allclose(logits.uncorrelated(x, 2 * x + 3, axis), np.zeros(length), atol=1e-5)
        np.testing.assert_allclose(logits.uncorrelated(x, -x, axis), np.full(length, 2.0), rtol=1e-5)


def test_what_is_constant_correlates_with_nothing():
    x, constant = jax.random.normal(jax.random.key(0), (7, 3)), jnp.full((7, 3), 0.25)

    def loss(a):
        return logits.uncorrelated(a, x, 0).sum()

    value, gradient = jax.value_and_grad(loss)(constant)
    assert float(value) == 3.0
    assert np.all(np.isfinite(gradient))
