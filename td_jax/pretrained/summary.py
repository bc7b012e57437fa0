"""What a public checkpoint is and how it becomes a teacher, for a person."""

import math
import shlex

import jax

from configs import common
from td_jax import pretrained
from td_jax.method import communication, objectives
from td_jax.models import base, vit
from td_jax.pretrained.architecture import as_text, module_of, shapes, student_overrides, teacher_overrides

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
      UserError: what `pretrained.read` raises.
    """
    config = common.get_config()
    checkpoint = pretrained.read(location)
    architecture = checkpoint.architecture
    sizes, patch, side = architecture.sizes, architecture.patch, architecture.image_size
    grid = side // patch
    variants = {sizes: name for name, sizes in vit.VARIANTS.items()}
    counts = {name: math.prod(shape) for name, shape in shapes(architecture).items()}
    total = sum(counts.values())
    head = _sum(counts, ('head_layer', 'pre_logits_layer'))
    flags = [
        f'--config.teacher.pretrained={shlex.quote(location)}',
        *_flags(teacher_overrides(checkpoint, config)),
    ]
    student = _flags(student_overrides(checkpoint, config))
    facts = {
        'variant': f'{variants[sizes]}/{patch}' if sizes in variants else 'none of the published ones',
        'sizes': f'{sizes.layers} blocks, width {sizes.width}, MLP {sizes.mlp}, {sizes.heads} heads',
        'images': f'{side} x {side} pixels, {grid} x {grid} patches of {patch} x {patch}, and a class token',
        'activation': f'{architecture.activation}, LayerNorm epsilon {architecture.epsilon}',
        'pre-logits': 'a Dense with tanh' if architecture.pre_logits else 'none',
        'head': f'{architecture.num_outputs:,} outputs' if architecture.num_outputs else 'none',
        'parameters': f'backbone {total - head:,}, head {head:,}, total {total:,}',
    }
    mean, std, resize = checkpoint.shown
    facts['pixels'] = f'(pixel / 255 - {as_text(mean)}) / {as_text(std)}, ' + (
        f'resized by {resize}' if resize else 'not resized'
    )
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
            *_split_points(architecture, counts, config),
            '',
            'As a teacher (at another dataset.image_size the position embeddings are resized):',
            '',
            ' '.join(flags),
            *(
                ['', 'And with a student that starts from it, beside its sizes:', '', ' '.join(student)]
                if student
                else []
            ),
        ]
    )


def _flags(overrides):
    """Overrides as they are written in a shell."""
    return [shlex.quote(f'--config.{key}={as_text(value)}') for key, value in overrides.items()]


def _sum(counts, modules):
    """How many parameters some modules have."""
    return sum(count for name, count in counts.items() if name.split('/')[0] in modules)


def _split_points(architecture, counts, config):
    """A table: for each split, the parameters below and above it and the shapes there."""
    found = [_shape(x) for x in _states(architecture, config)]
    rows = [('split', 'below', 'above', 's', 'e', 'message')]
    for split in range(architecture.sizes.layers + 1):
        below = ['embedding', 'cls', 'pos_embedding', *(f'block_{i}' for i in range(split))]
        above = ['norm', *(f'block_{i}' for i in range(split, architecture.sizes.layers))]
        rows.append((str(split), f'{_sum(counts, below):,}', f'{_sum(counts, above):,}', *found))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[:3], widths, strict=False)]
        texts = [cell.ljust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield '  '.join([*numbers, *texts]).rstrip()


def _states(architecture, config):
    """The shapes of s, e and the message. A block keeps the shape, so they are the same at every split."""
    model = base.from_module(module_of(architecture, split=architecture.sizes.layers // 2))
    encoder = communication.Encoder(
        config.communication.hidden, config.communication.message, config.communication.dropout
    )
    image = jax.numpy.zeros((BATCH, architecture.image_size, architecture.image_size, 3))

    def speak(key):
        inputs = {'image': image}
        states = base.activations(model, model.init(key, inputs), inputs)
        message, _ = encoder.init_with_output(key, states.lower, states.upper)
        return states.lower, states.upper, message

    return jax.eval_shape(speak, jax.random.key(0))


def _shape(x):
    return f'[{", ".join(["batch", *map(str, x.shape[1:])])}]'
