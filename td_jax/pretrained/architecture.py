"""What a checkpoint says about its model, and what of a model config has to follow."""

from typing import NamedTuple

import flax
import jax
import numpy as np

from td_jax.errors import UserError
from td_jax.models import vit


class Architecture(NamedTuple):
    """What a checkpoint's shapes, and the config beside them, say about the model."""

    sizes: vit.Sizes
    patch: int
    image_size: int  # side in pixels of the images that the position embeddings are for
    num_outputs: int  # 0 where there is no head
    activation: str  # a name of vit.ACTIVATIONS
    epsilon: float
    pre_logits: bool


class Checkpoint(NamedTuple):
    """A checkpoint in our names."""

    location: str  # as the user wrote it
    architecture: Architecture
    params: dict  # float32, nested as vit.ViT's parameters; without `head_layer` where there is no head
    unused: tuple[str, ...] = ()  # names in the file that became no parameter


def overrides(architecture: Architecture, model_config, prefix: str = 'teacher.model') -> tuple[str, ...]:
    """The shortest changes to a model config that make the model this architecture.

    Args:
      architecture: of a checkpoint.
      model_config: the fields of `configs.common.model_config`.
      prefix: what stands before each field.

    Returns:
      PREFIX.FIELD=VALUE, one for each change; none where they fit already

    Raises:
      UserError: a model config that is none of a ViT.
    """
    return tuple(f'{prefix}.{key}={value}' for key, value in _changes(architecture, model_config).items())


def _changes(architecture, model_config):
    changes = {} if model_config.name == 'vit' else {'name': 'vit'}
    sizes, patch = vit.sizes_of(model_config)
    if (sizes, patch) != (architecture.sizes, architecture.patch):
        names = {sizes: name for name, sizes in vit.VARIANTS.items()}
        variant = f'{names.get(architecture.sizes)}/{architecture.patch}'
        if architecture.sizes in names and architecture.patch in vit.PATCHES:
            if model_config.variant != variant:
                changes['variant'] = variant
            explicit = [*vit.Sizes._fields, 'patch']
            wanted = {**architecture.sizes._asdict(), 'patch': architecture.patch}
            # A size of its own would still stand above the variant's.
            changes |= {key: 0 for key in explicit if model_config[key] not in (0, wanted[key])}
        else:
            changes |= {
                key: value
                for key, value in architecture.sizes._asdict().items()
                if value != getattr(sizes, key)
            }
            if patch != architecture.patch:
                changes['patch'] = architecture.patch
    for key in ('activation', 'epsilon', 'pre_logits'):
        if model_config[key] != getattr(architecture, key):
            changes[key] = getattr(architecture, key)
    return changes


def check_architecture(checkpoint: Checkpoint, model_config, prefix: str = 'teacher.model'):
    """Compares a checkpoint with the model config that is to hold it.

    The image size is not compared: position embeddings are resized.

    Raises:
      UserError: one line that names each field that differs, both values, and the overrides that mend it.
    """
    changes = overrides(checkpoint.architecture, model_config, prefix)
    if not changes:
        return
    sizes, patch = vit.sizes_of(model_config)
    ours = {'name': model_config.name, **sizes._asdict(), 'patch': patch}
    theirs = {
        'name': 'vit',
        **checkpoint.architecture.sizes._asdict(),
        'patch': checkpoint.architecture.patch,
    }
    for key in ('activation', 'epsilon', 'pre_logits'):
        ours[key], theirs[key] = model_config[key], getattr(checkpoint.architecture, key)
    different = ', '.join(
        f'{key} is {theirs[key]} there, {ours[key]} here' for key in ours if ours[key] != theirs[key]
    )
    raise UserError(f'{checkpoint.location} does not fit {prefix}: {different}; set {" ".join(changes)}')


def module_of(architecture: Architecture, split: int, dtype: str = 'float32') -> vit.ViT:
    """The ViT of an architecture, without dropout; its head has one output where there is none."""
    return vit.ViT(
        sizes=architecture.sizes,
        patch=architecture.patch,
        num_outputs=architecture.num_outputs or 1,
        split=split,
        dropout=0.0,
        activation=architecture.activation,
        epsilon=architecture.epsilon,
        pre_logits=architecture.pre_logits,
        remat_policy='everything_saveable',
        dtype=dtype,
    )


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of an architecture, by name; those of the head only if it has one."""
    side = architecture.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    tree = jax.eval_shape(module_of(architecture, split=0).init, jax.random.key(0), {'image': image})[
        'params'
    ]
    return {
        name: value.shape
        for name, value in flax.traverse_util.flatten_dict(tree, sep='/').items()
        if architecture.num_outputs or not name.startswith('head_layer/')
    }
