"""A checkpoint's parameters -> the tree of a model."""

import math
from typing import NamedTuple

import flax
import numpy as np
import scipy.ndimage

from td_jax.errors import UserError
from td_jax.pretrained.architecture import Checkpoint
from td_jax.pretrained.convert import shape_of


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
            hint = ' Set pre_logits=False in the model.' if name.startswith('pre_logits_layer/') else ''
            raise UserError(f'{checkpoint.location} has no {name}, {shape_of(value)} in the model.{hint}')
        found = theirs[name]
        if name == 'pos_embedding' and found.shape != value.shape and found.shape[-1] == value.shape[-1]:
            found = resize_positions(found, value.shape[1] - 1)
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


def resize_positions(embeddings, count: int):
    """Stretches the grid of position embeddings linearly; the class token's stays.

    As google-research/vision_transformer does (`scipy.ndimage.zoom` of order 1, corners on corners), but
    for one of its cases: from 28 to 14 and a few more, rounding puts the last row just outside the grid,
    and it comes out as zeros there. Here it is the old grid's last row.

    Args:
      embeddings: [1, 1 + n, width], of a square grid.
      count: patches of the new, square grid.

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
    grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1, mode='nearest')
    return np.concatenate([np.asarray(embeddings)[:, :1], grid.reshape(1, count, width)], axis=1)


def _side(count):
    """The side of a square grid of so many patches."""
    side = math.isqrt(max(count, 0))
    if side * side != count or not count:
        raise UserError(
            f'{count} patches are no square grid; position embeddings are resized on squares alone.'
        )
    return side
