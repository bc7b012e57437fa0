"""Describes a public checkpoint and the flags that make it a teacher."""

import itertools
import math
import shlex

import flax
import jax

from td_jax import pretrained, text_tables
from td_jax.configs import common
from td_jax.devices import platform
from td_jax.method import objectives
from td_jax.models import base, efficientnet, resnet_bn, vit
from td_jax.pretrained.architecture import (
    Architecture,
    EfficientNetArchitecture,
    FoldedResNetArchitecture,
    FrozenArchitecture,
    ResNetArchitecture,
    build_module,
    changed_values,
    complete_config,
    format_value,
    middle_split,
    parameter_shapes,
    variant_of,
)

# Side in pixels of the images in the description of a ResNet, which takes any size.
SIDE = 224
# The batch size in computations of shapes; the first axis is written as "batch".
BATCH = 1
# Convolutional architecture -> names of its modules before the stages, after them, and of a part of a stage.
MODULES = {
    ResNetArchitecture: (('root',), ('final_norm',), 'unit'),
    FoldedResNetArchitecture: (('root',), (), 'unit'),
    EfficientNetArchitecture: (('stem',), ('last',), 'block'),
}


def report(location: str) -> str:
    """Reads a checkpoint and describes it.

    Args:
      location: as for `pretrained.read`.

    Returns:
      several lines: architecture, preprocessing, parameters, shapes at every split point, and the flags for a
      teacher and for a student that starts from it

    Raises:
      UserError: raised by `pretrained.read`, or there is no device.
    """
    platform.start()
    config = common.get_config()
    checkpoint = pretrained.read(location)
    architecture = checkpoint.architecture
    side = getattr(architecture, 'image_size', SIDE)
    parameters = parameter_shapes(architecture)
    counts = {name: math.prod(shape) for name, shape in parameters.items()}
    total = sum(counts.values())
    head = _sum_counts(counts, ('head_layer', 'pre_logits_layer'))
    describe = {
        ResNetArchitecture: _describe_resnet,
        EfficientNetArchitecture: _describe_efficientnet,
        FoldedResNetArchitecture: _describe_folded_resnet,
    }
    properties = {
        **describe.get(type(architecture), _describe_vit)(architecture),
        'head': _describe_head(checkpoint),
        'parameters': f'backbone {total - head:,}, head {head:,}, total {total:,}',
    }
    properties['pixels'] = _describe_preprocessing(checkpoint.preprocessing, side)
    if architecture.num_outputs:
        names = checkpoint.label_names
        properties['labels'] = objectives.preview(names) if names else 'without names'
    if checkpoint.assumed:
        properties['assumed'] = checkpoint.assumed
    if checkpoint.unused:
        properties['unused'] = ', '.join(checkpoint.unused)
    return '\n'.join(
        [
            location,
            '',
            *(f'{name:<12}{value}' for name, value in properties.items()),
            '',
            f'Split points at {side} x {side} pixels, with messages of communication.message='
            f'{config.communication.message}:',
            '',
            *_split_points(architecture, parameters, counts, config, side),
            '',
            *_describe_teacher_use(checkpoint, config),
        ]
    )


def _describe_teacher_use(checkpoint, defaults):
    """The flags that make a checkpoint the teacher of a config, and the options that they imply."""
    architecture = checkpoint.architecture
    is_vit = isinstance(architecture, Architecture)
    teacher_only = complete_config(checkpoint, defaults, lambda key: False, defaults)
    yield 'As a teacher' + (
        ' (of other sizes of images its position embeddings are resized):' if is_vit else ':'
    )
    yield from ('', f'--config.teacher.pretrained={shlex.quote(checkpoint.location)}')
    yield from ('', 'which is short for', '', _format_flags(changed_values(defaults, teacher_only)))
    if isinstance(architecture, FrozenArchitecture):
        return
    student_defaults = defaults.copy_and_resolve_references()
    student_defaults.model.initial = 'teacher'
    flags = '--config.model.initial=teacher'
    if is_vit:
        student_defaults.model.layers = middle_split(architecture.sizes.layers)
        flags += f' --config.model.layers={student_defaults.model.layers}'
    with_student = complete_config(
        checkpoint, student_defaults, {'model.initial', 'model.layers'}.__contains__, defaults
    )
    student_changes = {
        key: v
        for key, v in changed_values(student_defaults, with_student).items()
        if not key.startswith('teacher.')
    }
    yield from (
        '',
        'And with a student that starts from it:',
        '',
        flags,
        '',
        'which is short for',
        '',
        _format_flags(student_changes),
    )


def _describe_head(checkpoint):
    if checkpoint.has_zero_head:
        return "none (the weights of the file's are all zeros: it knows nothing)"
    count = checkpoint.architecture.num_outputs
    return f'{count:,} outputs' if count else 'none'


def _describe_preprocessing(preprocessing, side):
    mean, std = preprocessing.image_mean, preprocessing.image_std
    pixels = f'(pixel / 255 - {format_value(mean)}) / {format_value(std)}, '
    if not preprocessing.resize:
        return pixels + 'not resized'
    return pixels + preprocessing.view(preprocessing.image_size or side).describe()


def _describe_vit(architecture):
    """Describes a ViT, {property: text}."""
    sizes, patch, side = architecture.sizes, architecture.patch, architecture.image_size
    registers = architecture.registers
    grid = side // patch
    variants = {sizes: name for name, sizes in vit.VARIANTS.items()}
    return {
        'variant': f'{variants[sizes]}/{patch}' if sizes in variants else 'none of the published ones',
        'sizes': f'{sizes.layers} blocks, width {sizes.width}, MLP {sizes.mlp}, {sizes.heads} heads',
        'images': f'{side} x {side} pixels, {grid} x {grid} patches of {patch} x {patch}, and a class token'
        + (f' and {registers} register{"s" if registers > 1 else ""}' if registers else ''),
        'activation': f'{architecture.activation}, LayerNorm epsilon {architecture.epsilon}',
        'pre-logits': 'a Dense with tanh' if architecture.pre_logits else 'none',
        **({'head reads': architecture.pooling} if architecture.pooling != 'class' else {}),
    }


def _describe_resnet(architecture):
    """Describes a BiT, {property: text}."""
    units, width = architecture.sizes.units, architecture.sizes.width
    return {
        'variant': variant_of(architecture.sizes)['variant'],
        'sizes': f'stages of {", ".join(map(str, units))} units, root width {width}',
        'images': 'of any size',
    }


def _describe_efficientnet(architecture):
    """Describes an EfficientNet, {property: text}."""
    sizes = efficientnet.sizes_of_variant(architecture.variant)
    return {
        'variant': f'EfficientNet {architecture.variant}, padding {architecture.padding}',
        'sizes': f'stages of {", ".join(map(str, sizes.depths))} blocks, {", ".join(map(str, sizes.widths))} '
        f'wide, then {sizes.last}; BatchNorm is part of the convolutions',
        'images': 'of any size',
    }


def _describe_folded_resnet(architecture):
    """Describes a ResNet with BatchNorm, {property: text}."""
    sizes = resnet_bn.sizes_of_variant(architecture.variant)
    return {
        'variant': architecture.variant,
        'sizes': f'stages of {", ".join(map(str, sizes.units))} units of {3 if sizes.bottleneck else 2} '
        'convolutions; BatchNorm is part of these',
        'images': 'of any size',
    }


def _format_flags(overrides):
    """Formats overrides as flags for a shell."""
    return ' '.join(shlex.quote(f'--config.{key}={format_value(value)}') for key, value in overrides.items())


def _sum_counts(counts, modules):
    """Sums the numbers of parameters of some modules."""
    return sum(count for name, count in counts.items() if name.split('/')[0] in modules)


def _split_points(architecture, parameters, counts, config, side):
    """The lines of a table: for each split, the parameters below and above it, and the shapes there."""
    rows = [('split', 'below', 'above', 's', 'e', 'message')]
    if isinstance(architecture, Architecture):
        around, last = ('embedding', 'cls', 'pos_embedding', 'register_tokens'), ('norm',)
        parts = [[f'block_{i}'] for i in range(architecture.sizes.layers)]
        # Blocks keep the shape, which is therefore the same at every split.
        states_by_split = _states(architecture, parameters, config, side, [0]) * (len(parts) + 1)
    else:
        around, last, part = MODULES[type(architecture)]
        parts = [
            [f'stage_{i}_{part}_{j}' for j in range(count)] for i, count in enumerate(architecture.depths())
        ]
        states_by_split = _states(architecture, parameters, config, side, range(len(parts) + 1))
    for split, states in enumerate(states_by_split):
        below = [*around, *itertools.chain(*parts[:split])]
        above = [*last, *itertools.chain(*parts[split:])]
        numbers = f'{_sum_counts(counts, below):,}', f'{_sum_counts(counts, above):,}'
        rows.append((str(split), *numbers, *map(_format_shape, states)))
    return text_tables.align(rows, right=range(3))


def _states(architecture, parameters, config, side, splits):
    """The shapes of s, e and a message, on the grid of s, at each of some splits."""
    models = [base.from_module(build_module(architecture, split)) for split in splits]
    flat = {name: jax.ShapeDtypeStruct(shape, 'float32') for name, shape in parameters.items()}
    params = flax.traverse_util.unflatten_dict(flat, sep='/')
    inputs = {'image': jax.ShapeDtypeStruct((BATCH, side, side, 3), 'float32')}
    lower = [jax.eval_shape(model.lower, params, inputs) for model in models]
    # e does not depend on the split.
    e = jax.eval_shape(models[-1].upper, params, lower[-1])
    messages = [(*s.shape[:-1], config.communication.message) for s in lower]
    return [(s, e, jax.ShapeDtypeStruct(shape, s.dtype)) for s, shape in zip(lower, messages, strict=True)]


def _format_shape(x):
    return f'[{", ".join(["batch", *map(str, x.shape[1:])])}]'
