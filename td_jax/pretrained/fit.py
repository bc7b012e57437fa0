"""A checkpoint's parameters -> the tree of a model."""

import math
from typing import NamedTuple

import flax
import numpy as np
import scipy.ndimage

from td_jax.errors import UserError
from td_jax.pretrained.architecture import Checkpoint
from td_jax.pretrained.convert import shape_of

# What makes a model fit that has a module which the checkpoint lacks.
HINTS = {
    'pre_logits_layer': ' Set pre_logits=False in the model.',
    'register_tokens': ' Set registers=0 in the model.',
}


class Report(NamedTuple):
    """What became of each parameter, by name, 'block_0/mlp_in/kernel'."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    initialised: tuple[str, ...]
    unused: tuple[str, ...]


def fit(checkpoint: Checkpoint, initial) -> tuple[dict, Report]:
    """Puts a checkpoint's parameters into the tree of a model.

    A head for another number of outputs stays as it is in `initial`, and so does one behind other
    pre-logits, whose input it would not know. Position embeddings are resized to the model's grid. Blocks
    that the model does not have are left out.

    Args:
      checkpoint: what `pretrained.read` returned.
      initial: the parameters of a vit.ViT or a resnet.ResNet, as its `init` makes them.

    Returns:
      parameters of `initial`'s names and shapes, and what became of each

    Raises:
      UserError: a parameter around or in the blocks that the checkpoint lacks or has in another shape.
    """
    theirs = flax.traverse_util.flatten_dict(checkpoint.params, sep='/')
    ours = flax.traverse_util.flatten_dict(initial, sep='/')
    has_pre_logits = any(name.startswith('pre_logits_layer/') for name in ours)
    head = 'head_layer/kernel'
    keeps_head = (
        head in theirs
        and head in ours
        and theirs[head].shape == ours[head].shape
        and any(name.startswith('pre_logits_layer/') for name in theirs) == has_pre_logits
    )
    params, loaded, resized, initialised = {}, [], [], []
    for name, value in ours.items():
        if name.startswith('head_layer/') and not keeps_head:
            params[name] = value
            initialised.append(name)
            continue
        if name not in theirs:
            hint = HINTS.get(name.split('/')[0], '')
            raise UserError(f'{checkpoint.location} has no {name}, {shape_of(value)} in the model.{hint}')
        found = theirs[name]
        if name == 'pos_embedding' and found.shape != value.shape and found.shape[-1] == value.shape[-1]:
            found = resize_positions(found, value.shape[1] - 1, checkpoint.positions)
            resized.append(name)
        else:
            loaded.append(name)
        if found.shape != value.shape:
            raise UserError(
                f'{name} is {shape_of(found)} in {checkpoint.location}, but {shape_of(value)} in the model.'
            )
        params[name] = found
    unused = [name for name in theirs if name not in {*loaded, *resized}]
    report = Report(*map(tuple, (loaded, resized, initialised, [*unused, *checkpoint.unused])))
    return flax.traverse_util.unflatten_dict(params, sep='/'), report


def describe(report: Report) -> str:
    """The report for a person: a line for what was loaded, and one for each kind of exception there is."""
    lines = [f'{len(report.loaded)} parameters loaded']
    for names, what in (
        (report.resized, 'resized'),
        (report.initialised, 'newly initialised'),
        (report.unused, 'unused'),
    ):
        if names:
            lines.append(f'{len(names)} {what}: {_summary(names)}')
    return '\n'.join(lines)


def _summary(names):
    """The modules of some parameters, the first few of them by name."""
    modules = list(dict.fromkeys(name.split('/')[0] for name in names))
    shown = modules[:5]
    more = f' and {len(modules) - len(shown)} more' if len(modules) > len(shown) else ''
    return ', '.join(shown) + more


def _linear(grid, new):
    """As google-research/vision_transformer does (`scipy.ndimage.zoom` of order 1, corners on corners).

    But for one of its cases: from 28 to 14 and a few more, rounding puts the last row just outside the grid,
    and it comes out as zeros there. Here it is the old grid's last row.
    """
    scale = new / len(grid)
    return scipy.ndimage.zoom(grid, (scale, scale, 1), order=1, mode='nearest')


def _cubic(x, a):
    """Keys's kernel of cubic convolution (1981), whose slope at 1 is `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bicubic(grid, new, a=-0.75):
    """As torch.nn.functional.interpolate does, whose edges are repeated outwards."""
    old = len(grid)
    at = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(at)[:, None] + np.arange(-1, 3)
    weights = np.zeros((new, old))
    rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
    np.add.at(weights, (rows, np.clip(taps, 0, old - 1).astype(int)), _cubic(taps - at[:, None], a))
    return _weighted(grid, weights)


def _bicubic_antialias(grid, new, a=-0.5):
    """The same with antialias=True: a wider kernel where a grid becomes coarser, cut off at the edges."""
    old = len(grid)
    wider = max(old / new, 1.0)
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = _cubic((np.arange(old) - at[:, None]) / wider, a)
    return _weighted(grid, weights / weights.sum(axis=1, keepdims=True))


def _weighted(grid, weights):
    """[old, old, width] -> [new, new, width], by weights [new, old] along both sides."""
    return np.einsum('ai,bj,ijw->abw', weights, weights, grid, optimize=True).astype(grid.dtype)


# How the grid of position embeddings is stretched, by name -> f(grid [old, old, width], new), which gives
# [new, new, width].
STRETCHES = {'linear': _linear, 'bicubic': _bicubic, 'bicubic_antialias': _bicubic_antialias}


def resize_positions(embeddings, count: int, stretch: str = 'linear'):
    """Stretches the grid of position embeddings; the class token's stays.

    Args:
      embeddings: [1, 1 + n, width], of a square grid.
      count: patches of the new, square grid.
      stretch: a name of STRETCHES, as the code does it that the checkpoint is of.

    Returns:
      [1, 1 + count, width]; `embeddings` itself where count is n

    Raises:
      UserError: n or count is not a square number.
    """
    _, tokens, width = embeddings.shape
    if count == tokens - 1:
        return embeddings
    old, new = _side(tokens - 1), _side(count)
    grid = np.asarray(embeddings)[0, 1:].reshape(old, old, width)
    grid = STRETCHES[stretch](grid, new)
    return np.concatenate([np.asarray(embeddings)[:, :1], grid.reshape(1, count, width)], axis=1)


def _side(count):
    """The side of a square grid of so many patches."""
    side = math.isqrt(max(count, 0))
    if side * side != count or not count:
        raise UserError(
            f'{count} patches are no square grid; position embeddings are resized on squares alone.'
        )
    return side
