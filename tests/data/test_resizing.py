"""Resizing images of any size to the square of a model, against Pillow and TensorFlow."""

import jax
import numpy as np
import PIL.Image
import pytest

from td_jax.data import resizing, stream
from td_jax.data.resizing import View

SHAPES = (97, 117), (64, 64), (32, 32), (40, 25), (1, 90), (300, 7)
VIEWS = {
    'whole': View(31, 'bilinear_antialias'),
    'larger': View(80, 'bicubic_antialias'),
    'the middle of a square': View(28, 'bicubic_antialias', 'squash', 0.875),
    'the middle': View(28, 'bicubic_antialias', 'center', 0.875),
    'as wide as the shortest side': View(40, 'bilinear_antialias', 'center', 1.0),
    # 37 / 0.9 is 41.1.
    'a share that leaves a rest': View(37, 'bicubic_antialias', 'center', 0.9),
}


def make_pixels(height, width):
    """Slowly changing colours, as in a photograph, and an edge at which bicubic resizing overshoots."""
    coarse_pixels = np.random.default_rng(height).integers(
        0, 256, (height // 3 + 2, width // 3 + 2, 3), np.uint8
    )
    smooth = PIL.Image.fromarray(coarse_pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)
    pixels = np.array(smooth)
    pixels[: height // 4], pixels[height // 4 : height // 3] = 255, 0
    return pixels


def resize_by_hand(pixels, view):
    """Resizes the width, then the height, as Pillow before version 13 always did, and takes the middle."""
    image, side = PIL.Image.fromarray(pixels), round(view.side / view.crop_pct - 0.49)
    width, height = image.size
    if view.crop_mode == 'squash':
        size = side, side
    else:
        size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    method = PIL.Image.Resampling.BICUBIC if 'bicubic' in view.resize else PIL.Image.Resampling.BILINEAR
    at_once = image.resize(size, method)
    image = image.resize((size[0], height), method).resize(size, method)
    if view.crop_mode == 'center':
        # As in Hugging Face and timm; if the shape stays, no version of Pillow resizes the height first.
        np.testing.assert_array_equal(at_once, image)
    left, top = (size[0] - view.side) // 2, (size[1] - view.side) // 2
    return np.asarray(image.crop((left, top, left + view.side, top + view.side)))


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('view', VIEWS.values(), ids=VIEWS)
def test_pillows_are_those_of_pillow(view, shape):
    """On a device, a sum in float32 may be rounded to the other neighbour."""
    pixels = make_pixels(*shape)
    expected = resize_by_hand(pixels, view)
    np.testing.assert_array_equal(resizing.resize_by_pillow(pixels, view), expected, strict=True)
    np.testing.assert_array_equal(stream.apply_view(pixels, view), expected, strict=True)
    on_device = np.asarray(
        jax.jit(lambda x: resizing.resize_on_device(x, view))(np.stack([pixels, pixels[::-1]]))
    )
    assert on_device.dtype == np.float32
    for ours, theirs in zip(on_device, (expected, resize_by_hand(pixels[::-1], view)), strict=True):
        difference = np.abs(ours - theirs)
        # By one more if the first side was rounded differently already.
        assert difference.max() <= 2
        assert np.mean(difference) < 0.15


@pytest.mark.parametrize('shape', [(11, 7), (64, 48), (5, 5)], ids=str)
@pytest.mark.parametrize(
    'view', [View(5, 'bilinear'), View(24, 'bilinear'), View(5, 'bilinear', 'center', 0.7)]
)
def test_the_other_one_is_tensorflows(view, shape):
    import tensorflow as tf

    pixels = make_pixels(*shape)
    # 5 / 0.7 is 7.1.
    size = (view.side,) * 2 if view.crop_pct == 1 else [7 * side // min(shape) for side in shape]
    expected = tf.image.resize(pixels.astype(np.float32), size).numpy()
    top, left = ((side - view.side) // 2 for side in size)
    expected = expected[top : top + view.side, left : left + view.side]
    np.testing.assert_allclose(resizing.resize_on_device(pixels[None], view)[0], expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(stream.apply_view(pixels, view, is_rounded=False), expected, rtol=0, atol=1e-4)
    rounded = stream.apply_view(pixels, view).numpy()
    assert rounded.dtype == np.uint8
    np.testing.assert_allclose(rounded, expected, rtol=0, atol=0.5001)


def test_without_antialiasing_an_image_that_becomes_smaller_is_another_one():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 97, 97, 3), np.uint8)
    ours, other = (
        resizing.resize_on_device(pixels, View(32, name)) for name in ('bilinear_antialias', 'bilinear')
    )
    assert np.abs(ours - other).mean() > 5


def test_a_cubic_crop_stays_within_bytes_and_is_pillows_but_for_its_rounding():
    pixels = make_pixels(60, 50)
    box = np.array([12.0, 7.0], np.float32), np.array([40.0, 30.0], np.float32)
    ours = np.asarray(resizing.crop(pixels.astype(np.float32), *box, 20, 'bicubic_antialias'))
    assert (ours.min(), ours.max()) == (0, 255)
    method = PIL.Image.Resampling.BICUBIC
    image = PIL.Image.fromarray(pixels).resize((20, 60), method, box=(7, 0, 37, 60))
    theirs = np.asarray(image.resize((20, 20), method, box=(0, 12, 20, 52)))
    assert np.mean(np.abs(ours - theirs)) < 0.6
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2)


def test_the_length_before_the_crop_is_timms():
    sides = [
        View(224, 'bilinear', 'center', share).scaled_side for share in (0.875, 0.9, 0.95, 1.0, 224 / 248)
    ]
    assert sides == [256, 248, 235, 224, 248]
