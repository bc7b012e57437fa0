"""Architectures and configs."""

import math
import pathlib

import pytest

from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.models import vit
from td_jax.pretrained import google
from td_jax.pretrained.architecture import (
    Architecture,
    Checkpoint,
    Preprocessing,
    check_teacher,
    shapes,
    student_overrides,
    teacher_overrides,
)

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
    """A config whose teacher is a ViT, with changes of teacher.model."""
    config = common.get_config()
    config.teacher.model.update({'name': 'vit', **changes})
    return config


def test_a_config_that_fits_passes(checkpoints):
    check_teacher(checkpoints[NPZ], make_config(**TINY))
    check_teacher(checkpoints[NPZ], make_config(**TINY, variant='L/16'))


def test_every_field_that_differs_is_named_with_its_cure(checkpoints):
    config = make_config(**{**TINY, 'layers': 5}, epsilon=1e-12)
    with pytest.raises(UserError) as caught:
        check_teacher(checkpoints[BARE], config)
    assert str(caught.value) == (
        f'{BARE} does not fit teacher.model and dataset: layers is 6 there, 5 here, activation is gelu '
        'there, gelu_tanh here, epsilon is 1e-06 there, 1e-12 here, pre_logits is True there, False here, '
        'teacher.dataset.resize is bilinear_antialias there, bilinear here; set teacher.model.layers=6 '
        'teacher.model.activation=gelu teacher.model.epsilon=1e-06 teacher.model.pre_logits=True '
        'teacher.dataset.resize=bilinear_antialias'
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
        (BASE._replace(patch=14), {}, ('variant=B/14',)),
        (BASE._replace(patch=12), {}, ('patch=12',)),
        (BASE._replace(registers=4), {'variant': 'B/16'}, ('registers=4',)),
        (BASE._replace(sizes=BASE.sizes._replace(layers=5)), {'variant': 'B/16'}, ('layers=5',)),
    ],
)
def test_overrides_are_few_and_do(architecture, changes, expected):
    config = make_config(**changes)
    checkpoint = Checkpoint('somewhere', architecture, {}, google.PREPROCESSING)
    overrides = teacher_overrides(checkpoint, config)
    assert tuple(f'{key}={value}' for key, value in overrides.items()) == tuple(
        f'teacher.model.{change}' for change in expected
    )
    config.update_from_flattened_dict(overrides)
    assert teacher_overrides(checkpoint, config) == {}
    check_teacher(checkpoint, config)


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'bilinear_antialias')


def test_how_images_are_shown_has_to_fit_too():
    config = make_config(variant='B/16')
    checkpoint = Checkpoint('somewhere', BASE, {}, IMAGENET)
    with pytest.raises(UserError) as caught:
        check_teacher(checkpoint, config)
    assert str(caught.value) == (
        'somewhere does not fit teacher.model and dataset: teacher.dataset.image_mean is '
        '(0.485, 0.456, 0.406) there, (0.5, 0.5, 0.5) here, teacher.dataset.image_std is '
        '(0.229, 0.224, 0.225) there, (0.5, 0.5, 0.5) here, teacher.dataset.resize is bilinear_antialias '
        'there, bilinear here; set '
        'teacher.dataset.image_mean=(0.485,0.456,0.406) teacher.dataset.image_std=(0.229,0.224,0.225) '
        'teacher.dataset.resize=bilinear_antialias'
    )
    config.update_from_flattened_dict(teacher_overrides(checkpoint, config))
    check_teacher(checkpoint, config)
    # Who does not resize says nothing of how.
    check_teacher(checkpoint._replace(preprocessing=IMAGENET._replace(resize=None)), config)


def test_a_student_that_starts_from_a_checkpoint_is_shown_images_alike():
    checkpoint = Checkpoint('somewhere', BASE._replace(activation='gelu'), {}, IMAGENET)
    assert student_overrides(checkpoint, make_config()) == {
        'model.activation': 'gelu',
        'dataset.image_mean': (0.485, 0.456, 0.406),
        'dataset.image_std': (0.229, 0.224, 0.225),
        'dataset.resize': 'bilinear_antialias',
    }
    assert (
        student_overrides(
            checkpoint._replace(architecture=BASE, preprocessing=google.PREPROCESSING), make_config()
        )
        == {}
    )
