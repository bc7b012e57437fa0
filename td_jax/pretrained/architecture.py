"""The architecture of a checkpoint, and the config that a run with it as its teacher needs."""

from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import numpy as np

from td_jax.data.resizing import View
from td_jax.errors import UserError
from td_jax.models import efficientnet, resnet, resnet_bn, vit


class Architecture(NamedTuple):
    """The architecture of a ViT, from the shapes and the config of a checkpoint."""

    sizes: vit.Sizes
    patch: int
    image_size: int  # side in pixels of the images that its position embeddings fit
    num_outputs: int  # 0 without a head
    activation: str  # a name of vit.ACTIVATIONS
    epsilon: float
    pre_logits: bool
    registers: int = 0
    pooling: str = 'class'  # a name of vit.POOLINGS

    kind = 'ViT'  # its name in messages


# The fields of Architecture, except sizes and patch, that a model config has under the same names.
MODEL_FIELDS = 'activation', 'epsilon', 'pre_logits', 'registers', 'pooling'


class ResNetArchitecture(NamedTuple):
    """The architecture of a BiT."""

    sizes: resnet.Sizes
    num_outputs: int  # 0 without a head

    kind = 'BiT'  # its name in messages

    def depths(self) -> tuple[int, ...]:
        """The number of units in each stage."""
        return self.sizes.units

    def options(self) -> dict:
        """The options of a model config that make such a model."""
        return {'name': 'resnet', **variant_of(self.sizes)}


class EfficientNetArchitecture(NamedTuple):
    """The architecture of an EfficientNet."""

    variant: str  # a name of efficientnet.FACTORS
    padding: str  # a name of efficientnet.PADDINGS
    num_outputs: int  # 0 without a head

    kind = 'EfficientNet'  # its name in messages

    def depths(self) -> tuple[int, ...]:
        """The number of blocks in each stage."""
        return efficientnet.sizes_of_variant(self.variant).depths

    def options(self) -> dict:
        """The options of a model config that make such a model."""
        return {'name': 'efficientnet', 'variant': self.variant, 'padding': self.padding}


class FoldedResNetArchitecture(NamedTuple):
    """The architecture of a ResNet with BatchNorm."""

    variant: str  # a name of resnet_bn.VARIANTS
    num_outputs: int  # 0 without a head

    kind = 'ResNet'  # its name in messages

    def depths(self) -> tuple[int, ...]:
        """The number of units in each stage."""
        return resnet_bn.sizes_of_variant(self.variant).units

    def options(self) -> dict:
        """The options of a model config that make such a model."""
        return {'name': 'resnet_bn', 'variant': self.variant}


class Preprocessing(NamedTuple):
    """The preprocessing of a model's images, with the option names of td_jax.configs.common.task_config."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    resize: str | None  # None: unspecified, like crop_mode and crop_pct
    crop_mode: str = 'squash'
    crop_pct: float = 1.0
    image_size: int = 0  # side in pixels; 0: unspecified

    def view(self, side: int = 0) -> View:
        """The view for images of a side, by default `image_size`; requires `resize`."""
        return View(side or self.image_size, self.resize, self.crop_mode, self.crop_pct)

    def task_options(self) -> dict:
        """{key of a task's config: value} of the specified options."""
        options = {'image_mean': self.image_mean, 'image_std': self.image_std}
        if self.resize:
            options |= {'resize': self.resize, 'crop_mode': self.crop_mode, 'crop_pct': self.crop_pct}
        return options


# Architectures whose BatchNorm is folded into the convolutions.
FrozenArchitecture = EfficientNetArchitecture | FoldedResNetArchitecture
AnyArchitecture = Architecture | ResNetArchitecture | FrozenArchitecture


class Checkpoint(NamedTuple):
    """A checkpoint with our names of parameters."""

    location: str  # as the user wrote it
    architecture: AnyArchitecture
    # float32, nested like those of the model; without `head_layer` if there is no head
    params: dict
    preprocessing: Preprocessing
    label_names: tuple[str, ...] | None = None  # of the head's outputs; None without a head or names
    assumed: str = ''  # a note on defaults for what its files leave out
    unused: tuple[str, ...] = ()  # names in the file that are not used
    positions: str = 'linear'  # how its position embeddings are resized, a name of fit.STRETCHES
    has_zero_head: bool = False  # whether the file's head is all zeros, which counts as none


def teacher_overrides(checkpoint: Checkpoint, config) -> dict:
    """The fewest changes to a config that make a checkpoint fit as its teacher.

    The image size is not among them, because position embeddings are resized.

    Returns:
      {key: value}, empty if the checkpoint fits already
    """
    changes = _model_changes(checkpoint.architecture, config.teacher.model)
    return {
        **{f'teacher.model.{key}': value for key, value in changes.items()},
        **{
            key: value
            for key, value in _teacher_options(checkpoint.preprocessing).items()
            if value != _effective_value(config, key)
        },
    }


def _model_changes(architecture, model_config):
    """The fewest changes to a model config that make it a model of an architecture."""
    if isinstance(architecture, Architecture):
        return _vit_changes(architecture, model_config)
    is_bit = isinstance(architecture, ResNetArchitecture) and model_config.name == 'resnet'
    # A variant and a width may say the same in several ways.
    if is_bit and resnet.sizes_of(model_config) == architecture.sizes:
        return {}
    return {key: value for key, value in architecture.options().items() if model_config[key] != value}


def _vit_changes(architecture, model_config):
    changes = {} if model_config.name == 'vit' else {'name': 'vit'}
    sizes, patch = _vit_sizes(model_config)
    if (sizes, patch) != (architecture.sizes, architecture.patch):
        names = {sizes: name for name, sizes in vit.VARIANTS.items()}
        variant = f'{names.get(architecture.sizes)}/{architecture.patch}'
        if architecture.sizes in names and architecture.patch in vit.PATCHES:
            if model_config.variant != variant:
                changes['variant'] = variant
            explicit = [*vit.Sizes._fields, 'patch']
            sizes_and_patch = {**architecture.sizes._asdict(), 'patch': architecture.patch}
            # An explicit size would override that of the variant.
            changes |= {key: 0 for key in explicit if model_config[key] not in (0, sizes_and_patch[key])}
        else:
            if sizes is None:
                changes['variant'] = 'B/32'
                sizes, patch = vit.VARIANTS['B'], 32
            changes |= {
                key: value
                for key, value in architecture.sizes._asdict().items()
                if value != getattr(sizes, key)
            }
            if patch != architecture.patch:
                changes['patch'] = architecture.patch
    for key in MODEL_FIELDS:
        if model_config[key] != getattr(architecture, key):
            changes[key] = getattr(architecture, key)
    return changes


def _vit_sizes(model_config):
    """(sizes, patch) of a model config, or (None, 0) if its variant is not one of a ViT."""
    try:
        return vit.sizes_of(model_config)
    except UserError:
        return None, 0


def variant_of(sizes: resnet.Sizes) -> dict:
    """The variant of a BiT's sizes, and the width if it is not that of the variant."""
    (depth,) = (depth for depth, units in resnet.BOTTLENECKS.items() if units == sizes.units)
    factor, rest = divmod(sizes.width, 64)
    is_plain = not rest and 0 < factor < 100
    return {'variant': f'R{depth}x{factor if is_plain else 1}', 'width': 0 if is_plain else sizes.width}


# The keys of a model config that a checkpoint determines.
CHECKPOINT_KEYS = 'name', 'variant', *vit.Sizes._fields, 'patch', *MODEL_FIELDS, 'padding'


def complete_config(checkpoint: Checkpoint, config, is_set: Callable[[str], bool], defaults):
    """Completes the config of a run for a checkpoint as its teacher, and for a student that starts from it.

    The teacher has the architecture and the preprocessing of the checkpoint. Unless they are set, it also
    has the image size of the checkpoint, if there is one, and is split in the middle. A student that starts
    from it has its own number of blocks; its other options, including the image size, are the teacher's. If
    the teacher is another kind of model, or has BatchNorm, the student starts from random parameters, unless
    its start is set.

    Args:
      checkpoint: by `pretrained.read`.
      config: of a run that has it as its teacher; is not changed.
      is_set: whether the user set a dotted key; other keys take the values of the checkpoint.
      defaults: by common.get_config().

    Returns:
      the completed config

    Raises:
      UserError: names every key that is set to another value than the checkpoint has.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        _reset_unset(config, 'teacher.', [f'model.{key}' for key in CHECKPOINT_KEYS], is_set, defaults)
        task_options = checkpoint.preprocessing.task_options()
        _reset_unset(config, 'teacher.', [f'dataset.{key}' for key in task_options], is_set, defaults)
        changes = teacher_overrides(checkpoint, config)
        _refuse_conflicts(checkpoint, config, changes, is_set, 'teacher.')
        config.update_from_flattened_dict({**_teacher_options(checkpoint.preprocessing), **changes})
        if checkpoint.preprocessing.image_size and not is_set('teacher.dataset.image_size'):
            config.teacher.dataset.image_size = checkpoint.preprocessing.image_size
        if not is_set('teacher.model.split'):
            config.teacher.model.split = middle_split(_count_parts(checkpoint.architecture))
        if config.model.initial == 'teacher':
            _configure_student(checkpoint, config, is_set, defaults)
    return config


def _configure_student(checkpoint, config, is_set, defaults):
    """Gives a student that starts from its teacher an architecture that can do so."""
    architecture, model = checkpoint.architecture, config.model
    is_start_set = is_set('model.initial')
    if isinstance(architecture, FrozenArchitecture):
        if is_start_set:
            raise UserError(
                f'model.initial is teacher, but {checkpoint.location} has BatchNorm, which no student has: '
                'set model.initial=random, with model.name resnet or vit.'
            )
        model.initial = 'random'
        return
    if not is_start_set and model.name != config.teacher.model.name:
        model.initial = 'random'
        return
    if isinstance(architecture, Architecture):
        layers = model.layers or architecture.sizes.layers
        student_keys = ('layers', 'pre_logits', 'padding')
        _reset_unset(
            config,
            '',
            [f'model.{key}' for key in CHECKPOINT_KEYS if key not in student_keys],
            is_set,
            defaults,
        )
        model.layers = 0
        changes = _vit_changes(architecture._replace(pre_logits=model.pre_logits), model)
    else:
        # A variant that is set determines how many of the first units the student has.
        fixed_keys = ('variant', 'width') if is_set('model.variant') else ()
        keys = [f'model.{key}' for key in ('name', 'variant', 'width') if key not in fixed_keys]
        _reset_unset(config, '', keys, is_set, defaults)
        changes = {key: v for key, v in _model_changes(architecture, model).items() if key not in fixed_keys}
        layers = 0
    changes = {f'model.{key}': value for key, value in changes.items()}
    _refuse_conflicts(
        checkpoint, config, {key: changes[key] for key in changes if key != 'model.layers'}, is_set, ''
    )
    config.update_from_flattened_dict(changes)
    if layers and layers != architecture.sizes.layers:
        model.layers = layers
    task_options = checkpoint.preprocessing.task_options()
    config.dataset.update({key: value for key, value in task_options.items() if not is_set(f'dataset.{key}')})
    if not is_set('model.split'):
        model.split = middle_split(layers or len(resnet.sizes_of(model).units))
    if layers:
        _configure_side(architecture.patch, config, is_set)


def _configure_side(patch, config, is_set):
    """Sets one image size for a ViT and a student that starts from it, because positions are copied."""
    student, teacher = config.dataset, config.teacher.dataset
    if is_set('dataset.image_size'):
        if not is_set('teacher.dataset.image_size'):
            teacher.image_size = student.image_size
    else:
        # Without a size in the checkpoint, the nearest one that its patches divide.
        student.image_size = teacher.image_size or max(1, round(student.image_size / patch)) * patch


def changed_values(before, after) -> dict:
    """{dotted key: value in the second config} of the values in which two configs differ."""
    old, new = (flax.traverse_util.flatten_dict(config.to_dict(), sep='.') for config in (before, after))
    return {key: value for key, value in new.items() if value != old[key]}


def middle_split(parts: int) -> int:
    """The default split of a model with `parts` blocks or stages: 6 of 12, 2 of 3."""
    return (parts + 1) // 2


def _count_parts(architecture):
    """The number of blocks or stages of an architecture."""
    is_vit = isinstance(architecture, Architecture)
    return architecture.sizes.layers if is_vit else len(architecture.depths())


def _reset_unset(config, prefix, keys, is_set, defaults):
    """Resets keys to their defaults, except those that the user set."""
    flat = {f'{prefix}{key}': _value_at(defaults, f'{prefix}{key}') for key in keys}
    config.update_from_flattened_dict({key: value for key, value in flat.items() if not is_set(key)})


def _refuse_conflicts(checkpoint, config, changes, is_set, prefix):
    """Refuses changes to keys that the user set."""
    conflicts = [key for key in changes if is_set(key)]
    variant = f'{prefix}model.variant'
    sizes = {f'{prefix}model.{key}' for key in (*vit.Sizes._fields, 'patch')}
    if is_set(variant) and variant not in conflicts and sizes & changes.keys() - set(conflicts):
        # The variant sets sizes, but the checkpoint has other sizes than every variant.
        conflicts.append(variant)
    if not conflicts:
        return
    architecture, model = checkpoint.architecture, f'{prefix}model.'
    theirs = dict(changes)
    if isinstance(architecture, Architecture):
        theirs |= {f'{model}{key}': value for key, value in architecture.sizes._asdict().items()}
        theirs |= {f'{model}patch': architecture.patch}
        names = {sizes: name for name, sizes in vit.VARIANTS.items()}
        name = names.get(architecture.sizes)
        theirs[variant] = f'{name}/{architecture.patch}' if name else 'none of those with a name'
    different = ', '.join(f'{key} is {theirs[key]} there, {_value_at(config, key)} here' for key in conflicts)
    raise UserError(
        f'{checkpoint.location} does not match what is set: {different}; leave {" and ".join(conflicts)} out.'
    )


def _value_at(config, key):
    """The value at a dotted key."""
    for part in key.split('.'):
        config = config[part]
    return config


def _teacher_options(preprocessing):
    """{key of a config: value} for the preprocessing of a teacher's images."""
    return {f'teacher.dataset.{key}': value for key, value in preprocessing.task_options().items()}


def _effective_value(config, key):
    """The value at a dotted key; unset options of the teacher's data are those of the student."""
    value = _value_at(config, key)
    if key.startswith('teacher.dataset.') and not value:
        return _effective_value(config, key.removeprefix('teacher.'))
    return value


def check_teacher(checkpoint: Checkpoint, config):
    """Compares a checkpoint with the config of a run that has it as its teacher.

    Raises:
      UserError: names each field that differs, both values, and the overrides that correct it.
    """
    changes = teacher_overrides(checkpoint, config)
    if not changes:
        return
    model, architecture = config.teacher.model, checkpoint.architecture
    if not isinstance(architecture, Architecture) or model.name in ('resnet', 'efficientnet', 'resnet_bn'):
        # Of another kind of model, only the changes are compared.
        theirs = {key: changes[f'teacher.model.{key}'] for key in model if f'teacher.model.{key}' in changes}
        ours = {key: model[key] for key in theirs}
    else:
        sizes, patch = vit.sizes_of(model)
        ours = {'name': model.name, **sizes._asdict(), 'patch': patch}
        theirs = {'name': 'vit', **architecture.sizes._asdict(), 'patch': architecture.patch}
        for key in MODEL_FIELDS:
            ours[key], theirs[key] = model[key], getattr(architecture, key)
    teacher_options = _teacher_options(checkpoint.preprocessing)
    ours |= {key: _effective_value(config, key) for key in teacher_options}
    theirs |= teacher_options
    different = ', '.join(
        f'{key} is {theirs[key]} there, {ours[key]} here' for key in ours if ours[key] != theirs[key]
    )
    flags = ' '.join(f'{key}={format_value(value)}' for key, value in changes.items())
    raise UserError(f'{checkpoint.location} does not fit teacher.model and dataset: {different}; set {flags}')


def format_value(value) -> str:
    """Formats a value of a config for a command line."""
    return str(value).replace(' ', '')


def build_module(architecture: AnyArchitecture, split: int):
    """Builds the model of an architecture, without dropout; a missing head gets one output."""
    num_outputs, remat_policy, dtype = architecture.num_outputs or 1, 'everything_saveable', 'float32'
    if isinstance(architecture, EfficientNetArchitecture):
        sizes = efficientnet.sizes_of_variant(architecture.variant)
        return efficientnet.EfficientNet(sizes, num_outputs, split, architecture.padding, dtype)
    if isinstance(architecture, FoldedResNetArchitecture):
        return resnet_bn.ResNet(resnet_bn.sizes_of_variant(architecture.variant), num_outputs, split, dtype)
    if isinstance(architecture, ResNetArchitecture):
        return resnet.ResNet(architecture.sizes, num_outputs, split, remat_policy, dtype)
    return vit.ViT(
        sizes=architecture.sizes,
        patch=architecture.patch,
        num_outputs=num_outputs,
        split=split,
        dropout=0.0,
        remat_policy=remat_policy,
        dtype=dtype,
        **{key: getattr(architecture, key) for key in MODEL_FIELDS},
    )


def parameter_shapes(architecture: AnyArchitecture) -> dict[str, tuple[int, ...]]:
    """The shapes of an architecture's parameters, by name; without those of a missing head."""
    # Shapes of convolutional models do not depend on the image size.
    side = getattr(architecture, 'image_size', 32)
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    tree = jax.eval_shape(build_module(architecture, split=0).init, jax.random.key(0), {'image': image})[
        'params'
    ]
    return {
        name: value.shape
        for name, value in flax.traverse_util.flatten_dict(tree, sep='/').items()
        if architecture.num_outputs or not name.startswith('head_layer/')
    }
