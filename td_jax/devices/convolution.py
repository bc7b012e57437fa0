"""Convolutions that are fast on every device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Examples, rows, columns, channels; a kernel has rows, columns, 1, channels.
LAYOUT = 'NHWC', 'HWIO', 'NHWC'


def depthwise(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]]
) -> jax.Array:
    """Convolves each channel with a kernel of its own.

        y[n, i, j, c] = sum_{a, b} x[n, i strides[0] + a, j strides[1] + b, c] kernel[a, b, 0, c]

    with x padded. On a CPU, XLA computes such a convolution as a loop over single numbers, and its
    gradient too, so that the sum of shifted images, which is taken there instead, is much faster.

    Args:
      x: [batch, rows, columns, channels].
      kernel: [height, width, 1, channels], of the same type.
      strides: of rows and columns.
      padding: 'SAME', 'VALID', or (before, after) of rows and columns.

    Returns:
      [batch, new rows, new columns, channels], equal to jax.lax.conv_general_dilated up to rounding
    """
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)

    def convolve(x, kernel):
        channels = x.shape[-1]
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=LAYOUT, feature_group_count=channels
        )

    def add_shifted(x, kernel):
        return _add_shifted(x, kernel, strides, padding)

    # Chosen when a program is compiled, by the device that it is compiled for.
    return jax.lax.platform_dependent(x, kernel, cpu=add_shifted, default=convolve)


def _add_shifted(x, kernel, strides, padding):
    """`depthwise` as a sum of shifted images, in float32."""
    height, width, _, channels = kernel.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    sides = [
        (length - side) // stride + 1
        for length, side, stride in zip(padded.shape[1:3], (height, width), strides, strict=True)
    ]
    total = 0.0
    for start in np.ndindex(height, width):
        last = [at + (side - 1) * stride + 1 for at, side, stride in zip(start, sides, strides, strict=True)]
        image = jax.lax.slice(padded, (0, *start, 0), (len(x), *last, channels), (1, *strides, 1))
        total += image.astype(jnp.float32) * kernel[*start].astype(jnp.float32)[None, None]
    return total.astype(x.dtype)
