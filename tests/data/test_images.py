"""How images are cut and resized on the device, against TensorFlow and a slow reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.data import images, resizing
from td_jax.data.resizing import View

BATCH, HEIGHT, WIDTH = 3, 11, 7


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (BATCH, HEIGHT, WIDTH, 3), np.uint8)


def resize_bilinear(image, start, extent, size):
    """The crop at `start` of `extent`, resized pixel by pixel; beyond the image its edge goes on."""
    height, width, _ = image.shape
    out = np.zeros((size, size, image.shape[2]))
    for i in range(size):
        for j in range(size):
            y = start[0] + (i + 0.5) * extent[0] / size - 0.5
            x = start[1] + (j + 0.5) * extent[1] / size - 0.5
            for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                    weight = (1 - abs(y - row)) * (1 - abs(x - column))
                    inside = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
                    out[i, j] += weight * image[inside]
    return out


def test_pixels_become_numbers_from_minus_one_to_one():
    normalized = images.normalize(np.array([0, 51, 255], np.uint8), (0.5,) * 3, (0.5,) * 3)
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, [-1, -0.6, 1], atol=1e-7)


def test_colours_have_a_mean_and_a_deviation_each():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 5, 7, 3), np.uint8)
    normalized = images.normalize(pixels, mean, std)
    for colour in range(3):
        expected = (pixels[..., colour] / 255 - mean[colour]) / std[colour]
        np.testing.assert_allclose(normalized[..., colour], expected, rtol=0, atol=1e-6)


def test_an_image_of_the_right_size_stays_as_it_is(pixels):
    np.testing.assert_array_equal(
        resizing.resize_on_device(pixels[:, :7], View(7, 'bilinear')), pixels[:, :7]
    )


def test_whole_images_are_resized_alone(pixels):
    for view in (View(13, 'bilinear'), View(5, 'bicubic_antialias', 'center', 0.9)):
        varied = images.vary(pixels, view, jax.random.key(0), 1.0, 0.0)
        assert varied.dtype == jnp.float32
        np.testing.assert_array_equal(varied, resizing.resize_on_device(pixels, view))


@pytest.mark.parametrize(('height', 'width', 'size'), [(HEIGHT, WIDTH, 13), (7, 11, 5), (5, 5, 5)])
def test_a_crop_is_what_its_box_says(height, width, size):
    pixels = np.random.default_rng(1).integers(0, 256, (BATCH, height, width, 3), np.uint8)
    key = jax.random.key(2)
    start, extent = images.crop_boxes(jax.random.split(key)[0], BATCH, height, width, 0.1)
    expected = [
        resize_bilinear(*row, size) for row in zip(pixels, np.asarray(start), np.asarray(extent), strict=True)
    ]
    np.testing.assert_allclose(
        images.vary(pixels, View(size, 'bilinear'), key, 0.1, 0.0), np.stack(expected), rtol=0, atol=0.02
    )


@pytest.mark.parametrize('min_area', [0.1, 1.0])
def test_mirroring_turns_left_and_right_and_leaves_the_crop(pixels, min_area):
    key = jax.random.key(3)
    never, always = (images.vary(pixels, View(6, 'bilinear'), key, min_area, rate) for rate in (0.0, 1.0))
    np.testing.assert_array_equal(always, never[:, :, ::-1])


def test_every_image_is_mirrored_by_its_own_chance():
    pixels = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None], (2000, 4, 4, 1))
    varied = images.vary(pixels, View(4, 'bilinear'), jax.random.key(4), 1.0, 0.3)
    mirrored = np.asarray(varied)[:, 0, 0, 0] == 3
    # Four standard deviations.
    assert abs(mirrored.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)


def test_boxes_lie_inside_and_are_spread_as_promised():
    count, height, width, min_area = 20_000, 30, 40, 0.2
    start, extent = map(np.asarray, images.crop_boxes(jax.random.key(5), count, height, width, min_area))
    assert start.shape == extent.shape == (count, 2)
    assert start.min() >= 0
    assert np.all(start + extent <= np.array([height, width]) * (1 + 1e-6))
    # Of small boxes none is cut to fit: all areas and, on a log scale, all ratios are equally likely.
    area, ratio = extent.prod(axis=1) / (height * width), extent[:, 1] / extent[:, 0]
    is_small = area < 0.5
    assert abs(is_small.mean() - 0.3 / 0.8) < 4 * np.sqrt(0.375 * 0.625 / count)
    for values, low, high in (
        (area[is_small], min_area, 0.5),
        (np.log(ratio[is_small]), *np.log([3 / 4, 4 / 3])),
    ):
        quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, np.linspace(low, high, 5), rtol=0, atol=0.02)
    # Every place that a box has room for is equally likely.
    room = np.array([height, width]) - extent
    place = (start / np.maximum(room, 1e-6))[np.all(room > 1, axis=1)]
    np.testing.assert_allclose(
        np.quantile(place, [0, 0.25, 0.5, 0.75, 1], axis=0), np.linspace(0, 1, 5)[:, None] + [0, 0], atol=0.02
    )


def test_another_key_is_another_crop(pixels):
    same, other = (
        images.vary(pixels, View(6, 'bilinear'), jax.random.key(seed), 0.1, 0.5) for seed in (7, 8)
    )
    np.testing.assert_array_equal(same, images.vary(pixels, View(6, 'bilinear'), jax.random.key(7), 0.1, 0.5))
    assert not np.array_equal(same, other)
