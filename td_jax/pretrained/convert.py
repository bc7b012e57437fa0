"""Names, shapes and axes: a file's parameters -> ours, and ours -> a file's."""

import math
import re
from typing import NamedTuple

import flax
import jax.numpy as jnp
import numpy as np

from td_jax.errors import UserError
from td_jax.pretrained.architecture import AnyArchitecture, Checkpoint, Preprocessing, shapes


class Place(NamedTuple):
    """Where one of our parameters is in a file."""

    key: str
    shape: tuple[int, ...] | None = None  # in the file; None: ours
    order: tuple[int, ...] | None = None  # of its axes in ours, which are joined or cut afterwards
    optional: bool = False  # absent means zeros


def converted(
    location: str,
    path,
    architecture: AnyArchitecture,
    preprocessing: Preprocessing,
    raw: dict,
    places: dict,
):
    """Makes a Checkpoint of the arrays of a file, without names of labels.

    Args:
      location: as the user wrote it.
      path: of the file, for messages.
      architecture: what it holds.
      preprocessing: how it is shown images.
      raw: {name in the file: array}.
      places: {our name: Place}.

    Raises:
      UserError: names the first array that is missing, has a wrong shape or holds NaN or infinity.
    """
    expected = shapes(architecture)
    params, used = {}, set()
    for name, shape in expected.items():
        place = places[name]
        if place.optional and place.key not in raw:
            params[name] = np.zeros(shape, np.float32)
            continue
        expected_shape = place.shape or shape
        value = array(raw, path, place.key, len(expected_shape), architecture.kind)
        if value.shape != expected_shape:
            raise UserError(
                f'{path}: {place.key} is {shape_of(value)}; with the other parameters it would be '
                f'{shape_of(expected_shape)}.'
            )
        if place.order:
            value = value.transpose(place.order)
        params[name] = finite(path, place.key, np.ascontiguousarray(value.reshape(shape)))
        used.add(place.key)
    unused = tuple(sorted(raw.keys() - used))
    tree = flax.traverse_util.unflatten_dict(params, sep='/')
    return Checkpoint(location, architecture, tree, preprocessing, unused=unused)


def finite(path, key, value):
    """An array in float32, refused where a number is none there."""
    with np.errstate(over='ignore'):
        value = value.astype(np.float32)
    count = value.size - int(np.isfinite(value).sum())
    if count:
        raise UserError(
            f'{path}: {key} holds {count} numbers of {value.size} that are NaN or infinite; get a checkpoint '
            'that is whole.'
        )
    return value


def in_file(params, places):
    """The reverse of `converted`: {name in the file: float32 array} of our parameters."""
    arrays = {}
    for name, value in flax.traverse_util.flatten_dict(params, sep='/').items():
        place = places[name]
        ours = np.asarray(value, np.float32)
        shape = place.shape or ours.shape
        order = place.order or tuple(range(len(shape)))
        ours = ours.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
        arrays[place.key] = np.ascontiguousarray(ours)
    return arrays


def check_heads(path, sizes):
    """Refuses a ViT whose heads do not divide its width."""
    if sizes.width % sizes.heads:
        raise UserError(f'{path}: {sizes.heads} attention heads do not divide the width, {sizes.width}.')


def array(raw, path, key, rank, kind='ViT'):
    """An array of a file by its name there; `kind` is what the file would hold.

    Raises:
      UserError: it is missing, has not `rank` axes, is empty, or is not of floating-point numbers.
    """
    if key not in raw:
        raise UserError(f'{path} is not a {kind} that td_jax knows: {key} is missing.')
    value = raw[key]
    if value.ndim != rank or not value.size:
        raise UserError(
            f'{path}: {key} is {shape_of(value)}; in a {kind} it has {rank} axes, none of them empty.'
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(f'{path}: {key} is of {value.dtype}, not of floating-point numbers.')
    return value


def count(raw, pattern):
    """One more than the largest number that a pattern finds at the start of a name."""
    return 1 + max(int(match[1]) for name in raw if (match := re.match(pattern, name)))


def image_size(path, position, patch, leading=1):
    """The side in pixels of the images that position embeddings [1, leading + n, width] are for.

    Raises:
      UserError: n is not a square number.
    """
    patches = position.shape[1] - leading
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not patches:
        before = ('a class token', 'a class token, a distillation token')[leading - 1]
        raise UserError(
            f'{path}: position embeddings of {shape_of(position)} are not of {before} and a square grid.'
        )
    return side * patch


def shape_of(value) -> str:
    """The shape of an array, or a shape, for a person: [3, 4]."""
    return str(list(getattr(value, 'shape', value)))
