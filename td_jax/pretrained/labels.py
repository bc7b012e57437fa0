"""Matches the labels of a checkpoint with those of a data set."""

import re

import numpy as np

from td_jax.pretrained.architecture import Checkpoint


def _unchanged(name):
    return name


def _normalize(name):
    """Lower-cases a name and replaces runs of spaces, underscores and hyphens by a space."""
    return re.sub(r'[\s_-]+', ' ', name).strip().casefold()


def _first_name(name):
    """The first of several names between commas, normalized."""
    return _normalize(name.split(',')[0])


# Functions that names are compared by, the strictest first.
NORMALIZERS = (_unchanged, _normalize, _first_name)


def match_order(theirs: tuple[str, ...], ours: tuple[str, ...]) -> tuple[int, ...] | None:
    """Finds the position of each of our labels among theirs.

    Names are compared as they are; then in lower case, with spaces for underscores and hyphens; then by the
    first of several names between commas. A comparison is skipped if it makes two of their names equal.

    Returns:
      positions in `theirs`, in the order of `ours`; None if they are not the same labels
    """
    for normalize in NORMALIZERS:
        their_names, our_names = (list(map(normalize, names)) for names in (theirs, ours))
        if len(set(their_names)) == len(their_names) and sorted(their_names) == sorted(our_names):
            return tuple(map(their_names.index, our_names))
    return None


def output_names(checkpoint: Checkpoint, label_names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a checkpoint's outputs, in the order of `reorder_head`.

    A checkpoint without names has those of the data set if there are as many.

    Args:
      checkpoint: by `pretrained.read`.
      label_names: of a data set.

    Returns:
      a name for each output; () without a head
    """
    count = checkpoint.architecture.num_outputs
    names = reorder_head(checkpoint, label_names).label_names
    if names is None and count == len(label_names):
        return tuple(label_names)
    return placeholder_names(count) if names is None else names


def placeholder_names(count: int) -> tuple[str, ...]:
    """Names for labels of a checkpoint that have none and are not those of the data set."""
    return tuple(f'label {i} of the checkpoint' for i in range(count))


def reorder_head(checkpoint: Checkpoint, label_names: tuple[str, ...]) -> Checkpoint:
    """Brings the outputs of a checkpoint's head into the order of a data set's labels.

    Args:
      checkpoint: by `pretrained.read`.
      label_names: of a data set.

    Returns:
      the checkpoint with `label_names`; unchanged if its labels are others or have no names
    """
    positions = checkpoint.label_names and match_order(checkpoint.label_names, label_names)
    if not positions:
        return checkpoint
    head = {
        name: np.take(value, positions, axis=-1) for name, value in checkpoint.params['head_layer'].items()
    }
    return checkpoint._replace(
        params={**checkpoint.params, 'head_layer': head}, label_names=tuple(label_names)
    )
