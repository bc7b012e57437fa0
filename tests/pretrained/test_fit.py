"""Fitting a checkpoint to a model."""

import math
import pathlib

import jax
import numpy as np
import pytest
import scipy.ndimage

from td_jax.errors import UserError
from td_jax.models import vit
from td_jax.pretrained import fit

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NPZ, PRE_LOGITS = GOLDEN / 'vit_tiny.npz', GOLDEN / 'vit_tiny_prelogits.npz'
SIZES = vit.Sizes(width=48, layers=6, mlp=96, heads=4)


def test_everything_is_loaded_into_its_own_architecture(checkpoints, initial, flat):
    checkpoint = checkpoints[PRE_LOGITS]
    params, report = fit.fit(checkpoint, initial(checkpoint.architecture))
    jax.tree.map(np.testing.assert_array_equal, params, checkpoint.params)
    assert set(report.loaded) == flat(checkpoint.params).keys()
    assert report[1:] == ((), (), ())
    assert fit.describe(report) == '106 parameters loaded'


def test_pre_logits_that_the_model_lacks_take_the_head_along(checkpoints, initial):
    """The head belongs to the layer before it."""
    checkpoint = checkpoints[PRE_LOGITS]
    params, report = fit.fit(checkpoint, initial(checkpoint.architecture, pre_logits=False))
    assert 'pre_logits_layer' not in params
    assert set(report.initialised) == {'head_layer/kernel', 'head_layer/bias'}
    assert {name.split('/')[0] for name in report.unused} == {'pre_logits_layer', 'head_layer'}


def test_pre_logits_that_the_checkpoint_lacks_are_refused(checkpoints, initial):
    checkpoint = checkpoints[NPZ]
    with pytest.raises(UserError, match=r'no pre_logits_layer/\w+, .* Set pre_logits=False'):
        fit.fit(checkpoint, initial(checkpoint.architecture, pre_logits=True))


def test_a_shallow_model_takes_the_first_blocks(checkpoints, initial):
    checkpoint = checkpoints[NPZ]
    params, report = fit.fit(checkpoint, initial(checkpoint.architecture, sizes=SIZES._replace(layers=4)))
    assert {name.split('/')[0] for name in report.unused} == {'block_4', 'block_5'}
    np.testing.assert_array_equal(
        params['block_3']['mlp_in']['kernel'], checkpoint.params['block_3']['mlp_in']['kernel']
    )


@pytest.mark.parametrize(
    ('sizes', 'text'),
    [
        (SIZES._replace(mlp=97), r'mlp_in/\w+ is \[.*96\] in .*vit_tiny\.npz, but \[.*97\] in the model'),
        (SIZES._replace(heads=6), r'attention/\w+/\w+ is \[.*4, 12.*\] in .*, but \[.*6, 8.*\] in the model'),
        (SIZES._replace(width=52), r'key/bias is \[4, 12\] in .*, but \[4, 13\] in the model'),
        (SIZES._replace(layers=7), r'has no block_6/\S+, \['),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(checkpoints, sizes, text, initial):
    checkpoint = checkpoints[NPZ]
    with pytest.raises(UserError, match=text):
        fit.fit(checkpoint, initial(checkpoint.architecture, sizes=sizes))


def test_the_report_is_a_few_lines(checkpoints, initial):
    checkpoint = checkpoints[PRE_LOGITS]._replace(unused=('odd/kernel',))
    tree = initial(
        checkpoint.architecture, 48, num_outputs=3, pre_logits=False, sizes=SIZES._replace(layers=1)
    )
    _, report = fit.fit(checkpoint, tree)
    assert fit.describe(report).splitlines() == [
        '21 parameters loaded',
        '1 resized: pos_embedding',
        '2 newly initialised: head_layer',
        '85 unused: block_1, block_2, block_3, block_4, block_5 and 3 more',
    ]


def make_positions(side, width=3, seed=5):
    return np.random.default_rng(seed).normal(size=(1, 1 + side * side, width)).astype(np.float32) + 4


def test_positions_of_equal_size_stay_bit_for_bit():
    positions = make_positions(7)
    assert fit.resize_positions(positions, 49) is positions


def test_a_grid_that_is_not_square_stays_where_nothing_changes():
    positions = make_positions(1)[:, [0, 1, 1, 1]]
    assert fit.resize_positions(positions, 3) is positions


@pytest.mark.parametrize(('old', 'new'), [(3, 4), (9, 8), (9, 0), (9, -1)])
def test_a_grid_that_is_not_square_is_refused(old, new):
    positions = np.zeros((1, 1 + old, 2), np.float32)
    bad = old if math.isqrt(old) ** 2 != old else new
    with pytest.raises(UserError, match=f'{bad} patches are no square grid'):
        fit.resize_positions(positions, new)


def bilinear(grid, new):
    """Bilinear resizing with aligned corners, by the definition: [old, old, width] -> [new, new, width]."""
    old = len(grid)
    at = np.linspace(0, old - 1, new)
    low = np.minimum(at.astype(int), max(old - 2, 0))
    weights = np.zeros((new, old))
    weights[np.arange(new), low] = 1 - (at - low)
    weights[np.arange(new), np.minimum(low + 1, old - 1)] += at - low
    return np.einsum('ai,bj,ijw->abw', weights, weights, grid)


def test_positions_are_stretched_linearly():
    for old in range(1, 33):
        positions = make_positions(old)
        for new in {1, 2, 3, 5, old // 2 or 1, old - 1 or 1, old + 1, 2 * old, 3 * old // 2}:
            result = fit.resize_positions(positions, new * new)
            assert result.shape == (1, 1 + new * new, 3)
            assert result.dtype == np.float32
            np.testing.assert_array_equal(result[:, 0], positions[:, 0])
            expected = bilinear(positions[0, 1:].reshape(old, old, 3), new)
            np.testing.assert_allclose(result[0, 1:].reshape(new, new, 3), expected, atol=1e-5)


@pytest.mark.parametrize(
    ('stretch', 'new', 'first', 'last'),
    [
        ('bicubic', 2, [0.31494, 1.16943], [7.32178, 10.56885]),
        (
            'bicubic',
            5,
            [-0.0627, -0.05491, 0.0265, 0.22454, 0.42776],
            [9.20698, 10.26282, 11.73212, 13.31806, 14.56933],
        ),
        ('bicubic_antialias', 2, [0.81317, 1.69148], [6.82836, 9.37463]),
        (
            'bicubic_antialias',
            5,
            [-0.04504, -0.02569, 0.0649, 0.25691, 0.46691],
            [9.1478, 10.23409, 11.63942, 13.14617, 14.42311],
        ),
    ],
)
def test_positions_are_stretched_by_cubics_as_pytorch_does(stretch, new, first, last):
    """The first and last rows of torch.nn.functional.interpolate (PyTorch 2.13) for the numbers n²/16."""
    grid = np.arange(16, dtype=np.float32) ** 2 / 16
    positions = np.concatenate([[7], grid]).astype(np.float32)[None, :, None]
    result = fit.resize_positions(positions, new * new, stretch)[0, :, 0]
    assert result[0] == 7
    np.testing.assert_allclose(result[1 : 1 + new], first, atol=1e-5)
    np.testing.assert_allclose(result[-new:], last, atol=1e-5)


@pytest.mark.parametrize(('old', 'new'), [(7, 12), (14, 24), (16, 24), (4, 6), (14, 7)])
def test_positions_are_the_originals(old, new):
    positions = make_positions(old)
    grid = positions[0, 1:].reshape(old, old, 3)
    expected = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    result = fit.resize_positions(positions, new * new)
    np.testing.assert_array_equal(result[0, 1:].reshape(new, new, 3), expected)
