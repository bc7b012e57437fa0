"""Attention as one kernel, against its equations; the kernels run without a TPU here, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.devices import flops
from td_jax.errors import UserError
from td_jax.models import attention

# (tokens, heads, features): fewer tokens than a register has rows, and those of 224 and 384 pixels in
# patches of 32; groups of one, two and four heads, full or with a head missing.
SIZES = [(5, 3, 64), (50, 3, 32), (145, 2, 64), (7, 1, 128)]


def draw(tokens, heads, features, dtype):
    """Query, key, value and the result's gradient, [2, tokens, heads, features]; scores of up to about 15."""
    rng = np.random.default_rng(tokens)
    shape = 2, tokens, heads, features
    return [jnp.asarray(rng.normal(size=shape) * scale, dtype) for scale in (2, 2, 1, 1)]


def equations(q, k, v, g):
    """[y, gradient of q, of k, of v] in float64."""
    q, k, v, g = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v, g))
    root = np.sqrt(q.shape[-1])
    scores = q @ k.swapaxes(2, 3) / root
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = g @ v.swapaxes(2, 3)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    results = p @ v, ds @ k / root, ds.swapaxes(2, 3) @ q / root, p.swapaxes(2, 3) @ g
    return [x.swapaxes(1, 2) for x in results]


def relative_errors(results, expected):
    return [
        np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y)
        for x, y in zip(results, expected, strict=True)
    ]


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 2e-6), ('bfloat16', 8e-3)])
def test_the_kernels_compute_attention_and_its_gradients(sizes, dtype, tolerance):
    arguments = draw(*sizes, dtype)

    @jax.jit
    def by_kernel(q, k, v, g):
        gradients = attention.run_backward(q, k, v, g, interpret=True)
        return attention.run_forward(q, k, v, interpret=True), *gradients

    @jax.jit
    def by_products(q, k, v, g):
        y, pull_back = jax.vjp(attention.attend, q, k, v)
        return y, *pull_back(g)

    expected, results = equations(*arguments), by_kernel(*arguments)
    assert {x.dtype for x in results} == {jnp.dtype(dtype)}
    errors, reference = (relative_errors(x, expected) for x in (results, by_products(*arguments)))
    assert max(errors) < tolerance
    # Products alone are about as far from the equations.
    assert np.all(np.array(errors) < 2 * np.array(reference)), (errors, reference)


def test_without_a_mesh_of_tpus_the_option_computes_products():
    arguments = draw(5, 3, 64, 'float32')[:3]
    np.testing.assert_array_equal(
        attention.attend_by_kernel(*arguments), attention.attend(*arguments), strict=True
    )


def test_on_a_mesh_a_kernel_counts_as_the_products_of_attention():
    """For two seeds on four devices; two forward, and five backward, of which one is again of the scores."""
    tokens, heads, features, seeds, batch = 5, 3, 64, 2, 4
    # Of the kind that sharding.make_mesh makes; JAX 0.12 makes another by default.
    automatic = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.sharding.AbstractMesh((2, 2), ('data', 'fsdp'), automatic)
    x = jax.ShapeDtypeStruct((seeds, batch, tokens, heads, features), 'float32')

    def run(q, k, v, g):
        with jax.sharding.use_abstract_mesh(mesh):
            y, pull_back = jax.vjp(jax.vmap(attention.attend_by_kernel), q, k, v)
            return y, pull_back(g)

    y, gradients = jax.eval_shape(run, x, x, x, x)
    assert {y.shape, *(gradient.shape for gradient in gradients)} == {x.shape}
    product = 2 * seeds * batch * heads * tokens**2 * features
    assert flops.of(run, x, x, x, x) == (2 + 5) * product


@pytest.mark.parametrize(('tokens', 'features', 'word'), [(257, 64, '256 tokens'), (5, 48, '48 features')])
def test_what_the_kernel_does_not_take_is_refused(tokens, features, word):
    x = jnp.zeros((1, tokens, 1, features))
    with pytest.raises(UserError, match=word) as caught:
        attention.attend_by_kernel(x, x, x)
    assert 'dot' in str(caught.value)
    assert '\n' not in str(caught.value)
