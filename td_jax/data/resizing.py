"""Resizes an image of any size to the square of pixels that a model is shown.

The image is resized and its centre cropped. On the host Pillow does it, as for Hugging Face and timm. On a
device, and in an exported program, the same sums are computed: first along the width, then along the height,
each rounded and clipped to a byte.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Added to a quotient before it is cut off, so that rounding errors do not lower a whole number.
_ROUNDING = 1e-6


def _triangle(x):
    return jnp.maximum(1 - jnp.abs(x), 0)


def _cubic(x):
    """Keys's kernel of cubic convolution (1981), whose slope at 1 is -0.5."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


class Resize(NamedTuple):
    """A method of resizing."""

    method: str  # of jax.image and tf.image
    # Pillow's: with antialiasing, and rounded to bytes. Else that of tf.image.resize.
    is_pillow: bool


RESIZES = {
    'bilinear': Resize('bilinear', False),
    'bilinear_antialias': Resize('bilinear', True),
    'bicubic_antialias': Resize('bicubic', True),
}
KERNELS = {'bilinear': _triangle, 'bicubic': _cubic}
# How an image is resized before its centre is cropped: to a square, or so that its shortest side has the
# length of the square.
CROP_MODES = ('squash', 'center')


class View(NamedTuple):
    """How a model is shown an image."""

    side: int  # in pixels, of the square that it is shown
    resize: str  # a name of RESIZES
    crop_mode: str = 'squash'  # a name of CROP_MODES
    crop_pct: float = 1.0  # the side over that of the resized image

    @property
    def scaled_side(self) -> int:
        """The length that a side, or the shortest side, is resized to."""
        return int(self.side / self.crop_pct + _ROUNDING)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is cut off."""
        return self.crop_mode == 'squash' and self.scaled_side == self.side

    def scaled_size(self, height, width, smallest=min):
        """Computes (height, width) of a resized image; whole numbers, or arrays of them.

        Args:
          height, width: of the image.
          smallest: the minimum of two numbers; jnp.minimum for arrays.
        """
        if self.crop_mode == 'squash':
            return self.scaled_side, self.scaled_side
        shortest = smallest(height, width)
        return tuple(self.scaled_side * side // shortest for side in (height, width))

    def describe(self) -> str:
        """Describes the view for a person."""
        scaled_side = self.scaled_side
        if self.is_whole:
            return f'resized to {self.side} x {self.side} pixels ({self.resize})'
        what = 'the shortest side' if self.crop_mode == 'center' else 'both sides'
        return (
            f'{what} resized to {scaled_side} pixels ({self.resize}), '
            f'the central {self.side} x {self.side} of it'
        )


def resize_by_pillow(pixels: np.ndarray, view: View) -> np.ndarray:
    """Applies a view whose resize is Pillow's: [height, width, 3] uint8 -> [side, side, 3]."""
    import PIL.Image

    height, width = view.scaled_size(*pixels.shape[:2])
    method = getattr(PIL.Image.Resampling, RESIZES[view.resize].method.upper())
    image = PIL.Image.fromarray(pixels)
    # One side after the other. At once, Pillow 13 resizes the height first where that is less work, and
    # rounding in between then gives another image.
    image = image.resize((width, image.height), method).resize((width, height), method)
    top, left = ((length - view.side) // 2 for length in (height, width))
    return np.asarray(image)[top : top + view.side, left : left + view.side]


def resize_on_device(images, view: View):
    """Applies a view to images.

    Args:
      images: [batch, height, width, channels], from 0 to 255; height and width may be symbolic.
      view: how they are shown.

    Returns:
      [batch, side, side, channels] in float32, whole numbers where the resize is Pillow's; `images` itself
      where they have that size already
    """
    _, *size, channels = images.shape
    kind = RESIZES[view.resize]
    if view.is_whole:
        if tuple(size) == (view.side, view.side):
            return images
        if not kind.is_pillow:
            shape = images.shape[0], view.side, view.side, channels
            return jax.image.resize(images.astype(jnp.float32), shape, kind.method, antialias=False)
    x = images.astype(jnp.float32)
    # A symbolic length is a number in the program.
    lengths = [jnp.asarray(length, jnp.int32) for length in size]
    scaled = view.scaled_size(*lengths, jnp.minimum)
    for axis in (1, 0):
        weights = _weights(size[axis], lengths[axis], jnp.asarray(scaled[axis], jnp.int32), view)
        equation = 'nr,brwc->bnwc' if axis == 0 else 'nw,brwc->brnc'
        x = jnp.einsum(equation, weights, x, precision=jax.lax.Precision.HIGHEST)
        if kind.is_pillow:
            x = to_bytes(x)
    return x


def to_bytes(x):
    """Rounds numbers to the nearest from 0 to 255, halves up."""
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)


def _weights(count, old, new, view):
    """Weights of the old pixels in each new pixel of the central crop, [side, count].

    Args:
      count: of the old pixels along an axis, a number or symbolic.
      old: the same as an array [].
      new: how many there are once it is resized, an array [].
      view: of the image.
    """
    kind = RESIZES[view.resize]
    rows = (new - view.side) // 2 + jnp.arange(view.side, dtype=jnp.int32)
    # The centre of new pixel r is at (r + 0.5) old / new. Its whole part is exact in int32; a float32 cannot
    # hold that and the thousandths that decide how a byte is rounded.
    quotient, rest = old // new, (old % new).astype(jnp.float32) / new.astype(jnp.float32)
    whole = jnp.arange(count, dtype=jnp.int32)[None] - (rows * quotient)[:, None]
    centres = 0.5 * quotient.astype(jnp.float32) + (rows.astype(jnp.float32) + 0.5) * rest
    distances = whole.astype(jnp.float32) + 0.5 - centres[:, None]
    if kind.is_pillow:
        distances = distances / jnp.maximum(old.astype(jnp.float32) / new.astype(jnp.float32), 1.0)
    weights = KERNELS[kind.method](distances)
    return weights / weights.sum(axis=1, keepdims=True)


def crop(image, start, extent, side: int, resize: str):
    """Crops the part of an image at `start` of `extent`, both [2] in fractional pixels, and resizes it.

    Args:
      image: [height, width, channels].
      start, extent: y and x of the upper left corner, height and width.
      side: of the result in pixels.
      resize: a name of RESIZES.

    Returns:
      [side, side, channels]
    """
    kind = RESIZES[resize]
    scale = side / extent
    x = jax.image.scale_and_translate(
        image,
        (side, side, image.shape[-1]),
        (0, 1),
        scale,
        -start * scale,
        method=kind.method,
        antialias=kind.is_pillow,
    )
    # A cubic overshoots the range of its pixels.
    return jnp.clip(x, 0, 255) if kind.method == 'bicubic' else x
