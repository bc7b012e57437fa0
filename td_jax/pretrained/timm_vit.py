"""Reads ViT, DeiT and DINOv2 of timm, with the names and shapes of vit.ViT.

Layer scales become part of a Dense and DeiT's two heads become one, as in td_jax.pretrained.kinds. If class
token and registers have no positions, that of the class token is zero.
"""

import re

import numpy as np

from td_jax.errors import UserError
from td_jax.models import vit
from td_jax.pretrained import convert
from td_jax.pretrained.architecture import Architecture
from td_jax.pretrained.convert import Place, format_shape

NAMES = re.compile(
    r'(?:vit|deit|deit3)_(?P<size>tiny|small|medium|base|large|huge)(?P<distilled>_distilled)?'
    r'_patch\d+_(?:\d+|(?P<registers>reg4_)?dinov2)'
)
KNOWN = (
    'vit_SIZE_patchN_SIDE (SIZE tiny, small, base, large or huge), deit_SIZE_patch16_SIDE (with _distilled '
    'or not), deit3_SIZE_patchN_SIDE and vit_SIZE_patch14_dinov2 (with reg4 or not)'
)
# Arguments in config.json that also follow from the shapes of the arrays.
ARGUMENTS = 'embed_dim', 'depth', 'num_heads', 'patch_size', 'mlp_ratio', 'init_values'
HEADS = {'tiny': 3, 'small': 6, 'medium': 8, 'base': 12, 'large': 16, 'huge': 16}
EPSILON = 1e-6
# timm's resizing of position embeddings, a name of fit.STRETCHES.
POSITIONS = 'bicubic_antialias'
# Our names in a block -> timm's.
BLOCK = {
    **{f'attention/{name}': f'attn.{name}' for name in ('query', 'key', 'value')},
    'attention/out': 'attn.proj',
    'attention_norm': 'norm1',
    'mlp_norm': 'norm2',
    'mlp_in': 'mlp.fc1',
    'mlp_out': 'mlp.fc2',
}
# Name of a layer scale -> the Dense whose outputs it multiplies.
SCALES = {'ls1.gamma': 'attn.proj', 'ls2.gamma': 'mlp.fc2'}


def read(path, config: dict, match: re.Match, raw: dict):
    """Reads the arrays of a file.

    Args:
      path: of the file, for messages.
      config: the content of config.json.
      match: of NAMES and the architecture.
      raw: the arrays of the file, by name.

    Returns:
      (architecture, arrays whose names are those of `places`, {our name: Place})

    Raises:
      UserError: an array is missing or has another shape.
    """
    projection = convert.get_array(raw, path, 'patch_embed.proj.weight', 4, 'timm ViT')
    width, colours, patch, other = projection.shape
    if colours != 3 or patch != other:
        raise UserError(
            f'{path}: patch_embed.proj.weight is {format_shape(projection)}; that of a ViT is [width, 3, '
            'patch, patch].'
        )
    arguments, default = config.get('model_args') or {}, HEADS[match['size']]
    heads = default if arguments.get('num_heads') is None else arguments['num_heads']
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise UserError(f'{path.parent}: num_heads is {heads!r}; it is a whole number above 0.')
    sizes = vit.Sizes(
        width=width,
        layers=convert.count_numbered({'blocks.0.': None, **raw}, r'blocks\.(\d+)\.'),
        mlp=convert.get_array(raw, path, 'blocks.0.mlp.fc1.weight', 2, 'timm ViT').shape[0],
        heads=heads,
    )
    if arguments.get('depth') not in (None, sizes.layers):
        # A file that is not whole is no smaller model.
        raise UserError(
            f'{path.parent}: depth is {arguments["depth"]!r}, but there are {sizes.layers} blocks.'
        )
    convert.check_heads(path, sizes)
    arrays = dict(raw)
    registers = _move_registers(path, match, arrays, width)
    # All blocks have both, or none has any.
    has_scales = any(name.endswith(tuple(SCALES)) for name in raw)
    for i in range(sizes.layers):
        _split_attention(path, arrays, f'blocks.{i}', width)
        if has_scales:
            _fold_scales(path, arrays, f'blocks.{i}', width)
    if match['distilled'] and 'head.weight' in raw:
        _join_heads(path, arrays, width)
    has_head = convert.has_head(arrays, path, 'head.weight', 'head.bias', 2, 'timm ViT')
    architecture = Architecture(
        sizes=sizes,
        patch=patch,
        image_size=convert.image_size(path, arrays['pos_embed'], patch),
        num_outputs=len(arrays['head.weight']) if has_head else 0,
        activation='gelu',
        epsilon=EPSILON,
        pre_logits=False,
        registers=registers,
        pooling='class_and_register' if has_head and match['distilled'] else 'class',
    )
    return architecture, arrays, places(architecture)


def _move_registers(path, match, arrays, width):
    """Adds the positions of registers, or of DeiT's distillation token, to them; returns their number."""
    name = 'dist_token' if match['distilled'] else 'reg_token' if match['registers'] else None
    positions = convert.get_array(arrays, path, 'pos_embed', 3, 'timm ViT')
    tokens = (
        convert.get_array(arrays, path, name, 3, 'timm ViT') if name else np.zeros((1, 0, width), np.float32)
    )
    for key, value in (('pos_embed', positions), *([(name, tokens)] if name else [])):
        if value.shape[0] != 1 or value.shape[2] != width:
            raise UserError(f'{path}: {key} is {format_shape(value)}; it would be [1, n, {width}].')
    if match['registers'] or match[0].startswith('deit3'):
        # Only patches have positions.
        arrays['pos_embed'] = np.concatenate([np.zeros((1, 1, width), positions.dtype), positions], axis=1)
    elif match['distilled']:
        tokens = tokens.astype(np.float32) + positions[:, 1:2]
        arrays['pos_embed'] = np.delete(positions, 1, axis=1)
    if name:
        arrays['registers'] = tokens
        del arrays[name]
    return tokens.shape[1]


def _split_attention(path, arrays, block, width):
    """Splits one array into query, key and value."""
    for leaf, shape in (('weight', (3 * width, width)), ('bias', (3 * width,))):
        key = f'{block}.attn.qkv.{leaf}'
        value = _get_shaped(path, arrays, key, shape)
        for name, part in zip(('query', 'key', 'value'), np.split(value, 3), strict=True):
            arrays[f'{block}.attn.{name}.{leaf}'] = part
        del arrays[key]


def _fold_scales(path, arrays, block, width):
    """Folds layer scales into the Dense before them."""
    for scale, dense in SCALES.items():
        factor = _get_shaped(path, arrays, f'{block}.{scale}', (width,)).astype(np.float32)
        kernel = convert.get_array(arrays, path, f'{block}.{dense}.weight', 2, 'timm ViT')
        if len(kernel) != width:
            raise UserError(
                f'{path}: {block}.{dense}.weight is {format_shape(kernel)}; it would be [{width}, n].'
            )
        arrays[f'{block}.{dense}.weight'] = kernel * factor[:, None]
        arrays[f'{block}.{dense}.bias'] = (
            _get_shaped(path, arrays, f'{block}.{dense}.bias', (width,)) * factor
        )
        del arrays[f'{block}.{scale}']


def _join_heads(path, arrays, width):
    """Joins DeiT's two heads, whose mean is the prediction, to one over both tokens."""
    count = len(convert.get_array(arrays, path, 'head.weight', 2, 'timm ViT'))
    for leaf, shape in (('weight', (count, width)), ('bias', (count,))):
        parts = [
            _get_shaped(path, arrays, f'{name}.{leaf}', shape).astype(np.float32)
            for name in ('head', 'head_dist')
        ]
        arrays[f'head.{leaf}'] = np.concatenate(parts, axis=1) / 2 if leaf == 'weight' else sum(parts) / 2
        del arrays[f'head_dist.{leaf}']


def _get_shaped(path, arrays, key, shape):
    """Gets an array of a file and checks its shape."""
    value = convert.get_array(arrays, path, key, len(shape), 'timm ViT')
    if value.shape != shape:
        raise UserError(
            f'{path}: {key} is {format_shape(value)}; with the other arrays it would be {list(shape)}.'
        )
    return value


def places(architecture: Architecture) -> dict[str, Place]:
    """Maps our names to places in the arrays by `read`."""
    width, patch = architecture.sizes.width, architecture.patch
    head_inputs = width if architecture.pooling == 'class' else 2 * width
    return {
        'embedding/kernel': Place('patch_embed.proj.weight', (width, 3, patch, patch), (2, 3, 1, 0)),
        'embedding/bias': Place('patch_embed.proj.bias'),
        'cls': Place('cls_token'),
        'pos_embedding': Place('pos_embed'),
        'register_tokens': Place('registers'),
        **convert.norm_places('norm', 'norm'),
        **convert.dense_places('head_layer', 'head', head_inputs, architecture.num_outputs),
        **convert.block_places(architecture.sizes, BLOCK, 'blocks.'),
    }
