"""What a public checkpoint is and how it becomes a teacher, for a person."""

import itertools
import math
import shlex

import flax
import jax

from td_jax import pretrained
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
    as_text,
    configured,
    difference,
    half_way,
    module_of,
    shapes,
    variant_of,
)

# Side in pixels of the images that the states of a ResNet, which takes any, are shown for.
SIDE = 224
# Stands for the batch while shapes are worked out; the first axis is then written as "batch".
BATCH = 1


def report(location: str) -> str:
    """Reads a checkpoint and describes it.

    Args:
      location: as `pretrained.read` takes it.

    Returns:
      several lines: architecture, how it is shown images, parameters, the shapes at every split point, and
      the overrides that make the teacher of a config fit, and a student that starts from it

    Raises:
      UserError: what `pretrained.read` raises, or there is no device to work shapes out with.
    """
    platform.start()
    config = common.get_config()
    checkpoint = pretrained.read(location)
    architecture = checkpoint.architecture
    side = getattr(architecture, 'image_size', SIDE)
    parameters = shapes(architecture)
    counts = {name: math.prod(shape) for name, shape in parameters.items()}
    total = sum(counts.values())
    head = _sum(counts, ('head_layer', 'pre_logits_layer'))
    describe = {
        ResNetArchitecture: _of_resnet,
        EfficientNetArchitecture: _of_efficientnet,
        FoldedResNetArchitecture: _of_folded_resnet,
    }
    facts = {
        **describe.get(type(architecture), _of_vit)(architecture),
        'head': f'{architecture.num_outputs:,} outputs' if architecture.num_outputs else 'none',
        'parameters': f'backbone {total - head:,}, head {head:,}, total {total:,}',
    }
    facts['pixels'] = _preprocessing(checkpoint.preprocessing, side)
    if architecture.num_outputs:
        names = checkpoint.label_names
        facts['labels'] = objectives.preview(names) if names else 'without names'
    if checkpoint.assumed:
        facts['assumed'] = checkpoint.assumed
    if checkpoint.unused:
        facts['unused'] = ', '.join(checkpoint.unused)
    return '\n'.join(
        [
            location,
            '',
            *(f'{name:<12}{value}' for name, value in facts.items()),
            '',
            f'Split points at {side} x {side} pixels, with messages of communication.message='
            f'{config.communication.message}:',
            '',
            *_split_points(architecture, parameters, counts, config, side),
            '',
            *_as_teacher(checkpoint, config),
        ]
    )


def _as_teacher(checkpoint, defaults):
    """The flags that make a checkpoint the teacher of a config, and what it then says itself."""
    architecture = checkpoint.architecture
    is_vit = isinstance(architecture, Architecture)
    alone = configured(checkpoint, defaults, lambda key: False, defaults)
    yield 'As a teacher' + (
        ' (of other sizes of images its position embeddings are resized):' if is_vit else ':'
    )
    yield from ('', f'--config.teacher.pretrained={shlex.quote(checkpoint.location)}')
    yield from ('', 'which is short for', '', _flags(difference(defaults, alone)))
    if isinstance(architecture, FrozenArchitecture):
        return
    beginning = defaults.copy_and_resolve_references()
    beginning.model.initial = 'teacher'
    flags = '--config.model.initial=teacher'
    if is_vit:
        beginning.model.layers = half_way(architecture.sizes.layers)
        flags += f' --config.model.layers={beginning.model.layers}'
    both = configured(checkpoint, beginning, {'model.initial', 'model.layers'}.__contains__, defaults)
    own = {key: v for key, v in difference(beginning, both).items() if not key.startswith('teacher.')}
    yield from (
        '',
        'And with a student that starts from it:',
        '',
        flags,
        '',
        'which is short for',
        '',
        _flags(own),
    )


def _preprocessing(preprocessing, side):
    """How images are shown."""
    mean, std = preprocessing.image_mean, preprocessing.image_std
    pixels = f'(pixel / 255 - {as_text(mean)}) / {as_text(std)}, '
    if not preprocessing.resize:
        return pixels + 'not resized'
    return pixels + preprocessing.view(preprocessing.image_size or side).describe()


def _of_vit(architecture):
    """The facts of a ViT."""
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


def _of_resnet(architecture):
    """The facts of a BiT."""
    units, width = architecture.sizes.units, architecture.sizes.width
    return {
        'variant': variant_of(architecture.sizes)['variant'],
        'sizes': f'stages of {", ".join(map(str, units))} units, root width {width}',
        'images': 'of any size',
    }


def _of_efficientnet(architecture):
    """The facts of an EfficientNet."""
    sizes = efficientnet.sizes_of_variant(architecture.variant)
    return {
        'variant': f'EfficientNet {architecture.variant}, padding {architecture.padding}',
        'sizes': f'stages of {", ".join(map(str, sizes.depths))} blocks, {", ".join(map(str, sizes.widths))} '
        f'wide, then {sizes.last}; BatchNorm is part of the convolutions',
        'images': 'of any size',
    }


def _of_folded_resnet(architecture):
    """The facts of a ResNet with BatchNorm."""
    sizes = resnet_bn.sizes_of_variant(architecture.variant)
    return {
        'variant': architecture.variant,
        'sizes': f'stages of {", ".join(map(str, sizes.units))} units of {3 if sizes.bottleneck else 2} '
        'convolutions; BatchNorm is part of these',
        'images': 'of any size',
    }


def _flags(overrides):
    """Overrides as they are written in a shell."""
    return ' '.join(shlex.quote(f'--config.{key}={as_text(value)}') for key, value in overrides.items())


def _sum(counts, modules):
    """How many parameters some modules have."""
    return sum(count for name, count in counts.items() if name.split('/')[0] in modules)


def _split_points(architecture, parameters, counts, config, side):
    """A table: for each split, the parameters below and above it and the shapes there."""
    rows = [('split', 'below', 'above', 's', 'e', 'message')]
    if isinstance(architecture, ResNetArchitecture):
        around, last = ('root',), ('final_norm',)
        parts = [
            [f'stage_{i}_unit_{j}' for j in range(count)] for i, count in enumerate(architecture.sizes.units)
        ]
        found = _states(architecture, parameters, config, side, range(len(parts) + 1))
    elif isinstance(architecture, FoldedResNetArchitecture):
        around, last = ('root',), ()
        units = resnet_bn.sizes_of_variant(architecture.variant).units
        parts = [[f'stage_{i}_unit_{j}' for j in range(count)] for i, count in enumerate(units)]
        found = _states(architecture, parameters, config, side, range(len(parts) + 1))
    elif isinstance(architecture, EfficientNetArchitecture):
        depths = efficientnet.sizes_of_variant(architecture.variant).depths
        around, last = ('stem',), ('last',)
        parts = [[f'stage_{i}_block_{j}' for j in range(count)] for i, count in enumerate(depths)]
        found = _states(architecture, parameters, config, side, range(len(parts) + 1))
    else:
        around, last = ('embedding', 'cls', 'pos_embedding', 'register_tokens'), ('norm',)
        parts = [[f'block_{i}'] for i in range(architecture.sizes.layers)]
        # A block keeps the shape, so they are the same at every split.
        found = _states(architecture, parameters, config, side, [0]) * (len(parts) + 1)
    for split, states in enumerate(found):
        below = [*around, *itertools.chain(*parts[:split])]
        above = [*last, *itertools.chain(*parts[split:])]
        numbers = f'{_sum(counts, below):,}', f'{_sum(counts, above):,}'
        rows.append((str(split), *numbers, *map(_shape, states)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[:3], widths, strict=False)]
        texts = [cell.ljust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield '  '.join([*numbers, *texts]).rstrip()


def _states(architecture, parameters, config, side, splits):
    """The shapes of s, e and a message, on the grid of s, at each of some splits."""
    models = [base.from_module(module_of(architecture, split)) for split in splits]
    flat = {name: jax.ShapeDtypeStruct(shape, 'float32') for name, shape in parameters.items()}
    params = flax.traverse_util.unflatten_dict(flat, sep='/')
    inputs = {'image': jax.ShapeDtypeStruct((BATCH, side, side, 3), 'float32')}
    lower = [jax.eval_shape(model.lower, params, inputs) for model in models]
    # Wherever a model is split, e is the same.
    e = jax.eval_shape(models[-1].upper, params, lower[-1])
    messages = [(*s.shape[:-1], config.communication.message) for s in lower]
    return [(s, e, jax.ShapeDtypeStruct(shape, s.dtype)) for s, shape in zip(lower, messages, strict=True)]


def _shape(x):
    return f'[{", ".join(["batch", *map(str, x.shape[1:])])}]'
