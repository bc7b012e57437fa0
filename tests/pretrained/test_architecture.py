"""Architectures and configs."""

import contextlib
import math
import pathlib

import pytest

from configs import common
from td_jax.errors import UserError
from td_jax.models import vit
from td_jax.pretrained.architecture import Architecture, check_architecture, overrides, shapes

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NPZ, PRE_LOGITS = GOLDEN / 'vit_tiny.npz', GOLDEN / 'vit_tiny_prelogits.npz'
TINY = {'width': 48, 'layers': 6, 'mlp': 96, 'heads': 4, 'patch': 8}
BASE = Architecture(vit.VARIANTS['B'], 16, 224, 1000, 'gelu_tanh', 1e-6, False)
BARE, CLASSIFIER = GOLDEN / 'hf_vit_tiny', GOLDEN / 'hf_vit_tiny_classifier'


@pytest.mark.parametrize(
    ('variant', 'total'),
    [
        ('Ti/16', 5_717_416),
        ('S/16', 22_050_664),
        ('S/32', 22_878_952),
        ('B/8', 86_576_872),
        ('B/16', 86_567_656),
        ('B/32', 88_224_232),
        ('L/16', 304_326_632),
        ('L/32', 306_535_400),
    ],
)
def test_parameter_counts_are_the_published_ones(variant, total):
    """At 224 pixels with 1,000 classes."""
    config = common.model_config()
    config.variant = variant
    sizes, patch = vit.sizes_of(config)
    architecture = Architecture(sizes, patch, 224, 1000, 'gelu', 1e-6, False)
    assert sum(map(math.prod, shapes(architecture).values())) == total
    width, layers, mlp, _ = sizes
    tokens = 1 + (224 // patch) ** 2
    attention = 4 * (width * width + width)
    block = attention + (width * mlp + mlp) + (mlp * width + width) + 2 * (2 * width)
    embedding = (patch * patch * 3 * width + width) + width + tokens * width
    assert embedding + layers * block + 2 * width + (width * 1000 + 1000) == total
    with_pre_logits = shapes(architecture._replace(pre_logits=True))
    assert sum(map(math.prod, with_pre_logits.values())) == total + width * width + width


def make_config(**changes):
    config = common.model_config()
    config.update({'name': 'vit', **changes})
    return config


def test_a_config_that_fits_passes(checkpoints):
    check_architecture(checkpoints[NPZ], make_config(**TINY))
    check_architecture(checkpoints[NPZ], make_config(**TINY, variant='L/16'))


def test_every_field_that_differs_is_named_with_its_cure(checkpoints):
    config = make_config(**{**TINY, 'layers': 5}, epsilon=1e-12)
    with pytest.raises(UserError) as caught:
        check_architecture(checkpoints[BARE], config, 'model')
    assert str(caught.value) == (
        f'{BARE} does not fit model: layers is 6 there, 5 here, activation is gelu there, gelu_tanh here, '
        'epsilon is 1e-06 there, 1e-12 here, pre_logits is True there, False here; set model.layers=6 '
        'model.activation=gelu model.epsilon=1e-06 model.pre_logits=True'
    )


@pytest.mark.parametrize(
    ('architecture', 'changes', 'expected'),
    [
        (BASE, {'variant': 'B/16'}, ()),
        (BASE, {'variant': 'B/32', 'patch': 16}, ()),
        (BASE, {}, ('variant=B/16',)),
        (BASE, {'name': 'mlp', 'variant': 'B/16'}, ('name=vit',)),
        (BASE, {'variant': 'L/32', 'layers': 4}, ('variant=B/16', 'layers=0')),
        (BASE, {'variant': 'B/16', 'layers': 4, 'heads': 12}, ('layers=0',)),
        (BASE._replace(epsilon=1e-12), {'variant': 'B/16'}, ('epsilon=1e-12',)),
        (BASE._replace(activation='gelu'), {'variant': 'B/16'}, ('activation=gelu',)),
        (BASE._replace(patch=14), {}, ('patch=14',)),
        (BASE._replace(sizes=BASE.sizes._replace(layers=5)), {'variant': 'B/16'}, ('layers=5',)),
    ],
)
def test_overrides_are_few_and_do(architecture, changes, expected):
    config = make_config(**changes)
    assert overrides(architecture, config, 'm') == tuple(f'm.{change}' for change in expected)
    for change in expected:
        key, value = change.split('=')
        with contextlib.suppress(ValueError):
            value = type(config[key])(float(value))
        config[key] = value
    assert overrides(architecture, config) == ()
