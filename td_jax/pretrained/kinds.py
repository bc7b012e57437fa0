"""The kinds of ViT in Hugging Face's transformers: their names, and conversions to our ViT.

DeiT (Touvron et al. 2020) and DINOv2 (Oquab et al. 2023; with registers Darcet et al. 2023) have
parts that our ViT lacks. It computes the same function with other parameters:

    layer scale          the factors of a Dense's outputs become part of its kernel and bias
    distillation token   its position is added to it, which gives a register
    DeiT's two heads     their mean becomes one head over both tokens, with half of each kernel

`fold` does this after reading. `unfold` does the inverse before writing, with factors of 1, a position of
zeros, and equal biases of both heads.
"""

from typing import NamedTuple

import numpy as np

from td_jax.errors import UserError
from td_jax.pretrained import convert
from td_jax.pretrained.architecture import Architecture, Preprocessing
from td_jax.pretrained.convert import format_shape


class Kind(NamedTuple):
    """A model_type of transformers."""

    model_type: str
    classes: tuple[str, ...]  # its class of a classifier, and that with two heads, if any
    block: dict  # our module of a block -> its name
    scales: dict  # our module of a block -> name of the factors of its outputs
    epsilon: float  # of a LayerNorm, by default
    positions: str  # its resizing of position embeddings, a name of fit.STRETCHES
    processor: str  # its default class of preprocessing
    # The preprocessing without a file for it; None for the defaults of `processor`.
    preprocessing: Preprocessing | None


_ATTENTION = {
    **{f'attention/{name}': f'attention.attention.{name}' for name in ('query', 'key', 'value')},
    'attention/out': 'attention.output.dense',
}
_VIT = {
    **_ATTENTION,
    'attention_norm': 'layernorm_before',
    'mlp_norm': 'layernorm_after',
    'mlp_in': 'intermediate.dense',
    'mlp_out': 'output.dense',
}
_DINOV2 = {
    **_ATTENTION,
    'attention_norm': 'norm1',
    'mlp_norm': 'norm2',
    'mlp_in': 'mlp.fc1',
    'mlp_out': 'mlp.fc2',
}
_SCALES = {'attention/out': 'layer_scale1.lambda1', 'mlp_out': 'layer_scale2.lambda1'}
# Both have pixels normalized by ImageNet's mean and standard deviation, at several sizes.
_IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None)
_VIT_KIND = Kind('vit', ('ViTForImageClassification',), _VIT, {}, 1e-12, 'bicubic', 'ViTImageProcessor', None)
_DINOV2_KIND = Kind(
    model_type='dinov2',
    classes=('Dinov2ForImageClassification',),
    block=_DINOV2,
    scales=_SCALES,
    epsilon=1e-6,
    positions='bicubic',
    processor='BitImageProcessor',
    preprocessing=_IMAGENET,
)
KINDS = {
    kind.model_type: kind
    for kind in (
        _VIT_KIND,
        _VIT_KIND._replace(
            model_type='deit',
            classes=('DeiTForImageClassification', 'DeiTForImageClassificationWithTeacher'),
            processor='DeiTImageProcessor',
            preprocessing=_IMAGENET,
        ),
        _DINOV2_KIND,
        _DINOV2_KIND._replace(
            model_type='dinov2_with_registers',
            classes=('Dinov2WithRegistersForImageClassification',),
            positions='bicubic_antialias',
        ),
    )
}
HEAD, HEADS = 'classifier', ('cls_classifier', 'distillation_classifier')


def kind_of(architecture: Architecture) -> tuple[Kind | None, str]:
    """The kind that a ViT can be written as, or (None, the reason why there is none)."""
    sizes, registers, pooling = architecture.sizes, architecture.registers, architecture.pooling
    if architecture.pre_logits:
        return None, 'has no place for the pre-logits of this student between the class token and its head'
    if not registers and pooling == 'class':
        return KINDS['vit'], ''
    if registers == 1 and pooling != 'class_and_mean':
        return KINDS['deit'], ''
    if pooling == 'class_and_register':
        return None, f'has no place for a head that reads one of the {registers} registers of this student'
    if sizes.mlp % sizes.width:
        return None, (
            'has registers, or a head that reads a mean, for DINOv2 alone, whose MLP is a multiple of the '
            f'width, and that of this student is {sizes.mlp} of {sizes.width}'
        )
    return KINDS['dinov2_with_registers' if registers else 'dinov2'], ''


def head_of(kind: Kind, raw) -> tuple[str, str]:
    """(name of the head in a file, its input, a name of vit.POOLINGS) of a kind."""
    if kind.model_type == 'deit' and any(f'{name}.weight' in raw for name in HEADS):
        return HEADS[0], 'class_and_register'
    return HEAD, 'class_and_mean' if kind.scales else 'class'


def fold(kind: Kind, path, raw: dict, prefix: str, width: int, layers: int) -> dict:
    """Converts the arrays of a file to those of a ViT.

    Args:
      kind: of the model.
      path: of the file, for messages.
      raw: its arrays, by name.
      prefix: of all names except those of heads.
      width: of the model's states.
      layers: number of blocks.

    Raises:
      UserError: an array to convert is missing, not finite, or has a wrong shape.
    """
    arrays = dict(raw)

    def take(key, shape):
        value = convert.get_array(raw, path, key, len(shape))
        if any(expected not in (None, size) for expected, size in zip(shape, value.shape, strict=True)):
            expected = ', '.join('n' if size is None else str(size) for size in shape)
            raise UserError(f'{path}: {key} is {format_shape(value)}; it would be [{expected}].')
        return convert.as_finite(path, key, value)

    for i in range(layers):
        for module, scale in kind.scales.items():
            key, name = (
                f'{prefix}encoder.layer.{i}.{scale}',
                f'{prefix}encoder.layer.{i}.{kind.block[module]}',
            )
            factor = take(key, (width,))
            arrays[f'{name}.weight'] = take(f'{name}.weight', (width, None)) * factor[:, None]
            arrays[f'{name}.bias'] = take(f'{name}.bias', (width,)) * factor
            del arrays[key]
    if kind.model_type != 'deit':
        return arrays
    token, position = f'{prefix}embeddings.distillation_token', f'{prefix}embeddings.position_embeddings'
    positions = take(position, (1, None, width))
    arrays[token] = take(token, (1, 1, width)) + positions[:, 1:2]
    arrays[position] = np.delete(positions, 1, axis=1)
    if head_of(kind, raw)[0] != HEAD:
        kernels, biases = (
            [take(f'{name}.{leaf}', shape) for name in HEADS]
            for leaf, shape in (('weight', (None, width)), ('bias', (None,)))
        )
        for leaf, (first, second) in (('weight', kernels), ('bias', biases)):
            if len(first) != len(second):
                raise UserError(
                    f'{path}: {HEADS[0]}.{leaf} is {format_shape(first)}, but {HEADS[1]}.{leaf} is '
                    f'{format_shape(second)}; both heads have the same labels.'
                )
        arrays[f'{HEADS[0]}.weight'] = np.concatenate(kernels, axis=1) / 2
        arrays[f'{HEADS[0]}.bias'] = sum(biases) / 2
        for leaf in ('weight', 'bias'):
            del arrays[f'{HEADS[1]}.{leaf}']
    return arrays


def unfold(kind: Kind, architecture: Architecture, tensors: dict, prefix: str) -> dict:
    """The inverse of `fold`, for arrays by `convert.to_file_arrays`."""
    sizes, arrays = architecture.sizes, dict(tensors)
    if kind.model_type == 'deit':
        position = f'{prefix}embeddings.position_embeddings'
        arrays[position] = np.insert(arrays[position], 1, 0.0, axis=1)
        if architecture.pooling == 'class_and_register':
            name, other = HEADS
            kernels = np.split(2 * arrays[f'{name}.weight'], 2, axis=1)
            arrays |= {f'{head}.weight': kernel for head, kernel in zip(HEADS, kernels, strict=True)}
            arrays[f'{other}.bias'] = arrays[f'{name}.bias'].copy()
    for i in range(sizes.layers):
        for scale in kind.scales.values():
            arrays[f'{prefix}encoder.layer.{i}.{scale}'] = np.ones(sizes.width, np.float32)
    if kind.scales:
        # Used only in its own training, but present in every file.
        arrays[f'{prefix}embeddings.mask_token'] = np.zeros((1, sizes.width), np.float32)
        if architecture.pooling == 'class':
            kernel = arrays[f'{HEAD}.weight']
            # Its head also reads the mean, here with weights of 0.
            arrays[f'{HEAD}.weight'] = np.concatenate([kernel, np.zeros_like(kernel)], axis=1)
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}
