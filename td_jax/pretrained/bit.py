"""Reads and writes the .npz of BiT (google-research/big_transfer)."""

import re

import numpy as np

from td_jax.errors import UserError
from td_jax.models import resnet
from td_jax.pretrained import convert
from td_jax.pretrained.architecture import Checkpoint, ResNetArchitecture
from td_jax.pretrained.convert import Place, format_shape
from td_jax.pretrained.google import PREPROCESSING

# The prefix of names in a file, and the names of the parts of a unit, in order.
PREFIX, PARTS = 'resnet/', 'abc'
CONV = 'standardized_conv2d/kernel'
HEAD = f'{PREFIX}head/conv2d'


def recognises(raw) -> bool:
    """Whether the arrays of a file, by name, are those of a BiT."""
    return any(name.startswith(PREFIX) for name in raw)


def read(location: str, path, raw: dict) -> Checkpoint:
    """Makes a Checkpoint from a file, without names of labels (1,000 for BiT-S, 21,843 for BiT-M).

    Args:
      location: as the user wrote it.
      path: of the file.
      raw: its arrays, by name.

    Raises:
      UserError: it is not a ResNet that td_jax knows; names the first key that is missing or has a wrong
        shape.
    """
    kernel = convert.get_array(raw, path, f'{PREFIX}root_block/{CONV}', 4, 'BiT')
    units = _count_units(raw)
    if units not in resnet.BOTTLENECKS.values():
        known = ', '.join(f'{depth} with {count}' for depth, count in resnet.BOTTLENECKS.items())
        raise UserError(
            f'{path}: its blocks have {units} units, which is no ResNet that td_jax knows: {known}.'
        )
    has_head = convert.has_head(raw, path, f'{HEAD}/kernel', f'{HEAD}/bias', 4, 'BiT')
    architecture = ResNetArchitecture(
        resnet.Sizes(kernel.shape[-1], units, bottleneck=True),
        raw[f'{HEAD}/kernel'].shape[-1] if has_head else 0,
    )
    if kernel.shape[:3] != (7, 7, 3):
        raise UserError(
            f'{path}: {PREFIX}root_block/{CONV} is {format_shape(kernel)}; it is [7, 7, 3, width].'
        )
    return convert.to_checkpoint(location, path, architecture, PREPROCESSING, raw, places(architecture, raw))


def _count_units(raw):
    """The number of units in each block."""
    units = {}
    for name in raw:
        if match := re.match(rf'{PREFIX}block(\d+)/unit(\d+)/', name):
            block, unit = int(match[1]), int(match[2])
            units[block] = max(units.get(block, 0), unit)
    return tuple(units.get(block, 0) for block in range(1, 1 + max(units, default=0)))


def places(architecture: ResNetArchitecture, raw: dict | None = None) -> dict[str, Place]:
    """Maps our names to places in a file.

    Args:
      architecture: of the file.
      raw: its arrays, if it exists: in some files, norms are [1, 1, 1, width] instead of [width].
    """
    sizes, places_by_name = architecture.sizes, {}

    def norm(ours, theirs):
        for leaf, name in (('scale', 'gamma'), ('bias', 'beta')):
            key = f'{PREFIX}{theirs}group_norm/{name}'
            is_wide = raw is not None and key in raw and raw[key].ndim == 4
            shape = (1, 1, 1, raw[key].shape[-1]) if is_wide else None
            places_by_name[f'{ours}/norm/{leaf}'] = Place(key, shape)

    places_by_name['root/kernel'] = Place(f'{PREFIX}root_block/{CONV}')
    for i, count in enumerate(sizes.units):
        for j in range(count):
            ours, theirs = f'stage_{i}_unit_{j}', f'block{i + 1}/unit{j + 1:02d}/'
            for k, part in enumerate(PARTS):
                norm(f'{ours}/norm_{k}', f'{theirs}{part}/')
                places_by_name[f'{ours}/conv_{k}/kernel'] = Place(f'{PREFIX}{theirs}{part}/{CONV}')
            places_by_name[f'{ours}/projection/kernel'] = Place(f'{PREFIX}{theirs}a/proj/{CONV}')
    norm('final_norm', '')
    width = sizes.width * 2 ** (len(sizes.units) + 1)
    places_by_name['head_layer/kernel'] = Place(f'{HEAD}/kernel', (1, 1, width, architecture.num_outputs))
    places_by_name['head_layer/bias'] = Place(f'{HEAD}/bias')
    return places_by_name


def write(path, architecture: ResNetArchitecture, params):
    """Writes parameters of a resnet.ResNet with bottlenecks to a new file."""
    with open(path, 'wb') as file:
        np.savez(file, **convert.to_file_arrays(params, places(architecture)))
