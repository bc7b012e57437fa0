"""Reads and writes the .npz of google-research/vision_transformer."""

import re

import numpy as np

from td_jax.errors import UserError
from td_jax.models import vit
from td_jax.pretrained import convert
from td_jax.pretrained.architecture import Architecture, Checkpoint, Preprocessing
from td_jax.pretrained.convert import Place, format_shape

# The constants of that code; a file can store neither other values nor names of labels.
ACTIVATION, EPSILON = 'gelu_tanh', 1e-6
PREPROCESSING = Preprocessing(image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5), resize='bilinear')


def read(location: str, path, raw: dict) -> Checkpoint:
    """Makes a Checkpoint from a file.

    Args:
      location: as the user wrote it.
      path: of the file.
      raw: its arrays, by name.

    Raises:
      UserError: it is not a ViT; names the first key that is missing or has a wrong shape.
    """
    raw = _renumber(raw)
    kernel = convert.get_array(raw, path, 'embedding/kernel', 4)
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != 3:
        raise UserError(
            f'{path}: embedding/kernel is {format_shape(kernel)}; that of a ViT is [patch, patch, 3, width].'
        )
    block = 'Transformer/encoderblock_0'
    query = convert.get_array(raw, path, f'{block}/MultiHeadDotProductAttention_0/query/kernel', 3)
    mlp = convert.get_array(raw, path, f'{block}/MlpBlock_0/Dense_0/kernel', 2)
    position = convert.get_array(raw, path, 'Transformer/posembed_input/pos_embedding', 3)
    sizes = vit.Sizes(
        width=kernel.shape[-1],
        layers=convert.count_numbered(raw, r'Transformer/encoderblock_(\d+)/'),
        mlp=mlp.shape[1],
        heads=query.shape[1],
    )
    convert.check_heads(path, sizes)
    has_head = convert.has_head(raw, path, 'head/kernel', 'head/bias', 2)
    architecture = Architecture(
        sizes=sizes,
        patch=kernel.shape[0],
        image_size=convert.image_size(path, position, kernel.shape[0]),
        num_outputs=raw['head/kernel'].shape[1] if has_head else 0,
        activation=ACTIVATION,
        epsilon=EPSILON,
        pre_logits=any(f'pre_logits/{leaf}' in raw for leaf in ('kernel', 'bias')),
    )
    return convert.to_checkpoint(location, path, architecture, PREPROCESSING, raw, places(architecture))


def _renumber(raw):
    """Numbers the modules of each kind in a block from 0.

    Older files number all kinds together, LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2,
    MlpBlock_3, as Flax did before Linen.
    """
    pattern = re.compile(
        r'(Transformer/encoderblock_\d+/)(LayerNorm|MultiHeadDotProductAttention|MlpBlock)_(\d+)(/.*)'
    )
    name_parts = {name: match.groups() for name in raw if (match := pattern.fullmatch(name))}
    numbers = {}
    for block, kind, number, _ in name_parts.values():
        numbers.setdefault((block, kind), set()).add(int(number))
    # The place of a single LayerNorm is unknown; its name stays, so that the missing one is reported.
    numbers_to_replace = {
        key: sorted(values) for key, values in numbers.items() if len(values) == 1 + (key[1] == 'LayerNorm')
    }

    def new_name(name):
        if name not in name_parts:
            return name
        block, kind, number, rest = name_parts[name]
        if (block, kind) not in numbers_to_replace:
            return name
        return f'{block}{kind}_{numbers_to_replace[block, kind].index(int(number))}{rest}'

    return {new_name(name): value for name, value in raw.items()}


def places(architecture: Architecture) -> dict[str, Place]:
    """Maps our names to places in a file."""
    patch, width = architecture.patch, architecture.sizes.width
    places_by_name = {
        'embedding/kernel': Place('embedding/kernel', (patch, patch, 3, width)),
        'embedding/bias': Place('embedding/bias'),
        'cls': Place('cls'),
        'pos_embedding': Place('Transformer/posembed_input/pos_embedding'),
        'norm/scale': Place('Transformer/encoder_norm/scale'),
        'norm/bias': Place('Transformer/encoder_norm/bias'),
    }
    modules = {
        'attention_norm': 'LayerNorm_0',
        'attention/query': 'MultiHeadDotProductAttention_0/query',
        'attention/key': 'MultiHeadDotProductAttention_0/key',
        'attention/value': 'MultiHeadDotProductAttention_0/value',
        'attention/out': 'MultiHeadDotProductAttention_0/out',
        'mlp_norm': 'LayerNorm_1',
        'mlp_in': 'MlpBlock_0/Dense_0',
        'mlp_out': 'MlpBlock_0/Dense_1',
    }
    for i in range(architecture.sizes.layers):
        for ours, theirs in modules.items():
            for leaf in ('scale', 'bias') if ours.endswith('norm') else ('kernel', 'bias'):
                places_by_name[f'block_{i}/{ours}/{leaf}'] = Place(
                    f'Transformer/encoderblock_{i}/{theirs}/{leaf}'
                )
    for leaf in ('kernel', 'bias'):
        places_by_name[f'pre_logits_layer/{leaf}'] = Place(f'pre_logits/{leaf}')
        places_by_name[f'head_layer/{leaf}'] = Place(f'head/{leaf}')
    return places_by_name


def write(path, architecture: Architecture, params):
    """Writes parameters of a vit.ViT to a new file."""
    with open(path, 'wb') as file:
        np.savez(file, **convert.to_file_arrays(params, places(architecture)))
