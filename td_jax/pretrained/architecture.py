"""What a checkpoint says about its model, and what of a model config has to follow."""

from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import numpy as np

from td_jax.data.resizing import View
from td_jax.errors import UserError
from td_jax.models import efficientnet, resnet, resnet_bn, vit


class Architecture(NamedTuple):
    """What a checkpoint's shapes, and the config beside them, say about the model."""

    sizes: vit.Sizes
    patch: int
    image_size: int  # side in pixels of the images that the position embeddings are for
    num_outputs: int  # 0 where there is no head
    activation: str  # a name of vit.ACTIVATIONS
    epsilon: float
    pre_logits: bool
    registers: int = 0
    pooling: str = 'class'  # a name of vit.POOLINGS

    kind = 'ViT'  # as a person calls it


# Those of its fields, but for sizes and patch, that a model config has under the same name.
KEPT = 'activation', 'epsilon', 'pre_logits', 'registers', 'pooling'


class ResNetArchitecture(NamedTuple):
    """The same of a ResNet."""

    sizes: resnet.Sizes
    num_outputs: int  # 0 where there is no head

    kind = 'BiT'  # as a person calls it


class EfficientNetArchitecture(NamedTuple):
    """The same of an EfficientNet."""

    variant: str  # a name of efficientnet.FACTORS
    padding: str  # a name of efficientnet.PADDINGS
    num_outputs: int  # 0 where there is no head

    kind = 'EfficientNet'  # as a person calls it


class FoldedResNetArchitecture(NamedTuple):
    """The same of a ResNet with BatchNorm."""

    variant: str  # a name of resnet_bn.VARIANTS
    num_outputs: int  # 0 where there is no head

    kind = 'ResNet'  # as a person calls it


class Preprocessing(NamedTuple):
    """How a model is shown images, in the words of td_jax.configs.common.task_config."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    resize: str | None  # None: nothing is said of how images become as large as they are shown
    crop_mode: str = 'squash'
    crop_pct: float = 1.0
    image_size: int = 0  # side in pixels; 0: nothing is said

    def view(self, side: int = 0) -> View:
        """How images of a side, or of that which is said, are shown; a resize has to be said."""
        return View(side or self.image_size, self.resize, self.crop_mode, self.crop_pct)

    def of_task(self) -> dict:
        """{key of a task's config: value} of what is said."""
        said = {'image_mean': self.image_mean, 'image_std': self.image_std}
        if self.resize:
            said |= {'resize': self.resize, 'crop_mode': self.crop_mode, 'crop_pct': self.crop_pct}
        return said


# Those whose BatchNorm is part of their convolutions.
FrozenArchitecture = EfficientNetArchitecture | FoldedResNetArchitecture
AnyArchitecture = Architecture | ResNetArchitecture | FrozenArchitecture


class Checkpoint(NamedTuple):
    """A checkpoint in our names."""

    location: str  # as the user wrote it
    architecture: AnyArchitecture
    # float32, nested as those of vit.ViT or resnet.ResNet; without `head_layer` where there is no head
    params: dict
    preprocessing: Preprocessing
    label_names: tuple[str, ...] | None = None  # of the head's outputs; None where there are none or no names
    assumed: str = ''  # what its files do not say, and what is taken for granted then
    unused: tuple[str, ...] = ()  # names in the file that became no parameter
    positions: str = 'linear'  # how its position embeddings are resized, a name of fit.STRETCHES


def teacher_overrides(checkpoint: Checkpoint, config) -> dict:
    """The shortest changes to a config that make a checkpoint its teacher.

    The image size is not among them: position embeddings are resized.

    Returns:
      {key: value}, empty where the checkpoint fits already
    """
    changes = {
        Architecture: _changes,
        ResNetArchitecture: _resnet_changes,
        EfficientNetArchitecture: _efficientnet_changes,
        FoldedResNetArchitecture: _folded_resnet_changes,
    }
    model = changes[type(checkpoint.architecture)](checkpoint.architecture, config.teacher.model)
    return {
        **{f'teacher.model.{key}': value for key, value in model.items()},
        **{
            key: value
            for key, value in _of_teacher(checkpoint.preprocessing).items()
            if value != _at(config, key)
        },
    }


def _changes(architecture, model_config):
    """The fields of a model config that differ, as few as make it this architecture."""
    changes = {} if model_config.name == 'vit' else {'name': 'vit'}
    sizes, patch = _vit_sizes(model_config)
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
    for key in KEPT:
        if model_config[key] != getattr(architecture, key):
            changes[key] = getattr(architecture, key)
    return changes


def _vit_sizes(model_config):
    """(sizes, patch) of a model config, or None and 0 where it has no variant of a ViT."""
    try:
        return vit.sizes_of(model_config)
    except UserError:
        return None, 0


def variant_of(sizes: resnet.Sizes) -> dict:
    """The variant of a model config, and its width where the variant's is another, for a BiT's sizes."""
    (depth,) = (depth for depth, units in resnet.BOTTLENECKS.items() if units == sizes.units)
    factor, rest = divmod(sizes.width, 64)
    is_plain = not rest and 0 < factor < 100
    return {'variant': f'R{depth}x{factor if is_plain else 1}', 'width': 0 if is_plain else sizes.width}


def _resnet_changes(architecture, model_config):
    """The same of a ResNet."""
    if model_config.name == 'resnet' and resnet.sizes_of(model_config) == architecture.sizes:
        return {}
    wanted = {'name': 'resnet', **variant_of(architecture.sizes)}
    return {key: value for key, value in wanted.items() if model_config[key] != value}


def _efficientnet_changes(architecture, model_config):
    """The same of an EfficientNet."""
    wanted = {'name': 'efficientnet', 'variant': architecture.variant, 'padding': architecture.padding}
    return {key: value for key, value in wanted.items() if model_config[key] != value}


def _folded_resnet_changes(architecture, model_config):
    """The same of a ResNet with BatchNorm."""
    wanted = {'name': 'resnet_bn', 'variant': architecture.variant}
    return {key: value for key, value in wanted.items() if model_config[key] != value}


# What of a model config a checkpoint says itself.
SAID = 'name', 'variant', *vit.Sizes._fields, 'patch', *KEPT, 'padding'


def configured(checkpoint: Checkpoint, config, is_set: Callable[[str], bool], defaults):
    """The config of a run whose teacher, and a student that starts from it, are as a checkpoint says.

    The teacher's architecture and how it is shown images are the checkpoint's. Unless they are set, its
    images are as large as the checkpoint says, if it does, and it is split half-way. A student that starts
    from it keeps its own number of blocks; all else of it is the teacher's, the size of its images, too.
    Where the teacher is another kind of model than the student, or has BatchNorm, the student starts at
    random, unless its start is set.

    Args:
      checkpoint: what `pretrained.read` returned.
      config: of a run that has it as its teacher; left as it is.
      is_set: whether a person set a dotted key; what nobody set is not the checkpoint's to contradict.
      defaults: what common.get_config() returns.

    Returns:
      another config

    Raises:
      UserError: names every key that is set to something else than the checkpoint has.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        _forget(config, 'teacher.', [f'model.{key}' for key in SAID], is_set, defaults)
        shown = checkpoint.preprocessing.of_task()
        _forget(config, 'teacher.', [f'dataset.{key}' for key in shown], is_set, defaults)
        changes = teacher_overrides(checkpoint, config)
        _check_set(checkpoint, config, changes, is_set, 'teacher.')
        config.update_from_flattened_dict({**_of_teacher(checkpoint.preprocessing), **changes})
        if checkpoint.preprocessing.image_size and not is_set('teacher.dataset.image_size'):
            config.teacher.dataset.image_size = checkpoint.preprocessing.image_size
        if not is_set('teacher.model.split'):
            config.teacher.model.split = half_way(_parts(checkpoint.architecture))
        if config.model.initial == 'teacher':
            _configure_student(checkpoint, config, is_set, defaults)
    return config


def _configure_student(checkpoint, config, is_set, defaults):
    """Makes the student of a config, which starts from its teacher, one that can."""
    architecture, model = checkpoint.architecture, config.model
    is_chosen = is_set('model.initial')
    if isinstance(architecture, FrozenArchitecture):
        if is_chosen:
            raise UserError(
                f'model.initial is teacher, but {checkpoint.location} has BatchNorm, which no student has: '
                'set model.initial=random, with model.name resnet or vit.'
            )
        model.initial = 'random'
        return
    if not is_chosen and model.name != config.teacher.model.name:
        model.initial = 'random'
        return
    if isinstance(architecture, Architecture):
        layers = model.layers or architecture.sizes.layers
        kept = ('layers', 'pre_logits', 'padding')
        _forget(config, '', [f'model.{key}' for key in SAID if key not in kept], is_set, defaults)
        model.layers = 0
        changes = _changes(architecture._replace(pre_logits=model.pre_logits), model)
    else:
        # Of a ResNet, a variant of its own says how many of the first units the student has.
        own = ('variant', 'width') if is_set('model.variant') else ()
        keys = [f'model.{key}' for key in ('name', 'variant', 'width') if key not in own]
        _forget(config, '', keys, is_set, defaults)
        changes = {key: v for key, v in _resnet_changes(architecture, model).items() if key not in own}
        layers = 0
    changes = {f'model.{key}': value for key, value in changes.items()}
    _check_set(
        checkpoint, config, {key: changes[key] for key in changes if key != 'model.layers'}, is_set, ''
    )
    config.update_from_flattened_dict(changes)
    if layers and layers != architecture.sizes.layers:
        model.layers = layers
    shown = checkpoint.preprocessing.of_task()
    config.dataset.update({key: value for key, value in shown.items() if not is_set(f'dataset.{key}')})
    if not is_set('model.split'):
        model.split = half_way(layers or len(resnet.sizes_of(model).units))
    if layers:
        _configure_side(architecture.patch, config, is_set)


def _configure_side(patch, config, is_set):
    """Makes the images of a ViT, and of a student that starts from it, of one size: positions are copied."""
    own, teacher = config.dataset, config.teacher.dataset
    if is_set('dataset.image_size'):
        if not is_set('teacher.dataset.image_size'):
            teacher.image_size = own.image_size
    else:
        # Where the checkpoint says no size, the nearest that its patches divide.
        own.image_size = teacher.image_size or max(1, round(own.image_size / patch)) * patch


def difference(before, after) -> dict:
    """{dotted key: value} of what the second of two configs has otherwise than the first."""
    old, new = (flax.traverse_util.flatten_dict(config.to_dict(), sep='.') for config in (before, after))
    return {key: value for key, value in new.items() if value != old[key]}


def half_way(parts: int) -> int:
    """Where a model of so many blocks or stages is split unless somebody says otherwise: 6 of 12, 2 of 3."""
    return (parts + 1) // 2


def _parts(architecture):
    """How many blocks or stages a model can be split between."""
    if isinstance(architecture, EfficientNetArchitecture):
        return len(efficientnet.sizes_of_variant(architecture.variant).depths)
    if isinstance(architecture, FoldedResNetArchitecture):
        return len(resnet_bn.sizes_of_variant(architecture.variant).units)
    sizes = architecture.sizes
    return sizes.layers if isinstance(architecture, Architecture) else len(sizes.units)


def _forget(config, prefix, keys, is_set, defaults):
    """Sets keys back to their defaults, but for those that a person set."""
    flat = {f'{prefix}{key}': _plain_at(defaults, f'{prefix}{key}') for key in keys}
    config.update_from_flattened_dict({key: value for key, value in flat.items() if not is_set(key)})


def _check_set(checkpoint, config, changes, is_set, prefix):
    """Refuses changes of what a person set."""
    against = [key for key in changes if is_set(key)]
    variant = f'{prefix}model.variant'
    sizes = {f'{prefix}model.{key}' for key in (*vit.Sizes._fields, 'patch')}
    if is_set(variant) and variant not in against and sizes & changes.keys() - set(against):
        # Sizes that only the variant says, of a checkpoint that has none of the variants' sizes.
        against.append(variant)
    if not against:
        return
    architecture, model = checkpoint.architecture, f'{prefix}model.'
    theirs = dict(changes)
    if isinstance(architecture, Architecture):
        theirs |= {f'{model}{key}': value for key, value in architecture.sizes._asdict().items()}
        theirs |= {f'{model}patch': architecture.patch}
        names = {sizes: name for name, sizes in vit.VARIANTS.items()}
        named = names.get(architecture.sizes)
        theirs[variant] = f'{named}/{architecture.patch}' if named else 'none of those with a name'
    different = ', '.join(f'{key} is {theirs[key]} there, {_plain_at(config, key)} here' for key in against)
    raise UserError(
        f'{checkpoint.location} does not match what is set: {different}; leave {" and ".join(against)} out.'
    )


def _plain_at(config, key):
    """The value at a dotted key."""
    for part in key.split('.'):
        config = config[part]
    return config


def _of_teacher(preprocessing):
    """The keys of a config that say how its teacher is shown images -> what they would be."""
    return {f'teacher.dataset.{key}': value for key, value in preprocessing.of_task().items()}


def _at(config, key):
    """The value at a dotted key; what the teacher's part of the data leaves open is as the student's."""
    value = _plain_at(config, key)
    if key.startswith('teacher.dataset.') and not value:
        return _at(config, key.removeprefix('teacher.'))
    return value


def check_teacher(checkpoint: Checkpoint, config):
    """Compares a checkpoint with the config of a run that has it as its teacher.

    Raises:
      UserError: one line that names each field that differs, both values, and the overrides that mend it.
    """
    changes = teacher_overrides(checkpoint, config)
    if not changes:
        return
    model, architecture = config.teacher.model, checkpoint.architecture
    if not isinstance(architecture, Architecture) or model.name in ('resnet', 'efficientnet', 'resnet_bn'):
        # Of another kind: what is set says enough.
        theirs = {key: changes[f'teacher.model.{key}'] for key in model if f'teacher.model.{key}' in changes}
        ours = {key: model[key] for key in theirs}
    else:
        sizes, patch = vit.sizes_of(model)
        ours = {'name': model.name, **sizes._asdict(), 'patch': patch}
        theirs = {'name': 'vit', **architecture.sizes._asdict(), 'patch': architecture.patch}
        for key in KEPT:
            ours[key], theirs[key] = model[key], getattr(architecture, key)
    wanted = _of_teacher(checkpoint.preprocessing)
    ours |= {key: _at(config, key) for key in wanted}
    theirs |= wanted
    different = ', '.join(
        f'{key} is {theirs[key]} there, {ours[key]} here' for key in ours if ours[key] != theirs[key]
    )
    wanted = ' '.join(f'{key}={as_text(value)}' for key, value in changes.items())
    raise UserError(
        f'{checkpoint.location} does not fit teacher.model and dataset: {different}; set {wanted}'
    )


def as_text(value) -> str:
    """A value of a config as it is written on a command line."""
    return str(value).replace(' ', '')


def module_of(architecture: AnyArchitecture, split: int, dtype: str = 'float32'):
    """The ViT or ResNet of an architecture, without dropout; its head has one output where there is none."""
    if isinstance(architecture, EfficientNetArchitecture):
        sizes = efficientnet.sizes_of_variant(architecture.variant)
        return efficientnet.EfficientNet(
            sizes, architecture.num_outputs or 1, split, architecture.padding, dtype
        )
    if isinstance(architecture, FoldedResNetArchitecture):
        sizes = resnet_bn.sizes_of_variant(architecture.variant)
        return resnet_bn.ResNet(sizes, architecture.num_outputs or 1, split, dtype)
    if isinstance(architecture, ResNetArchitecture):
        return resnet.ResNet(
            architecture.sizes, architecture.num_outputs or 1, split, 'everything_saveable', dtype
        )
    return vit.ViT(
        sizes=architecture.sizes,
        patch=architecture.patch,
        num_outputs=architecture.num_outputs or 1,
        split=split,
        dropout=0.0,
        activation=architecture.activation,
        epsilon=architecture.epsilon,
        pre_logits=architecture.pre_logits,
        registers=architecture.registers,
        pooling=architecture.pooling,
        remat_policy='everything_saveable',
        dtype=dtype,
    )


def shapes(architecture: AnyArchitecture) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of an architecture, by name; those of the head only if it has one."""
    # Those of a ResNet do not depend on the image's side.
    side = getattr(architecture, 'image_size', 32)
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    tree = jax.eval_shape(module_of(architecture, split=0).init, jax.random.key(0), {'image': image})[
        'params'
    ]
    return {
        name: value.shape
        for name, value in flax.traverse_util.flatten_dict(tree, sep='/').items()
        if architecture.num_outputs or not name.startswith('head_layer/')
    }
