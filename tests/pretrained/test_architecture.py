"""Architectures of checkpoints, and configs that fit them."""

import math
import pathlib

import pytest

from td_jax.configs import common, images
from td_jax.errors import UserError
from td_jax.models import resnet, vit
from td_jax.pretrained import google
from td_jax.pretrained.architecture import (
    Architecture,
    Checkpoint,
    EfficientNetArchitecture,
    Preprocessing,
    ResNetArchitecture,
    changed_values,
    check_teacher,
    complete_config,
    parameter_shapes,
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
    assert sum(map(math.prod, parameter_shapes(architecture).values())) == total
    width, layers, mlp, _ = sizes
    tokens = 1 + (224 // patch) ** 2
    attention = 4 * (width * width + width)
    block = attention + (width * mlp + mlp) + (mlp * width + width) + 2 * (2 * width)
    embedding = (patch * patch * 3 * width + width) + width + tokens * width
    assert embedding + layers * block + 2 * width + (width * 1000 + 1000) == total
    with_pre_logits = parameter_shapes(architecture._replace(pre_logits=True))
    assert sum(map(math.prod, with_pre_logits.values())) == total + width * width + width


R50 = ResNetArchitecture(resnet.Sizes(8, resnet.BOTTLENECKS[50], True), 0)


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
    with pytest.raises(UserError) as error_info:
        check_teacher(checkpoints[BARE], config)
    assert str(error_info.value) == (
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
    with pytest.raises(UserError) as error_info:
        check_teacher(checkpoint, config)
    assert str(error_info.value) == (
        'somewhere does not fit teacher.model and dataset: teacher.dataset.image_mean is '
        '(0.485, 0.456, 0.406) there, (0.5, 0.5, 0.5) here, teacher.dataset.image_std is '
        '(0.229, 0.224, 0.225) there, (0.5, 0.5, 0.5) here, teacher.dataset.resize is bilinear_antialias '
        'there, bilinear here; set '
        'teacher.dataset.image_mean=(0.485,0.456,0.406) teacher.dataset.image_std=(0.229,0.224,0.225) '
        'teacher.dataset.resize=bilinear_antialias'
    )
    config.update_from_flattened_dict(teacher_overrides(checkpoint, config))
    check_teacher(checkpoint, config)
    # Without resizing, its options are not compared.
    check_teacher(checkpoint._replace(preprocessing=IMAGENET._replace(resize=None)), config)


DINOV2 = Checkpoint(
    'somewhere',
    Architecture(vit.VARIANTS['S'], 14, 518, 0, 'gelu', 1e-6, False),
    {},
    Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'bicubic_antialias', 'center', 0.875, 224),
)
PREPROCESSING = {
    'image_mean': (0.485, 0.456, 0.406),
    'image_std': (0.229, 0.224, 0.225),
    'resize': 'bicubic_antialias',
    'crop_mode': 'center',
    'crop_pct': 0.875,
}


def complete_and_compare(checkpoint, config, *set_keys):
    """({key: value} that a checkpoint changes in a config, the changed config)."""
    completed_config = complete_config(checkpoint, config, set_keys.__contains__, common.get_config())
    check_teacher(checkpoint, completed_config)
    return changed_values(config, completed_config), completed_config


def test_a_checkpoint_says_itself_what_its_teacher_is():
    config = common.get_config()
    changes, completed_config = complete_and_compare(DINOV2, config)
    assert changes == {
        'teacher.model.name': 'vit',
        'teacher.model.variant': 'S/14',
        'teacher.model.split': 6,
        'teacher.model.activation': 'gelu',
        'teacher.dataset.image_size': 224,
        **{f'teacher.dataset.{key}': value for key, value in PREPROCESSING.items()},
    }
    assert config.teacher.model.name == 'mlp'
    # Completing it again changes nothing, so the stored config of a run is that of the run.
    assert complete_and_compare(DINOV2, completed_config)[0] == {}


def test_a_student_that_starts_from_a_checkpoint_is_of_its_kind():
    """The student gets the checkpoint's width and keeps its own three blocks."""
    config = images.get_config()
    changes, completed_config = complete_and_compare(DINOV2, config)
    of_student = {key: value for key, value in changes.items() if not key.startswith('teacher.')}
    assert of_student == {
        'model.variant': 'S/14',
        'model.activation': 'gelu',
        **{f'model.{key}': 0 for key in ('width', 'mlp', 'heads')},
        'dataset.image_size': 224,
        **{f'dataset.{key}': value for key, value in PREPROCESSING.items()},
    }
    assert vit.sizes_of(completed_config.model) == (vit.VARIANTS['S']._replace(layers=3), 14)
    assert vit.sizes_of(completed_config.teacher.model) == (vit.VARIANTS['S'], 14)
    # Options that are set are kept.
    config.model.layers, config.dataset.image_size = 5, 56
    _, completed_config = complete_and_compare(
        DINOV2, config, 'model.layers', 'dataset.image_size', 'model.initial'
    )
    assert (completed_config.model.layers, completed_config.model.split) == (5, 3)
    # Position embeddings are copied, so both have the same image size.
    assert completed_config.dataset.image_size == completed_config.teacher.dataset.image_size == 56


def test_a_student_of_sizes_without_a_name(checkpoints):
    config = images.get_config()
    _, completed_config = complete_and_compare(checkpoints[NPZ], config)
    assert vit.sizes_of(completed_config.model) == (vit.Sizes(48, 3, 96, 4), 8)
    config.model.layers = 0
    _, completed_config = complete_and_compare(checkpoints[NPZ], config)
    assert vit.sizes_of(completed_config.model) == (vit.Sizes(48, 6, 96, 4), 8)
    # The checkpoint has no image size: the nearest to the config's that patches of 8 divide.
    config.dataset.image_size = 45
    assert complete_and_compare(checkpoints[NPZ], config)[1].dataset.image_size == 48


@pytest.mark.parametrize('architecture', [R50, EfficientNetArchitecture('lite0', 'same', 0)])
def test_a_student_that_cannot_start_from_its_teacher_starts_at_random(architecture):
    config = images.get_config()
    checkpoint = Checkpoint('somewhere', architecture, {}, google.PREPROCESSING)
    changes, completed_config = complete_and_compare(checkpoint, config)
    student_keys = {key for key in changes if not key.startswith('teacher.')}
    assert student_keys == {'model.initial'} and completed_config.model.initial == 'random'
    assert (
        completed_config.teacher.model.split
        == {'resnet': 2, 'efficientnet': 4}[completed_config.teacher.model.name]
    )


def test_a_student_of_an_efficientnet_is_refused():
    checkpoint = Checkpoint('somewhere', EfficientNetArchitecture('b0', 'same', 0), {}, google.PREPROCESSING)
    with pytest.raises(
        UserError, match=r'somewhere has BatchNorm, which no student has: .* resnet or vit\.$'
    ):
        complete_and_compare(checkpoint, images.get_config(), 'model.initial')


def test_a_student_that_starts_from_a_bit_is_one():
    checkpoint = Checkpoint('somewhere', R50, {}, google.PREPROCESSING)
    config = images.get_config()
    _, completed_config = complete_and_compare(checkpoint, config, 'model.initial')
    assert (completed_config.model.name, completed_config.model.variant, completed_config.model.width) == (
        'resnet',
        'R50x1',
        8,
    )
    assert completed_config.model.split == 2


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'teacher.model.layers': 4}, 'teacher.model.layers is 12 there, 4 here'),
        ({'teacher.model.variant': 'B/16'}, 'teacher.model.variant is S/14 there, B/16 here'),
        ({'teacher.model.name': 'resnet'}, 'teacher.model.name is vit there, resnet here'),
        ({'teacher.model.activation': 'gelu_tanh'}, 'teacher.model.activation is gelu there, gelu_tanh here'),
        ({'teacher.dataset.crop_pct': 0.5}, 'teacher.dataset.crop_pct is 0.875 there, 0.5 here'),
        ({'model.initial': 'teacher', 'model.width': 48}, 'model.width is 384 there, 48 here'),
        (
            {'teacher.model.patch': 16, 'teacher.model.registers': 1},
            'teacher.model.patch is 14 there, 16 here, teacher.model.registers is 0 there, 1 here',
        ),
    ],
)
def test_what_is_set_otherwise_is_refused_by_name(changes, words):
    config = common.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error_info:
        complete_and_compare(DINOV2, config, *changes)
    keys = ' and '.join(key for key in changes if key != 'model.initial')
    assert str(error_info.value) == (f'somewhere does not match what is set: {words}; leave {keys} out.')


def test_what_is_set_as_it_is_there_is_taken(checkpoints):
    config = common.get_config()
    keys = {'teacher.model.variant': 'S/32', 'teacher.model.patch': 14, 'teacher.model.heads': 6}
    config.update_from_flattened_dict(keys)
    assert not keys.keys() & complete_and_compare(DINOV2, config, *keys)[0].keys()
    # A variant of other sizes is refused if no other option gives the sizes.
    config = make_config(variant='Ti/8', **TINY)
    keys = [f'teacher.model.{key}' for key in ('variant', *TINY)]
    assert 'teacher.model.variant' not in complete_and_compare(checkpoints[NPZ], config, *keys)[0]
    with pytest.raises(UserError, match='variant is none of those with a name there, Ti/8 here'):
        complete_and_compare(checkpoints[NPZ], config, 'teacher.model.variant')
