"""Counted operations, against products counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import flops

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def scanned(a):
    return jax.lax.scan(lambda carry, _: (carry @ jnp.ones((5, 5)), None), a, length=11)[0]


def either(a):
    return jax.lax.cond(a[0, 0] > 0, lambda: (a @ B) @ jnp.ones((7, 1)), lambda: a @ jnp.ones((5, 1)))


@pytest.mark.parametrize(
    ('function', 'expected'),
    [
        (lambda a: a + 1, 0),
        (lambda a: a @ B, PRODUCT),
        (lambda a: jax.vmap(lambda x: x @ B)(jnp.stack([a, a])), 2 * PRODUCT),
        (jax.jit(lambda a: jax.nn.relu(a @ B)), PRODUCT),
        (scanned, 11 * 2 * 3 * 5 * 5),
        (either, PRODUCT + 2 * 3 * 7 * 1),
        (
            lambda a: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ jnp.ones((5, 5)), a),
            2 * 3 * 5 * 5,
        ),
        # Forward, and the gradient of a; nobody asks for that of B.
        (jax.grad(lambda a: jnp.sum(jax.checkpoint(lambda x: x @ B)(a) ** 2)), 2 * PRODUCT),
    ],
)
def test_products_by_hand(function, expected):
    assert flops.of(function, A) == expected
