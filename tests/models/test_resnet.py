"""A small ResNet against NumPy, and properties of all; test_bit.py compares one of 50 layers with timm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.models import MODELS, base, resnet

WIDTH, OUTPUTS, SIDE = 4, 3, 8
IMAGES = {'image': np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)}


def build_model(split=1, dtype='float32', **changes):
    config = common.model_config()
    config.update({'name': 'resnet', 'variant': 'R8x1', 'width': WIDTH, 'split': split, **changes})
    return MODELS['resnet'](config, {}, OUTPUTS, dtype)


@functools.cache
def make_parameters():
    """Parameters of the small model, with scales and a head of their own."""
    shapes = jax.eval_shape(build_model().init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0.5, 1, x.shape).astype(np.float32), shapes)


# --- The equations in NumPy ------------------------------------------------------------------------


def convolve(params, x, stride=1):
    kernel = params['kernel'].astype(np.float64)
    kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)
    side = len(kernel)
    x = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    rows, columns = ((n - side) // stride + 1 for n in x.shape[1:3])
    result = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(side):
        for j in range(side):
            part = x[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
            result += part[:, :rows, :columns] @ kernel[i, j]
    return result


def normalize(params, x):
    """GroupNorm with two channels per group."""
    groups = x.reshape(*x.shape[:-1], -1, 2)
    mean, var = (f(groups, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    x = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    return np.maximum(x * params['norm']['scale'] + params['norm']['bias'], 0)


def apply_unit(params, x, stride):
    y = normalize(params['norm_0'], x)
    short = convolve(params['projection'], y, stride) if 'projection' in params else x
    y = normalize(params['norm_1'], convolve(params['conv_0'], y, stride))
    return short + convolve(params['conv_1'], y)


def numpy_resnet(params, split):
    """(s, e, y) by the definition: three stages of one unit."""
    x = convolve(params['root'], IMAGES['image'].astype(np.float64))
    states = [x]
    for i in range(3):
        x = apply_unit(params[f'stage_{i}_unit_0'], x, stride=1 if i == 0 else 2)
        states.append(x)
    e = normalize(params['final_norm'], x)
    return states[split], e, e.mean((1, 2)) @ params['head_layer']['kernel'] + params['head_layer']['bias']


@pytest.mark.parametrize('split', [0, 2])
def test_a_small_one_is_that_of_the_equations(split):
    activations = jax.jit(functools.partial(base.activations, build_model(split)))(make_parameters(), IMAGES)
    for ours, expected in zip(activations, numpy_resnet(make_parameters(), split), strict=True):
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


def test_the_parts_in_a_row_are_the_whole_wherever_it_is_split():
    expected = None
    for split in range(4):
        model = build_model(split)
        activations = jax.jit(functools.partial(base.activations, model))(make_parameters(), IMAGES)
        expected = activations if expected is None else expected
        np.testing.assert_allclose(activations.logits, expected.logits, rtol=1e-4)
        side, width = ((8, 4), (8, 4), (4, 8), (2, 16))[split]
        assert activations.lower.shape == (2, side, side, width)


def test_no_example_depends_on_others():
    model = build_model()
    run = jax.jit(functools.partial(base.activations, model))
    together = run(make_parameters(), IMAGES)
    alone = run(make_parameters(), {'image': IMAGES['image'][:1]})
    np.testing.assert_allclose(together.logits[:1], alone.logits, rtol=1e-4)


def test_what_is_computed_again_changes_nothing():
    def compute_gradient(policy):
        model = build_model(remat_policy=policy)
        return jax.jit(jax.grad(lambda p: jnp.sum(base.activations(model, p, IMAGES).logits ** 2)))(
            make_parameters()
        )

    all_saved, recomputed = compute_gradient('everything_saveable'), compute_gradient('nothing_saveable')
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(all_saved), jax.tree.leaves(recomputed), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3, err_msg=str(path))


def test_bfloat16_states_and_float32_logits():
    s, e, logits = jax.eval_shape(
        functools.partial(base.activations, build_model(dtype='bfloat16')), make_parameters(), IMAGES
    )
    assert (s.dtype, e.dtype, logits.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    ('variant', 'units', 'width', 'count'),
    [
        # Blocks of the papers; R50x1 with 1,000 classes is timm's resnetv2_50x1_bit, 25.55 million.
        ('R50x1', (3, 4, 6, 3), 64, 25_549_352),
        ('R152x4', (3, 8, 36, 3), 256, None),
        ('R20x1', (3, 3, 3), 16, None),
        ('R110x2', (18, 18, 18), 32, None),
    ],
)
def test_variants(variant, units, width, count):
    config = common.model_config()
    config.variant = variant
    sizes = resnet.sizes_of(config)
    assert (sizes.width, sizes.units) == (width, units)
    if count:
        model = MODELS['resnet'](config, {}, 1000, 'float32')
        shapes = jax.eval_shape(model.init, jax.random.key(0), {'image': np.zeros((1, 64, 64, 3))})
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_groups():
    """32 groups as in BiT, fewer if a group would have one channel."""
    assert [resnet.count_groups(n) for n in (64, 192, 256, 2048, 16, 4, 5)] == [32, 32, 32, 32, 8, 2, 1]


@pytest.mark.parametrize('variant', ['B/32', 'R18x1', 'R50', 'R50x0', 'r50x1', 'R50x1 ', ''])
def test_a_variant_that_is_not_known_is_refused(variant):
    with pytest.raises(
        UserError, match=r'model\.variant .* is no ResNet\. Known: R, a depth, .*R50x1; depths: 50, 8'
    ):
        build_model(variant=variant)


def test_a_split_behind_the_last_stage_and_other_data_are_refused():
    with pytest.raises(UserError, match=r'model\.split is 4; with 3 stages it is between 0 and 3'):
        build_model(split=4)
    with pytest.raises(UserError, match=r'model\.name resnet reads images; the data set has user'):
        MODELS['resnet'](common.model_config(), {'user': 3}, 1, 'float32')
