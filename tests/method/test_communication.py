"""The encoder, the decoder and their norm against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.method import communication

BATCH = 3


@pytest.mark.parametrize('shape', [(BATCH,), (BATCH, 13)])
def test_encoder_is_norm_dense_relu_dense(shape):
    rng = np.random.default_rng(0)
    s, e = rng.normal(2.0, 3.0, (*shape, 5)), rng.normal(size=(*shape, 3))
    encoder = communication.Encoder(hidden=7, message=2, dropout=0.5)
    params = encoder.init(jax.random.key(0), s, e)['params']
    hidden, last = (jax.tree.map(np.asarray, params[name]) for name in ('hidden', 'message'))
    x = np.concatenate([s, e], -1)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = np.maximum(x @ np.concatenate([hidden['kernel_0'], hidden['kernel_1']]) + hidden['bias'], 0)
    expected = x @ last['kernel'] + last['bias']
    np.testing.assert_allclose(encoder.apply({'params': params}, s, e), expected, rtol=1e-4, atol=1e-5)


def apply_joined_norm_dense(parts, kernels, epsilon=1e-6):
    """Dense(LayerNorm({a; b})) in float64 without a bias, and the gradient of its sum by the input."""
    x, kernel = (
        np.concatenate(arrays, axis).astype(np.float64) for arrays, axis in ((parts, -1), (kernels, 0))
    )
    std = np.sqrt(x.var(-1, keepdims=True) + epsilon)
    normalised = (x - x.mean(-1, keepdims=True)) / std
    inner = np.broadcast_to(kernel.sum(axis=1), x.shape)
    along = (inner * normalised).mean(-1, keepdims=True)
    return normalised @ kernel, (inner - inner.mean(-1, keepdims=True) - normalised * along) / std


@pytest.mark.parametrize('case', ['mean 1000', 'mean -20,000', 'first far away', 'one large', 'parts apart'])
def test_a_norm_is_exact_however_far_the_mean_is(case):
    """An earlier version was off by 34% at mean 1000 and standard deviation 1."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 96)), rng.normal(size=(40, 31))
    if case == 'first far away':
        a[:, 0] = 1000.0
    elif case == 'one large':
        b[:, 7] = 1e5
    elif case == 'parts apart':
        a, b = a + 300.0, b - 500.0
    else:
        shift = float(case.removeprefix('mean ').replace(',', ''))
        a, b = a + shift, b + shift
    a, b = np.float32(a), np.float32(b)
    layer = communication.NormalizedDense(17)
    params = layer.init(jax.random.key(0), a, b)
    kernels = [np.asarray(params['params'][f'kernel_{i}']) for i in (0, 1)]
    expected, gradient = apply_joined_norm_dense((a, b), kernels)
    result, gradient_of = jax.vjp(lambda *parts: layer.apply(params, *parts), a, b)
    # The product is of the unchanged float32 numbers.
    size = np.abs(np.concatenate([a, b], -1)).mean() / np.concatenate([a, b], -1).std(-1).mean()
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * (1 + size))
    result_gradient = np.concatenate(gradient_of(jnp.ones_like(result)), -1)
    np.testing.assert_allclose(result_gradient, gradient, atol=2e-5 * (1 + size) * np.abs(gradient).max())


@pytest.mark.parametrize('mean', [0.0, 1.0, 5.0, 30.0, 100.0])
def test_bfloat16_is_as_exact_however_far_the_mean_is(mean):
    """LayerNorm and Dense in float64 on the same rounded input; bfloat16 has a relative step of 1/256."""
    x = np.asarray(
        jnp.asarray(np.random.default_rng(0).normal(mean, 1.0, (40, 96)), jnp.bfloat16), np.float64
    )
    layer = communication.NormalizedDense(31, dtype='bfloat16')
    params = layer.init(jax.random.key(0), x.astype(np.float32))
    kernel = np.asarray(params['params']['kernel_0'], np.float64)
    normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = normalised @ kernel
    low = layer.apply(params, jnp.asarray(x, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    error = np.std(np.asarray(low, np.float64) - expected) / np.std(expected)
    assert error < 1 / 256


def test_a_kernel_of_parts_starts_like_one_on_the_joined_input():
    """The variance of LeCun's initialisation, 1 / inputs, over many numbers."""
    a, b = jnp.zeros((1, 300)), jnp.zeros((1, 100))
    params = communication.NormalizedDense(2000).init(jax.random.key(0), a, b)['params']
    dense = nn.Dense(2000).init(jax.random.key(1), jnp.zeros((1, 400)))['params']
    for kernel in (params['kernel_0'], params['kernel_1'], dense['kernel']):
        np.testing.assert_allclose(np.var(kernel), 1 / 400, rtol=0.02)


def test_a_constant_state_has_a_finite_norm():
    layer = communication.NormalizedDense(4)
    x = jnp.full((2, 6), 1e3)
    params = layer.init(jax.random.key(0), x)
    assert np.all(np.isfinite(layer.apply(params, x)))
    gradient = jax.grad(lambda x: layer.apply(params, x).sum())(x)
    assert np.all(np.isfinite(gradient))
