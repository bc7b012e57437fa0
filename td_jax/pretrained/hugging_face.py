"""The folder of a Hugging Face ViT, read and written."""

import json
import re

from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.models import vit
from td_jax.pretrained import convert, preprocessing
from td_jax.pretrained.architecture import Architecture, Checkpoint, Shown
from td_jax.pretrained.convert import Place, shape_of

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
# Its names of activations -> ours. Its `gelu` is the exact one.
ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}


def read(location: str, folder) -> Checkpoint:
    """Reads a folder.

    Args:
      location: as the user wrote it.
      folder: holds CONFIG and WEIGHTS.

    Raises:
      UserError: a file is missing or damaged, or it is no ViT; the first key that is missing or has a wrong
        shape is named.
    """
    config = workdir.read_json(folder / CONFIG)
    for name, there in ((CONFIG, config is not None), (WEIGHTS, (folder / WEIGHTS).is_file())):
        if not there:
            raise UserError(f'{folder} holds no {name}; a Hugging Face ViT has {CONFIG} and {WEIGHTS} in it.')
    path = folder / WEIGHTS
    config = _config(folder / CONFIG, config)
    raw = _tensors(path)
    prefix = 'vit.' if any(name.startswith('vit.') for name in raw) else ''
    kernel = convert.array(raw, path, f'{prefix}embeddings.patch_embeddings.projection.weight', 4)
    if kernel.shape[2] != kernel.shape[3] or kernel.shape[1] != 3:
        raise UserError(
            f'{path}: {prefix}embeddings.patch_embeddings.projection.weight is {shape_of(kernel)}; that of a '
            'ViT is [width, 3, patch, patch].'
        )
    mlp = convert.array(raw, path, f'{prefix}encoder.layer.0.intermediate.dense.weight', 2)
    position = convert.array(raw, path, f'{prefix}embeddings.position_embeddings', 3)
    layers = config['num_hidden_layers'] or convert.count(raw, re.escape(prefix) + r'encoder\.layer\.(\d+)\.')
    sizes = vit.Sizes(
        width=kernel.shape[0], layers=layers, mlp=mlp.shape[0], heads=config['num_attention_heads']
    )
    convert.check_heads(path, sizes)
    has_head = 'classifier.weight' in raw and raw['classifier.weight'].any()
    architecture = Architecture(
        sizes=sizes,
        patch=kernel.shape[2],
        image_size=convert.image_size(path, position, kernel.shape[2]),
        num_outputs=convert.array(raw, path, 'classifier.weight', 2).shape[0] if has_head else 0,
        activation=config['hidden_act'],
        epsilon=config['layer_norm_eps'],
        # Where there is a classifier, it reads the class token and not the pooler.
        pre_logits=f'{prefix}pooler.dense.weight' in raw and not has_head,
    )
    if architecture.pre_logits and config['pooler_act'] != 'tanh':
        raise UserError(f'{folder / CONFIG}: pooler_act {config["pooler_act"]!r} is not known; it is tanh.')
    said = workdir.read_json(folder / preprocessing.FILE)
    shown = preprocessing.read(folder / preprocessing.FILE, said or {}, architecture.image_size)
    assumed = '' if said is not None else f'no {preprocessing.FILE}: images are shown as is usual'
    names = _label_names(folder / CONFIG, config, architecture.num_outputs)
    found = places(architecture, prefix, not config['qkv_bias'])
    checkpoint = convert.converted(location, path, architecture, shown, raw, found)
    return checkpoint._replace(label_names=names, assumed=assumed)


def _label_names(path, config, count):
    """The names of the head's outputs, in their order; None where there is no head, or only made-up names."""
    names = config['id2label']
    if not count or names is None:
        return None
    if not isinstance(names, dict) or set(names) != set(map(str, range(count))):
        shown = f'{len(names)} keys ({", ".join(list(names)[:3])}, ...)' if isinstance(names, dict) else names
        raise UserError(
            f'{path}: id2label has {shown}, but classifier.weight has {count} outputs, whose keys are "0" to '
            f'"{count - 1}".'
        )
    names = tuple(str(names[str(i)]) for i in range(count))
    # As transformers calls labels that nobody named.
    return None if names == tuple(f'LABEL_{i}' for i in range(count)) else names


def _config(path, config):
    """The fields of a config.json that matter, checked; what it does not say is as in transformers."""
    if config.get('model_type', 'vit') != 'vit':
        raise UserError(f'{path}: model_type {config["model_type"]!r} is not known; it is vit.')
    defaults = {
        'num_hidden_layers': 0,
        'num_attention_heads': 12,
        'layer_norm_eps': 1e-12,
        'hidden_act': 'gelu',
        'pooler_act': 'tanh',
        'qkv_bias': True,
        'id2label': None,
    }
    fields = {key: config.get(key, value) for key, value in defaults.items()}
    for key, kind in (('num_hidden_layers', int), ('num_attention_heads', int), ('layer_norm_eps', float)):
        value = fields[key]
        is_kind = isinstance(value, (kind, int)) and not isinstance(value, bool)
        if not is_kind or value < 0 or (value == 0 and key in config):
            raise UserError(f'{path}: {key} is {value!r}; it is a number above 0.')
    if fields['hidden_act'] not in ACTIVATIONS:
        raise UserError(
            f'{path}: hidden_act {fields["hidden_act"]!r} is not known. Known: {", ".join(ACTIVATIONS)}.'
        )
    return {**fields, 'hidden_act': ACTIVATIONS[fields['hidden_act']]}


def places(architecture: Architecture, prefix: str, without_bias: bool) -> dict[str, Place]:
    """Our names -> where they are in such a file, whose Dense kernels are [outputs, inputs].

    Args:
      architecture: what the file holds.
      prefix: of all names but those of the classifier.
      without_bias: whether query, key and value may lack theirs.
    """
    width, mlp, patch = architecture.sizes.width, architecture.sizes.mlp, architecture.patch

    def dense(ours, theirs, inputs, outputs, optional_bias=False):
        return {
            f'{ours}/kernel': Place(f'{theirs}.weight', (outputs, inputs), (1, 0)),
            f'{ours}/bias': Place(f'{theirs}.bias', (outputs,), optional=optional_bias),
        }

    def norm(ours, theirs):
        return {f'{ours}/scale': Place(f'{theirs}.weight'), f'{ours}/bias': Place(f'{theirs}.bias')}

    projection = f'{prefix}embeddings.patch_embeddings.projection'
    found = {
        'embedding/kernel': Place(f'{projection}.weight', (width, 3, patch, patch), (2, 3, 1, 0)),
        'embedding/bias': Place(f'{projection}.bias'),
        'cls': Place(f'{prefix}embeddings.cls_token'),
        'pos_embedding': Place(f'{prefix}embeddings.position_embeddings'),
        **norm('norm', f'{prefix}layernorm'),
        **dense('pre_logits_layer', f'{prefix}pooler.dense', width, width),
        **dense('head_layer', 'classifier', width, architecture.num_outputs),
    }
    for i in range(architecture.sizes.layers):
        ours, theirs = f'block_{i}', f'{prefix}encoder.layer.{i}'
        attention = f'{theirs}.attention'
        found |= norm(f'{ours}/attention_norm', f'{theirs}.layernorm_before')
        for name in ('query', 'key', 'value'):
            found |= dense(
                f'{ours}/attention/{name}', f'{attention}.attention.{name}', width, width, without_bias
            )
        found |= dense(f'{ours}/attention/out', f'{attention}.output.dense', width, width)
        found |= norm(f'{ours}/mlp_norm', f'{theirs}.layernorm_after')
        found |= dense(f'{ours}/mlp_in', f'{theirs}.intermediate.dense', width, mlp)
        found |= dense(f'{ours}/mlp_out', f'{theirs}.output.dense', mlp, width)
    return found


def _tensors(path):
    """The arrays of a .safetensors file, by name."""
    # Only those who read such a file need it.
    import safetensors
    from safetensors import numpy as safetensors_numpy

    try:
        return safetensors_numpy.load_file(path)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(
            f'{path} is damaged or no .safetensors ({workdir.reason(error)}); delete it and get it once more.'
        ) from error


def write(path, architecture: Architecture, shown: Shown, params, label_names):
    """Writes parameters of a vit.ViT to a new folder as a ViTForImageClassification.

    Beside the two files of the model, the folder has the one that says how images are shown to it.
    """
    # Only those who write such a file need it.
    from safetensors import numpy as safetensors_numpy

    sizes, side = architecture.sizes, architecture.image_size
    # Of several names for one activation, the last.
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    config = {
        'architectures': ['ViTForImageClassification'],
        'model_type': 'vit',
        'hidden_size': sizes.width,
        'num_hidden_layers': sizes.layers,
        'num_attention_heads': sizes.heads,
        'intermediate_size': sizes.mlp,
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
    tensors = convert.in_file(params, places(architecture, 'vit.', without_bias=False))
    path.mkdir()
    for name, content in ((CONFIG, config), (preprocessing.FILE, preprocessing.written(shown, side))):
        (path / name).write_text(json.dumps(content, indent=2) + '\n')
    # transformers refuses a file that does not say so, whoever wrote it.
    (path / WEIGHTS).write_bytes(safetensors_numpy.save(tensors, metadata={'format': 'pt'}))
