"""Reads EfficientNet and ResNet of timm: folds BatchNorm and converts names to ours."""

import re

import numpy as np

from td_jax.errors import UserError
from td_jax.models import efficientnet, resnet_bn
from td_jax.pretrained import convert
from td_jax.pretrained.architecture import EfficientNetArchitecture, FoldedResNetArchitecture
from td_jax.pretrained.convert import Place, format_shape

# The epsilon of BatchNorm in TensorFlow, whose weights are called tf_ in timm, and in PyTorch.
EPSILON_OF_TENSORFLOW, EPSILON = 1e-3, 1e-5
EFFICIENTNETS = re.compile(rf'(?P<tf>tf_)?efficientnet_(?P<variant>{"|".join(efficientnet.FACTORS)})')
RESNETS = re.compile('|'.join(resnet_bn.VARIANTS))
KNOWN = (
    f'efficientnet_b0 to b7 and efficientnet_lite0 to lite4, with tf_ before it or not, '
    f'{", ".join(resnet_bn.VARIANTS)}'
)


def read_efficientnet(path, config: dict, match: re.Match, raw: dict):
    """Reads a file of an EfficientNet; arguments and result as for `timm_vit.read`."""
    count, padding = _count_outputs(path, raw, 'classifier'), 'same' if match['tf'] else 'symmetric'
    architecture = EfficientNetArchitecture(match['variant'], padding, count)
    names = list(_efficientnet_names(architecture))
    epsilon = EPSILON_OF_TENSORFLOW if match['tf'] else EPSILON
    arrays = fold_batch_norms(path, raw, {conv: norm for _, conv, norm in names}, epsilon)
    denses = dict(_squeeze_names(architecture))
    return architecture, arrays, places(architecture, names, denses, 'classifier')


def read_resnet(path, config: dict, match: re.Match, raw: dict):
    """Reads a file of a ResNet; arguments and result as for `timm_vit.read`."""
    architecture = FoldedResNetArchitecture(match[0], _count_outputs(path, raw, 'fc'))
    names = list(_resnet_names(architecture))
    arrays = fold_batch_norms(path, raw, {conv: norm for _, conv, norm in names}, EPSILON)
    return architecture, arrays, places(architecture, names, {}, 'fc')


def _count_outputs(path, raw, head):
    """The number of outputs of a head; 0 without one, or if it is all zeros."""
    kernel = f'{head}.weight'
    has_head = convert.has_head(raw, path, kernel, f'{head}.bias', 2, 'timm model')
    return len(raw[kernel]) if has_head else 0


def fold_batch_norms(path, raw: dict, norms: dict[str, str], epsilon: float) -> dict:
    """Folds each BatchNorm of a file into the convolution before it.

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
    arrays = dict(raw)
    for conv, norm in norms.items():
        kernel = convert.get_array(raw, path, f'{conv}.weight', 4, 'timm model').astype(np.float64)
        names = [f'{norm}.{leaf}' for leaf in ('weight', 'bias', 'running_mean', 'running_var')]
        names += [f'{conv}.bias'] if f'{conv}.bias' in raw else []
        values = [convert.get_array(raw, path, name, 1, 'timm model').astype(np.float64) for name in names]
        for name, value in zip(names, values, strict=True):
            # One number alone would be taken for all channels.
            if value.shape != kernel.shape[:1]:
                raise UserError(
                    f'{path}: {name} is {format_shape(value)}; with {conv}.weight it would be '
                    f'{[kernel.shape[0]]}.'
                )
        scale, offset, mean, variance, *biases = values
        if not (variance >= 0).all():
            raise UserError(f'{path}: {norm}.running_var holds a variance that is not 0 or more.')
        factor = scale / np.sqrt(variance + epsilon)
        bias = biases[0] if biases else 0.0
        arrays[f'{conv}.weight'] = kernel * factor[:, None, None, None]
        arrays[f'{conv}.bias'] = offset + (bias - mean) * factor
        for leaf in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'):
            arrays.pop(f'{norm}.{leaf}', None)
    return arrays


def _efficientnet_names(architecture):
    """Yields (our name, timm's convolution, its BatchNorm) of an EfficientNet."""
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


def _squeeze_names(architecture):
    """Yields (our name, timm's) of the squeeze-and-excite layers, which are 1 x 1 convolutions in timm."""
    sizes = efficientnet.sizes_of_variant(architecture.variant)
    for i, depth in enumerate(sizes.depths) if not sizes.is_lite else ():
        for j in range(depth):
            for part, name in (('squeeze', 'conv_reduce'), ('excite', 'conv_expand')):
                yield f'stage_{i}_block_{j}/{part}', f'blocks.{i}.{j}.se.{name}'


def _resnet_names(architecture):
    """Yields (our name, timm's convolution, its BatchNorm) of a ResNet."""
    yield 'root', 'conv1', 'bn1'
    sizes = resnet_bn.sizes_of_variant(architecture.variant)
    for i, count in enumerate(sizes.units):
        for j in range(count):
            ours, theirs = f'stage_{i}_unit_{j}', f'layer{i + 1}.{j}'
            for k in range(3 if sizes.bottleneck else 2):
                yield f'{ours}/conv_{k}', f'{theirs}.conv{k + 1}', f'{theirs}.bn{k + 1}'
            if not j and (i or sizes.bottleneck):
                yield f'{ours}/projection', f'{theirs}.downsample.0', f'{theirs}.downsample.1'


def places(architecture, names, denses, head) -> dict[str, Place]:
    """Maps our names to places in a file whose BatchNorms are folded.

    Args:
      architecture: of the file.
      names: (our name, timm's convolution, its BatchNorm) of each convolution.
      denses: {our name: timm's} of each Dense that is a 1 x 1 convolution in timm.
      head: timm's name of the head.
    """
    shapes = convert.parameter_shapes(architecture)
    places_by_name = {}
    for ours, theirs, _ in names:
        rows, columns, inputs, outputs = shapes[f'{ours}/conv/kernel']
        places_by_name[f'{ours}/conv/kernel'] = Place(
            f'{theirs}.weight', (outputs, inputs, rows, columns), (2, 3, 1, 0)
        )
        places_by_name[f'{ours}/conv/bias'] = Place(f'{theirs}.bias')
    for ours, theirs in denses.items():
        inputs, outputs = shapes[f'{ours}/kernel']
        places_by_name[f'{ours}/kernel'] = Place(f'{theirs}.weight', (outputs, inputs, 1, 1), (2, 3, 1, 0))
        places_by_name[f'{ours}/bias'] = Place(f'{theirs}.bias')
    kernel = shapes.get('head_layer/kernel', ())
    places_by_name['head_layer/kernel'] = Place(f'{head}.weight', kernel[::-1], (1, 0))
    places_by_name['head_layer/bias'] = Place(f'{head}.bias')
    return places_by_name
