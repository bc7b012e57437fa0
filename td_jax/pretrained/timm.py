"""The folder of a timm model as it is published: config.json with `architecture`, and model.safetensors."""

import re

import numpy as np

from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.models import efficientnet
from td_jax.pretrained import convert, hugging_face, preprocessing
from td_jax.pretrained.architecture import Checkpoint, EfficientNetArchitecture
from td_jax.pretrained.convert import Place, shape_of

# What BatchNorm adds to the variance: TensorFlow's, whose weights timm calls tf_, and PyTorch's.
EPSILON_OF_TENSORFLOW, EPSILON = 1e-3, 1e-5
# What is asked of a name, and how a person would say it.
KNOWN = 'efficientnet_b0 to b7 and efficientnet_lite0 to lite4, with tf_ before it or not'
HEAD = 'classifier'


def recognises(folder) -> bool:
    """Whether a folder is one of timm's: Hugging Face says model_type where timm says architecture."""
    config = workdir.read_json(folder / hugging_face.CONFIG)
    return isinstance(config, dict) and 'architecture' in config and 'model_type' not in config


def read(location: str, folder) -> Checkpoint:
    """Reads a folder.

    BatchNorm becomes part of the convolution before it.

    Args:
      location: as the user wrote it.
      folder: holds config.json and model.safetensors.

    Raises:
      UserError: a file is missing or damaged, an architecture that td_jax does not know, or preprocessing
        that it does not do; the first key that is missing or has a wrong shape is named.
    """
    path = folder / hugging_face.CONFIG
    config = workdir.read_json(path)
    weights = folder / hugging_face.WEIGHTS
    if not weights.is_file():
        raise UserError(f'{folder} holds no {weights.name}; a timm model has {path.name} and {weights.name}.')
    name = config['architecture']
    match = re.fullmatch(r'(tf_)?efficientnet_(\w+)', name) if isinstance(name, str) else None
    if not match or match[2] not in efficientnet.FACTORS:
        raise UserError(f'{path}: architecture {name!r} is not known. Known: {KNOWN}.')
    shown = preprocessing.read_timm(path, config)
    raw = hugging_face.tensors(weights)
    head = raw.get(f'{HEAD}.weight')
    architecture = EfficientNetArchitecture(
        match[2], 'same' if match[1] else 'symmetric', 0 if head is None else len(head)
    )
    epsilon = EPSILON_OF_TENSORFLOW if match[1] else EPSILON
    found = fold_batch_norms(weights, raw, norms_of(architecture), epsilon)
    names = _label_names(path, config, architecture.num_outputs)
    checkpoint = convert.converted(location, weights, architecture, shown, found, places(architecture))
    return checkpoint._replace(label_names=names)


def fold_batch_norms(path, raw: dict, norms: dict[str, str], epsilon: float) -> dict:
    """The arrays of a file without BatchNorm, which becomes part of the convolution before it.

    kernel' = kernel scale / sqrt(variance + epsilon), of each output channel, and
    bias' = offset + (bias - mean) scale / sqrt(variance + epsilon), in float64.

    Args:
      path: of the file, for messages.
      raw: its arrays, by name; kernels are [outputs, inputs, rows, columns].
      norms: {name of a convolution: name of its BatchNorm}.
      epsilon: added to the variance.

    Raises:
      UserError: an array is missing, has another shape, or holds a variance below 0.
    """
    found = dict(raw)
    for conv, norm in norms.items():
        kernel = convert.array(raw, path, f'{conv}.weight', 4, 'timm model').astype(np.float64)
        scale, offset, mean, variance = (
            convert.array(raw, path, f'{norm}.{leaf}', 1, 'timm model').astype(np.float64)
            for leaf in ('weight', 'bias', 'running_mean', 'running_var')
        )
        for leaf, value in (('weight', scale), ('running_var', variance)):
            if value.shape != kernel.shape[:1]:
                raise UserError(
                    f'{path}: {norm}.{leaf} is {shape_of(value)}; with {conv}.weight it would be '
                    f'{[kernel.shape[0]]}.'
                )
        if not (variance >= 0).all():
            raise UserError(f'{path}: {norm}.running_var holds a variance that is not 0 or more.')
        factor = scale / np.sqrt(variance + epsilon)
        bias = raw.get(f'{conv}.bias', np.zeros(1))
        found[f'{conv}.weight'] = kernel * factor[:, None, None, None]
        found[f'{conv}.bias'] = offset + (bias - mean) * factor
        for leaf in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'):
            found.pop(f'{norm}.{leaf}', None)
    return found


def _convolutions(architecture):
    """(our name, timm's convolution, its BatchNorm) of an EfficientNet."""
    yield 'stem', 'conv_stem', 'bn1'
    sizes = efficientnet.sizes_of_variant(architecture.variant)
    for i, depth in enumerate(sizes.depths):
        names = (
            ('conv_dw', 'conv_pw') if efficientnet.STAGES[i][3] == 1 else ('conv_pw', 'conv_dw', 'conv_pwl')
        )
        parts = ('depthwise', 'project') if len(names) == 2 else ('expand', 'depthwise', 'project')
        for j in range(depth):
            for k, (part, name) in enumerate(zip(parts, names, strict=True)):
                theirs = f'blocks.{i}.{j}'
                yield f'stage_{i}_block_{j}/{part}', f'{theirs}.{name}', f'{theirs}.bn{k + 1}'
    yield 'last', 'conv_head', 'bn2'


def norms_of(architecture: EfficientNetArchitecture) -> dict[str, str]:
    """{timm's convolution: its BatchNorm}."""
    return {conv: norm for _, conv, norm in _convolutions(architecture)}


def places(architecture: EfficientNetArchitecture) -> dict[str, Place]:
    """Our names -> where they are in a file whose BatchNorms are folded."""
    shapes = convert.shapes(architecture)
    found = {}

    def put(ours, theirs):
        *kernel, outputs = shapes[f'{ours}/kernel']
        order = (1, 0) if len(kernel) == 1 else (2, 3, 1, 0)
        found[f'{ours}/bias'] = Place(f'{theirs}.bias')
        # A Dense on a mean is a convolution of 1 by 1 there.
        shape = (outputs, *kernel) if len(kernel) == 1 else (outputs, kernel[2], *kernel[:2])
        found[f'{ours}/kernel'] = Place(f'{theirs}.weight', shape, order)

    for ours, conv, _ in _convolutions(architecture):
        put(f'{ours}/conv', conv)
    sizes = efficientnet.sizes_of_variant(architecture.variant)
    for i, depth in enumerate(sizes.depths) if not sizes.is_lite else ():
        for j in range(depth):
            for part, name in (('squeeze', 'conv_reduce'), ('excite', 'conv_expand')):
                ours = f'stage_{i}_block_{j}/{part}'
                put(ours, f'blocks.{i}.{j}.se.{name}')
                inputs, outputs = shapes[f'{ours}/kernel']
                key = found[f'{ours}/kernel'].key
                found[f'{ours}/kernel'] = Place(key, (outputs, inputs, 1, 1), (2, 3, 1, 0))
    if architecture.num_outputs:
        put('head_layer', HEAD)
    return found


def _label_names(path, config, count):
    """The names of the head's outputs, where the file has them."""
    names = config.get('label_names')
    if not count or names is None:
        return None
    if not isinstance(names, list) or len(names) != count:
        raise UserError(f'{path}: label_names are not one for each of the {count} outputs of {HEAD}.weight.')
    return tuple(map(str, names))
