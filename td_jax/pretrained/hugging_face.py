"""Reads and writes the folder of a Hugging Face ViT, DeiT or DINOv2."""

import json
import math
import re

from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.models import vit
from td_jax.pretrained import convert, kinds, preprocessing, weights
from td_jax.pretrained.architecture import Architecture, Checkpoint, Preprocessing
from td_jax.pretrained.convert import Place, format_shape
from td_jax.pretrained.kinds import Kind

CONFIG = 'config.json'
# Name of an activation in a config.json -> ours; its `gelu` is the exact one.
ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}


def read(location: str, folder) -> Checkpoint:
    """Makes a Checkpoint from a folder.

    Args:
      location: as the user wrote it.
      folder: contains CONFIG and the files of `weights`.

    Raises:
      UserError: a file is missing or damaged, or it is not a ViT; names the first key that is missing or has
        a wrong shape.
    """
    config = workdir.read_json(folder / CONFIG)
    path = weights.find(folder)
    for name, exists in ((CONFIG, config is not None), (weights.FILE, path is not None)):
        if not exists:
            raise UserError(
                f'{folder} holds no {name}; a Hugging Face ViT has {CONFIG} and {weights.FILE} in it.'
            )
    kind = _find_kind(folder / CONFIG, config)
    config = _read_config(folder / CONFIG, config, kind)
    raw = weights.read_arrays(path)
    prefix = f'{kind.model_type}.'
    prefix = prefix if any(name.startswith(prefix) for name in raw) else ''
    kernel = convert.get_array(raw, path, f'{prefix}embeddings.patch_embeddings.projection.weight', 4)
    if kernel.shape[2] != kernel.shape[3] or kernel.shape[1] != 3:
        raise UserError(
            f'{path}: {prefix}embeddings.patch_embeddings.projection.weight is {format_shape(kernel)}; that '
            'of a ViT is [width, 3, patch, patch].'
        )
    mlp = convert.get_array(raw, path, f'{prefix}encoder.layer.0.{kind.block["mlp_in"]}.weight', 2)
    position = convert.get_array(raw, path, f'{prefix}embeddings.position_embeddings', 3)
    layers = config['num_hidden_layers'] or convert.count_numbered(
        raw, re.escape(prefix) + r'encoder\.layer\.(\d+)\.'
    )
    sizes = vit.Sizes(
        width=kernel.shape[0], layers=layers, mlp=mlp.shape[0], heads=config['num_attention_heads']
    )
    convert.check_heads(path, sizes)
    leading = 1 + (kind.model_type == 'deit')
    image_size = convert.image_size(path, position, kernel.shape[2], leading)
    registers = _count_registers(folder / CONFIG, path, config, kind, raw, prefix)
    raw = kinds.fold(kind, path, raw, prefix, sizes.width, layers)
    head, pooling = kinds.head_of(kind, raw)
    has_head = convert.has_head(raw, path, f'{head}.weight', f'{head}.bias', 2)
    has_pooler = any(f'{prefix}pooler.dense.{leaf}' in raw for leaf in ('weight', 'bias'))
    architecture = Architecture(
        sizes=sizes,
        patch=kernel.shape[2],
        image_size=image_size,
        num_outputs=len(raw[f'{head}.weight']) if has_head else 0,
        activation=config['hidden_act'],
        epsilon=config['layer_norm_eps'],
        # A classifier reads the class token and not the pooler.
        pre_logits=has_pooler and not has_head,
        registers=registers,
        pooling=pooling if has_head else 'class',
    )
    if architecture.pre_logits and config['pooler_act'] != 'tanh':
        raise UserError(f'{folder / CONFIG}: pooler_act {config["pooler_act"]!r} is not known; it is tanh.')
    content = workdir.read_json(folder / preprocessing.FILE)
    image_options = kind.preprocessing
    if content is not None or not image_options:
        image_options = preprocessing.read(
            folder / preprocessing.FILE, content or {}, image_size, kind.processor
        )
    assumed = '' if content is not None else f'no {preprocessing.FILE}: images are shown as is usual'
    names = _read_label_names(folder / CONFIG, config, architecture.num_outputs, head)
    places_by_name = places(architecture, kind, prefix, head, not config['qkv_bias'])
    checkpoint = convert.to_checkpoint(location, path, architecture, image_options, raw, places_by_name)
    return checkpoint._replace(label_names=names, assumed=assumed, positions=kind.positions)


def _count_registers(config_path, path, config, kind, raw, prefix):
    if kind.model_type == 'deit':
        return 1
    if kind.model_type != 'dinov2_with_registers':
        return 0
    key = f'{prefix}embeddings.register_tokens'
    count = convert.get_array(raw, path, key, 3).shape[1]
    if config['num_register_tokens'] != count:
        raise UserError(
            f'{config_path}: num_register_tokens is {config["num_register_tokens"]!r}, but {key} has {count}.'
        )
    return count


def _read_label_names(path, config, count, head):
    """Reads the names of the head's outputs, in order; None without a head or if they are placeholders."""
    names = config['id2label']
    if not count or names is None:
        return None
    if not isinstance(names, dict) or set(names) != set(map(str, range(count))):
        description = (
            f'{len(names)} keys ({", ".join(list(names)[:3])}, ...)' if isinstance(names, dict) else names
        )
        raise UserError(
            f'{path}: id2label has {description}, but {head}.weight has {count} outputs, whose keys are "0" '
            f'to "{count - 1}".'
        )
    names = tuple(str(names[str(i)]) for i in range(count))
    # The placeholders of transformers.
    return None if names == tuple(f'LABEL_{i}' for i in range(count)) else names


def _find_kind(path, config):
    name = config.get('model_type', 'vit')
    if not isinstance(name, str) or name not in kinds.KINDS:
        raise UserError(f'{path}: model_type {name!r} is not known. Known: {", ".join(kinds.KINDS)}.')
    if config.get('use_swiglu_ffn'):
        raise UserError(
            f'{path}: use_swiglu_ffn is {config["use_swiglu_ffn"]!r}: its MLPs have a gate, which those of '
            'td_jax have not; the smaller ones of its kind (small, base, large) have none.'
        )
    return kinds.KINDS[name]


def _read_config(path, config, kind):
    """Reads and checks the relevant fields of a config.json; defaults are those of transformers."""
    defaults = {
        'num_hidden_layers': 0,
        'num_attention_heads': 12,
        'layer_norm_eps': kind.epsilon,
        'hidden_act': 'gelu',
        'pooler_act': 'tanh',
        'qkv_bias': True,
        'num_register_tokens': 4,
        'id2label': None,
    }
    fields = {key: config.get(key, value) for key, value in defaults.items()}
    for key, number_type in (
        ('num_hidden_layers', int),
        ('num_attention_heads', int),
        ('layer_norm_eps', float),
    ):
        value = fields[key]
        is_number = isinstance(value, (number_type, int)) and not isinstance(value, bool)
        # JSON may hold NaN and infinity.
        if not is_number or not 0 <= value < math.inf or (value == 0 and key in config):
            raise UserError(f'{path}: {key} is {value!r}; it is a number above 0.')
    activation = fields['hidden_act']
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(f'{path}: hidden_act {activation!r} is not known. Known: {", ".join(ACTIVATIONS)}.')
    return {**fields, 'hidden_act': ACTIVATIONS[activation]}


def places(
    architecture: Architecture, kind: Kind, prefix: str, head: str, without_bias: bool
) -> dict[str, Place]:
    """Maps our names to places in a file, whose Dense kernels are [outputs, inputs].

    Args:
      architecture: of the file.
      kind: of the model.
      prefix: of all names except that of the head.
      head: its name.
      without_bias: whether the biases of query, key and value are optional.
    """
    width, patch = architecture.sizes.width, architecture.patch
    projection = f'{prefix}embeddings.patch_embeddings.projection'
    head_inputs = width if architecture.pooling == 'class' else 2 * width
    places_by_name = {
        'embedding/kernel': Place(f'{projection}.weight', (width, 3, patch, patch), (2, 3, 1, 0)),
        'embedding/bias': Place(f'{projection}.bias'),
        'cls': Place(f'{prefix}embeddings.cls_token'),
        'pos_embedding': Place(f'{prefix}embeddings.position_embeddings'),
        **convert.norm_places('norm', f'{prefix}layernorm'),
        **convert.dense_places('pre_logits_layer', f'{prefix}pooler.dense', width, width),
        **convert.dense_places('head_layer', head, head_inputs, architecture.num_outputs),
    }
    if architecture.registers:
        token = 'distillation_token' if kind.model_type == 'deit' else 'register_tokens'
        places_by_name['register_tokens'] = Place(f'{prefix}embeddings.{token}')
    optional = [f'attention/{name}' for name in ('query', 'key', 'value')] if without_bias else []
    return places_by_name | convert.block_places(
        architecture.sizes, kind.block, f'{prefix}encoder.layer.', optional
    )


def write(path, architecture: Architecture, image_options: Preprocessing, params, label_names):
    """Writes parameters of a vit.ViT to a new folder, as a classifier of the kind by `kinds.kind_of`.

    The folder has the two files of the model and the one for preprocessing.
    """
    # Imported here, because only such files need it.
    from safetensors import numpy as safetensors_numpy

    kind, _ = kinds.kind_of(architecture)
    sizes, side, registers = architecture.sizes, architecture.image_size, architecture.registers
    has_two = architecture.pooling == 'class_and_register'
    # The last one of several names for an activation.
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    config = {
        'architectures': [kind.classes[has_two]],
        'model_type': kind.model_type,
        'hidden_size': sizes.width,
        'num_hidden_layers': sizes.layers,
        'num_attention_heads': sizes.heads,
        **({'mlp_ratio': sizes.mlp // sizes.width} if kind.scales else {'intermediate_size': sizes.mlp}),
        **({'use_swiglu_ffn': False, 'layerscale_value': 1.0} if kind.scales else {}),
        **({'num_register_tokens': registers} if kind.scales and registers else {}),
        'hidden_act': names[architecture.activation],
        'layer_norm_eps': architecture.epsilon,
        'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0,
        'qkv_bias': True,
        'image_size': side,
        'patch_size': architecture.patch,
        'num_channels': 3,
        'num_labels': len(label_names),
        'id2label': {str(i): str(name) for i, name in enumerate(label_names)},
        'label2id': {str(name): i for i, name in enumerate(label_names)},
        'dtype': 'float32',
    }
    prefix, head = f'{kind.model_type}.', kinds.HEADS[0] if has_two else kinds.HEAD
    arrays = convert.to_file_arrays(params, places(architecture, kind, prefix, head, without_bias=False))
    arrays = kinds.unfold(kind, architecture, arrays, prefix)
    path.mkdir()
    for name, content in ((CONFIG, config), (preprocessing.FILE, preprocessing.to_json(image_options))):
        (path / name).write_text(json.dumps(content, indent=2) + '\n')
    # transformers refuses a file without this entry.
    (path / weights.FILE).write_bytes(safetensors_numpy.save(arrays, metadata={'format': 'pt'}))
