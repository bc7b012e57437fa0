"""The .npz of BiT (google-research/big_transfer), read and written."""

import re

import numpy as np

from td_jax.errors import UserError
from td_jax.models import resnet
from td_jax.pretrained import convert
from td_jax.pretrained.architecture import Checkpoint, ResNetArchitecture
from td_jax.pretrained.convert import Place, shape_of
from td_jax.pretrained.google import PREPROCESSING

# What the names of a file begin with, and how its parts of a unit are called, in order.
PREFIX, PARTS = 'resnet/', 'abc'
CONV = 'standardized_conv2d/kernel'
HEAD = f'{PREFIX}head/conv2d'


def recognises(raw) -> bool:
    """Whether the arrays of a file, by name, are those of a BiT."""
    return any(name.startswith(PREFIX) for name in raw)


def read(location: str, path, raw: dict) -> Checkpoint:
    """Makes a Checkpoint of a file. It has no names of labels: those of BiT-S are 1,000, of BiT-M 21,843.

    Args:
      location: as the user wrote it.
      path: of the file.
      raw: its arrays, by name.

    Raises:
      UserError: it is no ResNet that td_jax knows; the first key that is missing or has a wrong shape is
        named.
    """
    kernel = convert.array(raw, path, f'{PREFIX}root_block/{CONV}', 4, 'BiT')
    units = _units(raw)
    if units not in resnet.BOTTLENECKS.values():
        known = ', '.join(f'{depth} with {count}' for depth, count in resnet.BOTTLENECKS.items())
        raise UserError(
            f'{path}: its blocks have {units} units, which is no ResNet that td_jax knows: {known}.'
        )
    # A head of zeros was never trained.
    has_head = f'{HEAD}/kernel' in raw and raw[f'{HEAD}/kernel'].any()
    architecture = ResNetArchitecture(
        resnet.Sizes(kernel.shape[-1], units, bottleneck=True),
        convert.array(raw, path, f'{HEAD}/kernel', 4, 'BiT').shape[-1] if has_head else 0,
    )
    if kernel.shape[:3] != (7, 7, 3):
        raise UserError(f'{path}: {PREFIX}root_block/{CONV} is {shape_of(kernel)}; it is [7, 7, 3, width].')
    return convert.converted(location, path, architecture, PREPROCESSING, raw, places(architecture, raw))


def _units(raw):
    """How many units each block has."""
    found = {}
    for name in raw:
        if match := re.match(rf'{PREFIX}block(\d+)/unit(\d+)/', name):
            block, unit = int(match[1]), int(match[2])
            found[block] = max(found.get(block, 0), unit)
    return tuple(found.get(block, 0) for block in range(1, 1 + max(found, default=0)))


def places(architecture: ResNetArchitecture, raw: dict | None = None) -> dict[str, Place]:
    """Our names -> where they are in such a file.

    Args:
      architecture: what it holds.
      raw: its arrays, where there is one already: norms are [width], or [1, 1, 1, width] in some.
    """
    sizes, found = architecture.sizes, {}

    def norm(ours, theirs):
        for leaf, name in (('scale', 'gamma'), ('bias', 'beta')):
            key = f'{PREFIX}{theirs}group_norm/{name}'
            is_wide = raw is not None and key in raw and raw[key].ndim == 4
            shape = (1, 1, 1, raw[key].shape[-1]) if is_wide else None
            found[f'{ours}/norm/{leaf}'] = Place(key, shape)

    found['root/kernel'] = Place(f'{PREFIX}root_block/{CONV}')
    for i, count in enumerate(sizes.units):
        for j in range(count):
            ours, theirs = f'stage_{i}_unit_{j}', f'block{i + 1}/unit{j + 1:02d}/'
            for k, part in enumerate(PARTS):
                norm(f'{ours}/norm_{k}', f'{theirs}{part}/')
                found[f'{ours}/conv_{k}/kernel'] = Place(f'{PREFIX}{theirs}{part}/{CONV}')
            found[f'{ours}/projection/kernel'] = Place(f'{PREFIX}{theirs}a/proj/{CONV}')
    norm('final_norm', '')
    width = sizes.width * 2 ** (len(sizes.units) + 1)
    found['head_layer/kernel'] = Place(f'{HEAD}/kernel', (1, 1, width, architecture.num_outputs))
    found['head_layer/bias'] = Place(f'{HEAD}/bias')
    return found


def write(path, architecture: ResNetArchitecture, params):
    """Writes parameters of a resnet.ResNet with bottlenecks to a new file."""
    with open(path, 'wb') as file:
        np.savez(file, **convert.in_file(params, places(architecture)))
