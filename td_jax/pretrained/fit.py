"""Fits the parameters of a checkpoint to the tree of a model."""

import math
from typing import NamedTuple

import flax
import jax
import numpy as np
import scipy.ndimage

from td_jax.errors import UserError
from td_jax.pretrained.architecture import Checkpoint
from td_jax.pretrained.convert import format_shape

# Module that a checkpoint may lack -> the option that removes it from the model.
HINTS = {
    'pre_logits_layer': ' Set pre_logits=False in the model.',
    'register_tokens': ' Set registers=0 in the model.',
}


class Report(NamedTuple):
    """The names of parameters by what became of them, such as 'block_0/mlp_in/kernel'."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    initialised: tuple[str, ...]
    unused: tuple[str, ...]


def fit(checkpoint: Checkpoint, initial) -> tuple[dict, Report]:
    """Puts a checkpoint's parameters into the tree of a model.

    The head of `initial` is kept if the checkpoint's has another number of outputs, or if only one has
    pre-logits. Position embeddings are resized to the model's grid. Blocks that the model does not have are
    left out.

    Args:
      checkpoint: by `pretrained.read`.
      initial: the parameters of a model by its `init`.

    Returns:
      parameters with the names and shapes of `initial`, and a report

    Raises:
      UserError: a parameter other than the head is missing in the checkpoint or has another shape.
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
            raise UserError(f'{checkpoint.location} has no {name}, {format_shape(value)} in the model.{hint}')
        parameter = theirs[name]
        if (
            name == 'pos_embedding'
            and parameter.shape != value.shape
            and parameter.shape[-1] == value.shape[-1]
        ):
            parameter = resize_positions(parameter, value.shape[1] - 1, checkpoint.positions)
            resized.append(name)
        else:
            loaded.append(name)
        if parameter.shape != value.shape:
            raise UserError(
                f'{name} is {format_shape(parameter)} in {checkpoint.location}, but {format_shape(value)} in '
                'the model.'
            )
        params[name] = parameter
    unused = [name for name in theirs if name not in {*loaded, *resized}]
    report = Report(*map(tuple, (loaded, resized, initialised, [*unused, *checkpoint.unused])))
    return flax.traverse_util.unflatten_dict(params, sep='/'), report


def describe(report: Report) -> str:
    """Describes a report: a line for the loaded parameters, and one for each other kind, if any."""
    lines = [f'{len(report.loaded)} parameters loaded']
    for names, what in (
        (report.resized, 'resized'),
        (report.initialised, 'newly initialised'),
        (report.unused, 'unused'),
    ):
        if names:
            lines.append(f'{len(names)} {what}: {_summarize(names)}')
    return '\n'.join(lines)


def _summarize(names):
    """Names the first modules of some parameters, and counts the others."""
    modules = list(dict.fromkeys(name.split('/')[0] for name in names))
    first_modules = modules[:5]
    more = f' and {len(modules) - len(first_modules)} more' if len(modules) > len(first_modules) else ''
    return ', '.join(first_modules) + more


def _resize_linear(grid, new):
    """Resizes like google-research/vision_transformer (`scipy.ndimage.zoom` of order 1, corners aligned).

    There is one exception: for some sizes, such as 28 to 14, rounding there puts the last row outside the
    grid, which makes it zero. Here it is the last row of the old grid.
    """
    scale = new / len(grid)
    return scipy.ndimage.zoom(grid, (scale, scale, 1), order=1, mode='nearest')


def _resize_bicubic(grid, new, a=-0.75):
    """Resizes like torch.nn.functional.interpolate: by the kernel of Keys (1981), with repeated edges."""
    old = len(grid)
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(centers)[:, None] + np.arange(-1, 3)
    x = np.abs(taps - centers[:, None])
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    weights = np.zeros((new, old))
    rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
    np.add.at(weights, (rows, np.clip(taps, 0, old - 1).astype(int)), np.where(x < 1, near, far))
    return np.einsum('ai,bj,ijw->abw', weights, weights, grid, optimize=True).astype(grid.dtype)


def _resize_bicubic_antialias(grid, new):
    """Resizes like torch.nn.functional.interpolate with antialias=True."""
    shape = new, new, grid.shape[-1]
    return np.asarray(jax.image.resize(grid, shape, 'bicubic', precision=jax.lax.Precision.HIGHEST))


# Name -> function that resizes a grid of position embeddings: f(grid [old, old, width], new) gives
# [new, new, width].
STRETCHES = {
    'linear': _resize_linear,
    'bicubic': _resize_bicubic,
    'bicubic_antialias': _resize_bicubic_antialias,
}


def resize_positions(embeddings, count: int, stretch: str = 'linear'):
    """Resizes the grid of position embeddings; that of the class token stays.

    Args:
      embeddings: [1, 1 + n, width], of a square grid.
      count: number of patches in the new, square grid.
      stretch: a name of STRETCHES, the method of the checkpoint's own code.

    Returns:
      [1, 1 + count, width]; `embeddings` itself if count is n

    Raises:
      UserError: n or count is not a square number.
    """
    _, tokens, width = embeddings.shape
    if count == tokens - 1:
        return embeddings
    old, new = _grid_side(tokens - 1), _grid_side(count)
    grid = np.asarray(embeddings)[0, 1:].reshape(old, old, width)
    grid = STRETCHES[stretch](grid, new)
    return np.concatenate([np.asarray(embeddings)[:, :1], grid.reshape(1, count, width)], axis=1)


def _grid_side(count):
    """The side of a square grid of `count` patches."""
    side = math.isqrt(max(count, 0))
    if side * side != count or not count:
        raise UserError(
            f'{count} patches are no square grid; position embeddings are resized on squares alone.'
        )
    return side
