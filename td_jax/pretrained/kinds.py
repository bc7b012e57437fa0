"""The kinds of ViT that Hugging Face has: their names, and what of them our ViT has no place for.

DeiT (Touvron et al. 2020) and DINOv2 (Oquab et al. 2023; with registers Darcet et al. 2023) differ from a ViT
in little, and all of that is the same function of other parameters:

    layer scale          factors of a Dense's outputs: they become part of its kernel and its bias
    distillation token   has a position: with that added it is a register, which has none
    DeiT's two heads     whose mean is the prediction: one head over both tokens, of half of each

`folded` does this to what is read, and `unfolded` the reverse to what is written: factors of 1, a position of
zeros, and two heads with one bias.
"""

from typing import NamedTuple

import numpy as np

from td_jax.errors import UserError
from td_jax.pretrained import convert
from td_jax.pretrained.architecture import Architecture, Preprocessing
from td_jax.pretrained.convert import shape_of


class Kind(NamedTuple):
    """A model_type of transformers."""

    model_type: str
    classes: tuple[str, ...]  # its class of a classifier, and that of one with two heads if there is one
    block: dict  # our module of a block -> its name
    scales: dict  # our module of a block -> what its outputs are multiplied by
    epsilon: float  # of a LayerNorm, where config.json does not say
    positions: str  # how it resizes position embeddings, a name of fit.STRETCHES
    processor: str  # the class that shows it images, where its file does not say
    # How it is shown images, where there is no such file; None: as its processor does.
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
# Both are shown pixels less ImageNet's mean, over its standard deviation, at several sizes.
_IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None)
_VIT_KIND = Kind('vit', ('ViTForImageClassification',), _VIT, {}, 1e-12, 'linear', 'ViTImageProcessor', None)
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
            positions='bicubic',
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
    """The kind that a ViT can be written as, or None and why there is none."""
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
    """(the name of the head in a file, what of vit.POOLINGS it reads) of a kind."""
    if kind.model_type == 'deit' and any(f'{name}.weight' in raw for name in HEADS):
        return HEADS[0], 'class_and_register'
    return HEAD, 'class_and_mean' if kind.scales else 'class'


def folded(kind: Kind, path, raw: dict, prefix: str, width: int, layers: int) -> dict:
    """What a file holds, without what a ViT does not have.

    Args:
      kind: of the model.
      path: of the file, for messages.
      raw: its arrays, by name.
      prefix: of all names but those of heads.
      width: of the model's states.
      layers: how many blocks there are.

    Raises:
      UserError: an array of those that are joined is missing, not finite, or of a shape that does not fit.
    """
    found = dict(raw)

    def take(key, shape):
        value = convert.array(raw, path, key, len(shape))
        if any(wanted not in (None, size) for wanted, size in zip(shape, value.shape, strict=True)):
            wanted = ', '.join('n' if size is None else str(size) for size in shape)
            raise UserError(f'{path}: {key} is {shape_of(value)}; it would be [{wanted}].')
        return convert.finite(path, key, value)

    for i in range(layers):
        for module, scale in kind.scales.items():
            key, name = (
                f'{prefix}encoder.layer.{i}.{scale}',
                f'{prefix}encoder.layer.{i}.{kind.block[module]}',
            )
            factor = take(key, (width,))
            found[f'{name}.weight'] = take(f'{name}.weight', (width, None)) * factor[:, None]
            found[f'{name}.bias'] = take(f'{name}.bias', (width,)) * factor
            del found[key]
    if kind.model_type != 'deit':
        return found
    token, position = f'{prefix}embeddings.distillation_token', f'{prefix}embeddings.position_embeddings'
    positions = take(position, (1, None, width))
    found[token] = take(token, (1, 1, width)) + positions[:, 1:2]
    found[position] = np.delete(positions, 1, axis=1)
    if head_of(kind, raw)[0] != HEAD:
        kernels, biases = (
            [take(f'{name}.{leaf}', shape) for name in HEADS]
            for leaf, shape in (('weight', (None, width)), ('bias', (None,)))
        )
        for leaf, (one, other) in (('weight', kernels), ('bias', biases)):
            if len(one) != len(other):
                raise UserError(
                    f'{path}: {HEADS[0]}.{leaf} is {shape_of(one)}, but {HEADS[1]}.{leaf} is '
                    f'{shape_of(other)}; both heads have the same labels.'
                )
        found[f'{HEADS[0]}.weight'] = np.concatenate(kernels, axis=1) / 2
        found[f'{HEADS[0]}.bias'] = sum(biases) / 2
        for leaf in ('weight', 'bias'):
            del found[f'{HEADS[1]}.{leaf}']
    return found


def unfolded(kind: Kind, architecture: Architecture, tensors: dict, prefix: str) -> dict:
    """The reverse of `folded`, of what `convert.in_file` makes of our parameters."""
    sizes, found = architecture.sizes, dict(tensors)
    if kind.model_type == 'deit':
        position = f'{prefix}embeddings.position_embeddings'
        found[position] = np.insert(found[position], 1, 0.0, axis=1)
        if architecture.pooling == 'class_and_register':
            name, other = HEADS
            kernels = np.split(2 * found[f'{name}.weight'], 2, axis=1)
            found |= {f'{each}.weight': kernel for each, kernel in zip(HEADS, kernels, strict=True)}
            found[f'{other}.bias'] = found[f'{name}.bias'].copy()
    for i in range(sizes.layers):
        for scale in kind.scales.values():
            found[f'{prefix}encoder.layer.{i}.{scale}'] = np.ones(sizes.width, np.float32)
    if kind.scales:
        # Of no use but in its own training, and in every file.
        found[f'{prefix}embeddings.mask_token'] = np.zeros((1, sizes.width), np.float32)
        if architecture.pooling == 'class':
            kernel = found[f'{HEAD}.weight']
            # Its head reads the mean, too: here, nothing of it.
            found[f'{HEAD}.weight'] = np.concatenate([kernel, np.zeros_like(kernel)], axis=1)
    return {name: np.ascontiguousarray(value) for name, value in found.items()}
