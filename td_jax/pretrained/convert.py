"""Converts names, shapes and axes of parameters between a file and our trees."""

import math
import re
from typing import NamedTuple

import flax
import jax.numpy as jnp
import numpy as np

from td_jax.errors import UserError
from td_jax.pretrained.architecture import AnyArchitecture, Checkpoint, Preprocessing, parameter_shapes


class Place(NamedTuple):
    """The place of one of our parameters in a file."""

    key: str
    shape: tuple[int, ...] | None = None  # in the file; None: as in ours
    order: tuple[int, ...] | None = None  # of the file's axes in ours, before reshaping
    optional: bool = False  # absent means zeros


def dense_places(ours, theirs, inputs, outputs, optional_bias=False) -> dict[str, Place]:
    """The places of a Dense in a file of PyTorch, whose kernels are [outputs, inputs]."""
    return {
        f'{ours}/kernel': Place(f'{theirs}.weight', (outputs, inputs), (1, 0)),
        f'{ours}/bias': Place(f'{theirs}.bias', (outputs,), optional=optional_bias),
    }


def norm_places(ours, theirs) -> dict[str, Place]:
    """The places of a LayerNorm in a file of PyTorch."""
    return {f'{ours}/scale': Place(f'{theirs}.weight'), f'{ours}/bias': Place(f'{theirs}.bias')}


def block_places(sizes, modules, prefix: str, optional_biases=()) -> dict[str, Place]:
    """The places of a ViT's blocks in a file of PyTorch.

    Args:
      sizes: of the ViT.
      modules: {our name of a module in a block: its name there}.
      prefix: of their names, before the number of the block.
      optional_biases: our names of those whose bias may be absent.
    """
    width, mlp, places_by_name = sizes.width, sizes.mlp, {}
    for i in range(sizes.layers):
        for module, name in modules.items():
            ours, theirs = f'block_{i}/{module}', f'{prefix}{i}.{name}'
            if module.endswith('norm'):
                places_by_name |= norm_places(ours, theirs)
            else:
                inputs, outputs = {'mlp_in': (width, mlp), 'mlp_out': (mlp, width)}.get(
                    module, (width, width)
                )
                places_by_name |= dense_places(ours, theirs, inputs, outputs, module in optional_biases)
    return places_by_name


def to_checkpoint(
    location: str,
    path,
    architecture: AnyArchitecture,
    preprocessing: Preprocessing,
    raw: dict,
    places: dict,
):
    """Makes a Checkpoint from the arrays of a file, without names of labels.

    Args:
      location: as the user wrote it.
      path: of the file, for messages.
      architecture: of the file.
      preprocessing: of its images.
      raw: {name in the file: array}.
      places: {our name: Place}.

    Raises:
      UserError: names the first array that is missing, has a wrong shape or holds NaN or infinity.
    """
    expected = parameter_shapes(architecture)
    params, used_keys = {}, set()
    for name, shape in expected.items():
        place = places[name]
        if place.optional and place.key not in raw:
            params[name] = np.zeros(shape, np.float32)
            continue
        expected_shape = place.shape or shape
        value = get_array(raw, path, place.key, len(expected_shape), architecture.kind)
        if value.shape != expected_shape:
            raise UserError(
                f'{path}: {place.key} is {format_shape(value)}; with the other parameters it would be '
                f'{format_shape(expected_shape)}.'
            )
        if place.order:
            value = value.transpose(place.order)
        params[name] = as_finite(path, place.key, np.ascontiguousarray(value.reshape(shape)))
        used_keys.add(place.key)
    unused = tuple(sorted(raw.keys() - used_keys))
    tree = flax.traverse_util.unflatten_dict(params, sep='/')
    has_zero_head = not architecture.num_outputs and places['head_layer/kernel'].key in raw
    return Checkpoint(location, architecture, tree, preprocessing, unused=unused, has_zero_head=has_zero_head)


def as_finite(path, key, value):
    """Converts an array to float32, and refuses NaN and infinity."""
    with np.errstate(over='ignore'):
        value = value.astype(np.float32)
    count = value.size - int(np.isfinite(value).sum())
    if count:
        raise UserError(
            f'{path}: {key} holds {count} numbers of {value.size} that are NaN or infinite; get a checkpoint '
            'that is whole.'
        )
    return value


def to_file_arrays(params, places):
    """The inverse of `to_checkpoint`: {name in the file: float32 array} from our parameters."""
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


def get_array(raw, path, key, rank, kind='ViT'):
    """Gets an array of a file by its name there; `kind` names the expected model in messages.

    Raises:
      UserError: it is missing, has not `rank` axes, is empty, or is not of floating-point numbers.
    """
    if key not in raw:
        raise UserError(f'{path} is not a {kind} that td_jax knows: {key} is missing.')
    value = raw[key]
    if value.ndim != rank or not value.size:
        raise UserError(
            f'{path}: {key} is {format_shape(value)}; in a {kind} it has {rank} axes, none of them empty.'
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(f'{path}: {key} is of {value.dtype}, not of floating-point numbers.')
    return value


def has_head(raw, path, kernel, bias, rank, kind='ViT') -> bool:
    """Whether a file has a head, by the names of its arrays; one of zeros was never trained and is none.

    Raises:
      UserError: it has the bias alone, or the kernel has not `rank` axes.
    """
    if kernel in raw and not raw[kernel].any():
        return False
    if kernel in raw or bias in raw:
        get_array(raw, path, kernel, rank, kind)
    return kernel in raw


def count_numbered(raw, pattern):
    """One more than the largest number that a pattern matches at the start of a name."""
    return 1 + max(int(match[1]) for name in raw if (match := re.match(pattern, name)))


def image_size(path, position, patch, leading=1):
    """The side in pixels of the images that position embeddings [1, leading + n, width] fit.

    Raises:
      UserError: n is not a square number.
    """
    patches = position.shape[1] - leading
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not patches:
        before = ('a class token', 'a class token, a distillation token')[leading - 1]
        raise UserError(
            f'{path}: position embeddings of {format_shape(position)} are not of {before} and a square grid.'
        )
    return side * patch


def format_shape(value) -> str:
    """Formats the shape of an array, or a shape, for messages: [3, 4]."""
    return str(list(getattr(value, 'shape', value)))
