"""What a public checkpoint is and how it becomes a teacher, for a person."""

import math
import shlex

import jax

from configs import common
from td_jax import pretrained
from td_jax.method import communication
from td_jax.models import base, vit
from td_jax.pretrained.architecture import module_of, overrides, shapes

# Stands for the batch while shapes are worked out; the first axis is then written as "batch".
BATCH = 1


def report(location: str) -> str:
    """Reads a checkpoint and describes it.

    Args:
      location: as `pretrained.read` takes it.

    Returns:
      several lines: architecture, parameters, the shapes at every split point, and the overrides that make
      the teacher of a config fit

    Raises:
      UserError: what `pretrained.read` raises.
    """
    config = common.get_config()
    checkpoint = pretrained.read(location)
    architecture = checkpoint.architecture
    sizes, patch, side = architecture.sizes, architecture.patch, architecture.image_size
    grid = side // patch
    names = {sizes: name for name, sizes in vit.VARIANTS.items()}
    counts = {name: math.prod(shape) for name, shape in shapes(architecture).items()}
    total = sum(counts.values())
    head = _sum(counts, ('head_layer', 'pre_logits_layer'))
    flags = [
        f'--config.teacher.pretrained={shlex.quote(location)}',
        *overrides(architecture, config.teacher.model, '--config.teacher.model'),
    ]
    facts = {
        'variant': f'{names[sizes]}/{patch}' if sizes in names else 'none of the published ones',
        'sizes': f'{sizes.layers} blocks, width {sizes.width}, MLP {sizes.mlp}, {sizes.heads} heads',
        'images': f'{side} x {side} pixels, {grid} x {grid} patches of {patch} x {patch}, and a class token',
        'activation': f'{architecture.activation}, LayerNorm epsilon {architecture.epsilon}',
        'pre-logits': 'a Dense with tanh' if architecture.pre_logits else 'none',
        'head': f'{architecture.num_outputs:,} outputs' if architecture.num_outputs else 'none',
        'parameters': f'backbone {total - head:,}, head {head:,}, total {total:,}',
    }
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
        ]
    )


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
