"""Depthwise convolutions: the same numbers as XLA's own, which are not used on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.devices import convolution


def convolve_by_xla(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[-1],
    )


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ('size', 'strides', 'padding'),
    [((3, 3), (2, 2), 'SAME'), ((3, 2), (1, 1), 'VALID'), ((2, 3), (2, 1), ((1, 1), (0, 2)))],
)
def test_numbers_are_xlas(size, strides, padding):
    """With sides that the strides do not divide, under vmap, with both gradients."""
    x, kernel = draw(2, 3, 11, 7, 5), draw(*size, 1, 5)

    def compute(function, x, kernel):
        def run(x, kernel):
            return jax.vmap(lambda x: function(x, kernel, strides, padding))(x)

        y, pull_back = jax.vjp(run, x, kernel)
        return y, *pull_back(jnp.cos(y))

    actual, expected = (
        jax.jit(compute, static_argnums=0)(function, x, kernel)
        for function in (convolution.depthwise, convolve_by_xla)
    )
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_bfloat16_is_rounded_once():
    """The sum is as exact as one of float32, rounded at its end."""
    x, kernel = (jnp.asarray(array, jnp.bfloat16) for array in (draw(2, 9, 9, 3), draw(3, 3, 1, 3)))
    actual = jax.jit(lambda x, k: convolution.depthwise(x, k, (1, 1), 'SAME'))(x, kernel)
    exact = convolve_by_xla(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), 'SAME')
    assert actual.dtype == jnp.bfloat16
    # Half of the distance of neighbouring bfloat16 numbers, plus rounding in float32.
    assert np.all(np.abs(actual.astype(jnp.float32) - exact) <= np.abs(exact) * 2**-8 * 1.001 + 1e-6)


@pytest.mark.parametrize(('platform', 'count'), [('cpu', 0), ('tpu', 1), ('cuda', 1)])
def test_only_a_cpu_adds_images(platform, count):
    """XLA's CPU program of a depthwise convolution is much slower than a sum of shifted images."""
    x, kernel = draw(2, 9, 9, 3), draw(3, 3, 1, 3)
    traced = jax.jit(lambda x, k: convolution.depthwise(x, k, (1, 1), 'SAME')).trace(x, kernel)
    assert traced.lower(lowering_platforms=(platform,)).as_text().count('stablehlo.convolution') == count
