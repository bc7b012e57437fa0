"""The labels that a checkpoint names, matched with those of a data set."""

import re

import numpy as np

from td_jax.pretrained.architecture import Checkpoint


def _same(name):
    return name


def _plain(name):
    """In small letters, with a space for each run of spaces, underscores and hyphens."""
    return re.sub(r'[\s_-]+', ' ', name).strip().casefold()


def _first(name):
    """The first of several names between commas, plain."""
    return _plain(name.split(',')[0])


# How names are compared, the strictest first.
COMPARED_AS = (_same, _plain, _first)


def order(theirs: tuple[str, ...], ours: tuple[str, ...]) -> tuple[int, ...] | None:
    """Where each of our labels is among theirs.

    Names are the same as they are written, or else in small letters with spaces for underscores and hyphens,
    or else by the first of several names between commas; each only where it keeps all names apart.

    Returns:
      positions in `theirs`, in the order of `ours`; None where they are not the same labels
    """
    for compared_as in COMPARED_AS:
        found, wanted = (list(map(compared_as, names)) for names in (theirs, ours))
        if len(set(found)) == len(found) and sorted(found) == sorted(wanted):
            return tuple(map(found.index, wanted))
    return None


def predicted(checkpoint: Checkpoint, label_names: tuple[str, ...]) -> tuple[str, ...]:
    """What the outputs of a checkpoint's head are called, in the order that `ordered` gives them.

    Those of one that names none are taken to be the data set's where there are as many.

    Args:
      checkpoint: what `pretrained.read` returned.
      label_names: of a data set.

    Returns:
      a name for each output; () of a checkpoint without a head
    """
    count = checkpoint.architecture.num_outputs
    names = ordered(checkpoint, label_names).label_names
    if names is None and count == len(label_names):
        return tuple(label_names)
    return unnamed(count) if names is None else names


def unnamed(count: int) -> tuple[str, ...]:
    """What labels are called that have no names and are not those of the data set."""
    return tuple(f'label {i} of the checkpoint' for i in range(count))


def ordered(checkpoint: Checkpoint, label_names: tuple[str, ...]) -> Checkpoint:
    """The checkpoint with its head's outputs in the order of some labels, where it names the same ones.

    Args:
      checkpoint: what `pretrained.read` returned.
      label_names: of a data set.

    Returns:
      The checkpoint, whose label names are then `label_names`; as it was where they are others or it names
      none.
    """
    positions = checkpoint.label_names and order(checkpoint.label_names, label_names)
    if not positions:
        return checkpoint
    head = {
        name: np.take(value, positions, axis=-1) for name, value in checkpoint.params['head_layer'].items()
    }
    return checkpoint._replace(
        params={**checkpoint.params, 'head_layer': head}, label_names=tuple(label_names)
    )
