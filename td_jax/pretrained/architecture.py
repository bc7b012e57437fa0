"""What a checkpoint says about its model, and what of a model config has to follow."""

from typing import NamedTuple

import flax
import jax
import numpy as np

from td_jax.data.resizing import View
from td_jax.errors import UserError
from td_jax.models import efficientnet, resnet, vit


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


AnyArchitecture = Architecture | ResNetArchitecture | EfficientNetArchitecture


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


def student_overrides(checkpoint: Checkpoint, config) -> dict:
    """What a student that starts from the checkpoint needs beside `teacher_overrides` and its sizes."""
    if isinstance(checkpoint.architecture, EfficientNetArchitecture):
        return {}  # No student starts from one.
    is_vit = isinstance(checkpoint.architecture, Architecture)
    kept = ('activation', 'epsilon', 'registers', 'pooling') if is_vit else ()
    wanted = {f'model.{key}': getattr(checkpoint.architecture, key) for key in kept}
    wanted |= {f'dataset.{key}': value for key, value in checkpoint.preprocessing.of_task().items()}
    return {key: value for key, value in wanted.items() if value != _at(config, key)}


def _of_teacher(preprocessing):
    """The keys of a config that say how its teacher is shown images -> what they would be."""
    return {f'teacher.dataset.{key}': value for key, value in preprocessing.of_task().items()}


def _at(config, key):
    """The value at a dotted key; what the teacher's part of the data leaves open is as the student's."""
    value = config
    for part in key.split('.'):
        value = value[part]
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
    if not isinstance(architecture, Architecture) or model.name in ('resnet', 'efficientnet'):
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
