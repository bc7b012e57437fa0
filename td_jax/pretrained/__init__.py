"""A public ViT checkpoint -> our parameter tree.

Read are the .npz files of google-research/vision_transformer and the folders of Hugging Face's ViT
(config.json and model.safetensors), from a disk or from where they are published. Nothing that could run
code is ever loaded.
"""

import hashlib
import http.client
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.models import vit

# Where the checkpoints of the ViT paper are published.
PUBLIC = 'gs://vit_models/imagenet21k'
HUB = 'https://huggingface.co'
# Classes of ImageNet-21k, which they predict.
PUBLIC_LABELS = 21_843
CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
# Hugging Face's names of activations -> ours. Its `gelu` is the exact one.
HF_ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}
TIMEOUT = 30  # Seconds without a byte, after which a download is given up.


class Architecture(NamedTuple):
    """What a checkpoint's shapes, and the config beside them, say about the model."""

    sizes: vit.Sizes
    patch: int
    image_size: int  # side in pixels of the images that the position embeddings are for
    num_outputs: int  # 0 where there is no head
    activation: str  # a name of vit.ACTIVATIONS
    epsilon: float
    pre_logits: bool


class Checkpoint(NamedTuple):
    """A checkpoint in our names."""

    location: str  # as the user wrote it
    architecture: Architecture
    params: dict  # float32, nested as vit.ViT's parameters; without `head_layer` where there is no head
    unused: tuple[str, ...] = ()  # names in the file that became no parameter


class Report(NamedTuple):
    """What became of each parameter, by name, 'block_0/mlp_in/kernel'."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    initialised: tuple[str, ...]
    unused: tuple[str, ...]


class _Source(NamedTuple):
    """Where one of our parameters is in a file."""

    key: str
    shape: tuple[int, ...] | None = None  # in the file; None: ours
    order: tuple[int, ...] | None = None  # of its axes in ours, which are joined or cut afterwards
    optional: bool = False  # absent means zeros


def read(location: str) -> Checkpoint:
    """Reads a checkpoint, downloading it first if need be.

    Args:
      location: an .npz of google-research/vision_transformer (a path, ~ expanded, gs://BUCKET/OBJECT or
        https://...), or a Hugging Face ViT (a folder, or hf://OWNER/NAME). What is downloaded is kept in
        $TD_JAX_CACHE, ~/.cache/td_jax if that is not set; hf:// is kept where huggingface_hub keeps it.

    Raises:
      UserError: nothing there and no network, a damaged file, or not a ViT; the first key that is missing
        or has a wrong shape is named.
    """
    if location.startswith('hf://'):
        path = _snapshot(location)
    elif '://' in location:
        path = _download(location)
    else:
        path = workdir.resolve(location)
    if path.is_dir():
        return _read_hugging_face(location, path)
    if path.suffix == '.safetensors':
        raise UserError(f'{path}: give its folder, which holds {CONFIG} too.')
    return _read_google(location, path)


def fit(checkpoint: Checkpoint, initial) -> tuple[dict, Report]:
    """Puts a checkpoint's parameters into the tree of a model.

    A head for another number of outputs stays as it is in `initial`, and so does one behind other
    pre-logits, whose input it would not know. Position embeddings are resized to the model's grid. Blocks
    that the model does not have are left out.

    Args:
      checkpoint: what `read` returned.
      initial: the parameters of a vit.ViT, as its `init` makes them.

    Returns:
      parameters of `initial`'s names and shapes, and what became of each

    Raises:
      UserError: a parameter around or in the blocks that the checkpoint lacks or has in another shape.
    """
    theirs = _flat(checkpoint.params)
    ours = _flat(initial)
    has_pre_logits = any(name.startswith('pre_logits_layer/') for name in ours)
    head = 'head_layer/kernel'
    keeps_head = (
        head in theirs
        and head in ours
        and theirs[head].shape == ours[head].shape
        and checkpoint.architecture.pre_logits == has_pre_logits
    )
    params, loaded, resized, initialised = {}, [], [], []
    for name, value in ours.items():
        if name.startswith('head_layer/') and not keeps_head:
            params[name] = value
            initialised.append(name)
            continue
        if name not in theirs:
            hint = ' Set pre_logits=False in the model.' if name.startswith('pre_logits_layer/') else ''
            raise UserError(f'{checkpoint.location} has no {name}, {_shape(value)} in the model.{hint}')
        found = theirs[name]
        if name == 'pos_embedding' and found.shape != value.shape and found.shape[-1] == value.shape[-1]:
            found = resize_positions(found, value.shape[1] - 1)
            resized.append(name)
        else:
            loaded.append(name)
        if found.shape != value.shape:
            raise UserError(
                f'{name} is {_shape(found)} in {checkpoint.location}, but {_shape(value)} in the model.'
            )
        params[name] = found
    unused = [name for name in theirs if name not in {*loaded, *resized}]
    report = Report(*map(tuple, (loaded, resized, initialised, [*unused, *checkpoint.unused])))
    return flax.traverse_util.unflatten_dict(params, sep='/'), report


def describe(report: Report) -> str:
    """The report for a person: a line for what was loaded, and one for each kind of exception there is."""
    lines = [f'{len(report.loaded)} parameters loaded']
    for names, what in (
        (report.resized, 'resized'),
        (report.initialised, 'newly initialised'),
        (report.unused, 'unused'),
    ):
        if names:
            lines.append(f'{len(names)} {what}: {_summary(names)}')
    return '\n'.join(lines)


def _summary(names):
    """The modules of some parameters, the first few of them by name."""
    modules = list(dict.fromkeys(name.split('/')[0] for name in names))
    shown = modules[:5]
    more = f' and {len(modules) - len(shown)} more' if len(modules) > len(shown) else ''
    return ', '.join(shown) + more


def resize_positions(embeddings, count: int):
    """Stretches the grid of position embeddings linearly; the class token's stays.

    As google-research/vision_transformer does (`scipy.ndimage.zoom` of order 1, corners on corners), but
    for one of its cases: from 28 to 14 and a few more, rounding puts the last row just outside the grid,
    and it comes out as zeros there. Here it is the old grid's last row.

    Args:
      embeddings: [1, 1 + n, width], of a square grid.
      count: patches of the new, square grid.

    Returns:
      [1, 1 + count, width]; `embeddings` itself where count is n

    Raises:
      UserError: n or count is not a square number.
    """
    _, tokens, width = embeddings.shape
    if count == tokens - 1:
        return embeddings
    old, new = _side(tokens - 1), _side(count)
    grid = np.asarray(embeddings)[0, 1:].reshape(old, old, width)
    grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1, mode='nearest')
    return np.concatenate([np.asarray(embeddings)[:, :1], grid.reshape(1, count, width)], axis=1)


def _side(count):
    """The side of a square grid of so many patches."""
    side = math.isqrt(max(count, 0))
    if side * side != count or not count:
        raise UserError(
            f'{count} patches are no square grid; position embeddings are resized on squares alone.'
        )
    return side


def overrides(architecture: Architecture, model_config, prefix: str = 'teacher.model') -> tuple[str, ...]:
    """The shortest changes to a model config that make the model this architecture.

    Args:
      architecture: of a checkpoint.
      model_config: the fields of `configs.common.model_config`.
      prefix: what stands before each field.

    Returns:
      PREFIX.FIELD=VALUE, one for each change; none where they fit already

    Raises:
      UserError: a model config that is none of a ViT.
    """
    return tuple(f'{prefix}.{key}={value}' for key, value in _changes(architecture, model_config).items())


def _changes(architecture, model_config):
    changes = {} if model_config.name == 'vit' else {'name': 'vit'}
    sizes, patch = vit.sizes_of(model_config)
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
            changes |= {
                key: value
                for key, value in architecture.sizes._asdict().items()
                if value != getattr(sizes, key)
            }
            if patch != architecture.patch:
                changes['patch'] = architecture.patch
    for key in ('activation', 'epsilon', 'pre_logits'):
        if model_config[key] != getattr(architecture, key):
            changes[key] = getattr(architecture, key)
    return changes


def check_architecture(checkpoint: Checkpoint, model_config, prefix: str = 'teacher.model'):
    """Compares a checkpoint with the model config that is to hold it.

    The image size is not compared: position embeddings are resized.

    Raises:
      UserError: one line that names each field that differs, both values, and the overrides that mend it.
    """
    changes = overrides(checkpoint.architecture, model_config, prefix)
    if not changes:
        return
    sizes, patch = vit.sizes_of(model_config)
    ours = {'name': model_config.name, **sizes._asdict(), 'patch': patch}
    theirs = {
        'name': 'vit',
        **checkpoint.architecture.sizes._asdict(),
        'patch': checkpoint.architecture.patch,
    }
    for key in ('activation', 'epsilon', 'pre_logits'):
        ours[key], theirs[key] = model_config[key], getattr(checkpoint.architecture, key)
    different = ', '.join(
        f'{key} is {theirs[key]} there, {ours[key]} here' for key in ours if ours[key] != theirs[key]
    )
    raise UserError(f'{checkpoint.location} does not fit {prefix}: {different}; set {" ".join(changes)}')


def module_of(architecture: Architecture, split: int, dtype: str = 'float32') -> vit.ViT:
    """The ViT of an architecture, without dropout; its head has one output where there is none."""
    return vit.ViT(
        sizes=architecture.sizes,
        patch=architecture.patch,
        num_outputs=architecture.num_outputs or 1,
        split=split,
        dropout=0.0,
        activation=architecture.activation,
        epsilon=architecture.epsilon,
        pre_logits=architecture.pre_logits,
        remat_policy='everything_saveable',
        dtype=dtype,
    )


# The .npz of google-research/vision_transformer.


def _read_google(location, path):
    raw = _renumbered(_arrays(path))
    kernel = _array(raw, path, 'embedding/kernel', 4)
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != 3:
        raise UserError(
            f'{path}: embedding/kernel is {_shape(kernel)}; that of a ViT is [patch, patch, 3, width].'
        )
    block = 'Transformer/encoderblock_0'
    query = _array(raw, path, f'{block}/MultiHeadDotProductAttention_0/query/kernel', 3)
    mlp = _array(raw, path, f'{block}/MlpBlock_0/Dense_0/kernel', 2)
    position = _array(raw, path, 'Transformer/posembed_input/pos_embedding', 3)
    sizes = vit.Sizes(
        width=kernel.shape[-1],
        layers=_count(raw, r'Transformer/encoderblock_(\d+)/'),
        mlp=mlp.shape[1],
        heads=query.shape[1],
    )
    # A head of zeros was never trained.
    has_head = 'head/kernel' in raw and raw['head/kernel'].any()
    architecture = Architecture(
        sizes=sizes,
        patch=kernel.shape[0],
        image_size=_image_size(path, position, kernel.shape[0]),
        num_outputs=_array(raw, path, 'head/kernel', 2).shape[1] if has_head else 0,
        activation='gelu_tanh',
        epsilon=1e-6,
        pre_logits='pre_logits/kernel' in raw,
    )
    return _converted(location, path, architecture, raw, google_sources(architecture))


def _renumbered(raw):
    """Numbers the modules of a block from 0 for each kind.

    The older files count through all kinds, LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2,
    MlpBlock_3, as Flax did before Linen.
    """
    pattern = re.compile(
        r'(Transformer/encoderblock_\d+/)(LayerNorm|MultiHeadDotProductAttention|MlpBlock)_(\d+)(/.*)'
    )
    found = {name: match.groups() for name in raw if (match := pattern.fullmatch(name))}
    numbers = {}
    for block, kind, number, _ in found.values():
        numbers.setdefault((block, kind), set()).add(int(number))
    # A single LayerNorm has no place to tell: its name stays, and what is missing is named.
    whole = {
        key: sorted(values) for key, values in numbers.items() if len(values) == 1 + (key[1] == 'LayerNorm')
    }

    def new(name):
        if name not in found:
            return name
        block, kind, number, rest = found[name]
        if (block, kind) not in whole:
            return name
        return f'{block}{kind}_{whole[block, kind].index(int(number))}{rest}'

    return {new(name): value for name, value in raw.items()}


def google_sources(architecture):
    """Our names -> where they are in such a file."""
    patch, width = architecture.patch, architecture.sizes.width
    sources = {
        'embedding/kernel': _Source('embedding/kernel', (patch, patch, 3, width)),
        'embedding/bias': _Source('embedding/bias'),
        'cls': _Source('cls'),
        'pos_embedding': _Source('Transformer/posembed_input/pos_embedding'),
        'norm/scale': _Source('Transformer/encoder_norm/scale'),
        'norm/bias': _Source('Transformer/encoder_norm/bias'),
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
                sources[f'block_{i}/{ours}/{leaf}'] = _Source(f'Transformer/encoderblock_{i}/{theirs}/{leaf}')
    for leaf in ('kernel', 'bias'):
        sources[f'pre_logits_layer/{leaf}'] = _Source(f'pre_logits/{leaf}')
        sources[f'head_layer/{leaf}'] = _Source(f'head/{leaf}')
    return sources


def _arrays(path):
    """The arrays of an .npz, by name."""
    try:
        # Without more said, NumPy refuses arrays of objects, whose reading could run code.
        with open(path, 'rb') as file, np.load(file) as arrays:
            return {name: arrays[name] for name in arrays}
    except FileNotFoundError as error:
        raise UserError(_absent(path)) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        # The last two: a lone array or other text, which is no archive to enter.
        raise UserError(
            f'{path} is damaged or no .npz ({_reason(error)}); delete it and get it once more.'
        ) from error


def _absent(path):
    """How to come by a file that is not there."""
    if path.suffix != '.npz':
        return (
            f'{path} is not there; give an .npz of google-research/vision_transformer or the folder of a '
            'Hugging Face ViT.'
        )
    return (
        f'{path} is not there. Get {path.name}, if it is of the ViT paper from '
        f'{_url(f"{PUBLIC}/{path.name}")}, and put it there, or give its address instead.'
    )


# The folder of a Hugging Face ViT.


def _read_hugging_face(location, folder):
    config = workdir.read_json(folder / CONFIG)
    for name, there in ((CONFIG, config is not None), (WEIGHTS, (folder / WEIGHTS).is_file())):
        if not there:
            raise UserError(f'{folder} holds no {name}; a Hugging Face ViT has {CONFIG} and {WEIGHTS} in it.')
    path = folder / WEIGHTS
    config = _hugging_face_config(folder / CONFIG, config)
    raw = _tensors(path)
    prefix = 'vit.' if any(name.startswith('vit.') for name in raw) else ''
    kernel = _array(raw, path, f'{prefix}embeddings.patch_embeddings.projection.weight', 4)
    if kernel.shape[2] != kernel.shape[3] or kernel.shape[1] != 3:
        raise UserError(
            f'{path}: {prefix}embeddings.patch_embeddings.projection.weight is {_shape(kernel)}; that of a '
            'ViT is [width, 3, patch, patch].'
        )
    mlp = _array(raw, path, f'{prefix}encoder.layer.0.intermediate.dense.weight', 2)
    position = _array(raw, path, f'{prefix}embeddings.position_embeddings', 3)
    layers = config['num_hidden_layers'] or _count(raw, re.escape(prefix) + r'encoder\.layer\.(\d+)\.')
    sizes = vit.Sizes(
        width=kernel.shape[0], layers=layers, mlp=mlp.shape[0], heads=config['num_attention_heads']
    )
    has_head = 'classifier.weight' in raw and raw['classifier.weight'].any()
    architecture = Architecture(
        sizes=sizes,
        patch=kernel.shape[2],
        image_size=_image_size(path, position, kernel.shape[2]),
        num_outputs=_array(raw, path, 'classifier.weight', 2).shape[0] if has_head else 0,
        activation=config['hidden_act'],
        epsilon=config['layer_norm_eps'],
        # Where there is a classifier, it reads the class token and not the pooler.
        pre_logits=f'{prefix}pooler.dense.weight' in raw and not has_head,
    )
    if architecture.pre_logits and config['pooler_act'] != 'tanh':
        raise UserError(f'{folder / CONFIG}: pooler_act {config["pooler_act"]!r} is not known; it is tanh.')
    sources = hugging_face_sources(architecture, prefix, not config['qkv_bias'])
    return _converted(location, path, architecture, raw, sources)


def _hugging_face_config(path, config):
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
    }
    fields = {key: config.get(key, value) for key, value in defaults.items()}
    for key, kind in (('num_hidden_layers', int), ('num_attention_heads', int), ('layer_norm_eps', float)):
        value = fields[key]
        is_kind = isinstance(value, (kind, int)) and not isinstance(value, bool)
        if not is_kind or value < 0 or (value == 0 and key in config):
            raise UserError(f'{path}: {key} is {value!r}; it is a number above 0.')
    if fields['hidden_act'] not in HF_ACTIVATIONS:
        raise UserError(
            f'{path}: hidden_act {fields["hidden_act"]!r} is not known. Known: {", ".join(HF_ACTIVATIONS)}.'
        )
    return {**fields, 'hidden_act': HF_ACTIVATIONS[fields['hidden_act']]}


def hugging_face_sources(architecture, prefix, without_bias):
    """Our names -> where they are in such a file, whose Dense kernels are [outputs, inputs]."""
    width, mlp, patch = architecture.sizes.width, architecture.sizes.mlp, architecture.patch

    def dense(ours, theirs, inputs, outputs, optional_bias=False):
        return {
            f'{ours}/kernel': _Source(f'{theirs}.weight', (outputs, inputs), (1, 0)),
            f'{ours}/bias': _Source(f'{theirs}.bias', (outputs,), optional=optional_bias),
        }

    def norm(ours, theirs):
        return {f'{ours}/scale': _Source(f'{theirs}.weight'), f'{ours}/bias': _Source(f'{theirs}.bias')}

    projection = f'{prefix}embeddings.patch_embeddings.projection'
    sources = {
        'embedding/kernel': _Source(f'{projection}.weight', (width, 3, patch, patch), (2, 3, 1, 0)),
        'embedding/bias': _Source(f'{projection}.bias'),
        'cls': _Source(f'{prefix}embeddings.cls_token'),
        'pos_embedding': _Source(f'{prefix}embeddings.position_embeddings'),
        **norm('norm', f'{prefix}layernorm'),
        **dense('pre_logits_layer', f'{prefix}pooler.dense', width, width),
        **dense('head_layer', 'classifier', width, architecture.num_outputs),
    }
    for i in range(architecture.sizes.layers):
        ours, theirs = f'block_{i}', f'{prefix}encoder.layer.{i}'
        attention = f'{theirs}.attention'
        sources |= norm(f'{ours}/attention_norm', f'{theirs}.layernorm_before')
        for name in ('query', 'key', 'value'):
            sources |= dense(
                f'{ours}/attention/{name}', f'{attention}.attention.{name}', width, width, without_bias
            )
        sources |= dense(f'{ours}/attention/out', f'{attention}.output.dense', width, width)
        sources |= norm(f'{ours}/mlp_norm', f'{theirs}.layernorm_after')
        sources |= dense(f'{ours}/mlp_in', f'{theirs}.intermediate.dense', width, mlp)
        sources |= dense(f'{ours}/mlp_out', f'{theirs}.output.dense', mlp, width)
    return sources


def _tensors(path):
    """The arrays of a .safetensors file, by name."""
    # Only those who read such a file need it.
    import safetensors
    from safetensors import numpy as safetensors_numpy

    try:
        return safetensors_numpy.load_file(path)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(
            f'{path} is damaged or no .safetensors ({_reason(error)}); delete it and get it once more.'
        ) from error


# What both kinds share.


def _converted(location, path, architecture, raw, sources):
    """Makes a Checkpoint of the arrays of a file and the places of ours in it."""
    sizes = architecture.sizes
    if sizes.width % sizes.heads:
        raise UserError(f'{path}: {sizes.heads} attention heads do not divide the width, {sizes.width}.')
    expected = shapes(architecture)
    params, used = {}, set()
    for name, shape in expected.items():
        source = sources[name]
        if source.optional and source.key not in raw:
            params[name] = np.zeros(shape, np.float32)
            continue
        in_file = source.shape or shape
        value = _array(raw, path, source.key, len(in_file))
        if value.shape != in_file:
            raise UserError(
                f'{path}: {source.key} is {_shape(value)}; with the other parameters it would be '
                f'{_shape(in_file)}.'
            )
        if source.order:
            value = value.transpose(source.order)
        params[name] = np.ascontiguousarray(value.reshape(shape), dtype=np.float32)
        used.add(source.key)
    unused = tuple(sorted(raw.keys() - used))
    tree = flax.traverse_util.unflatten_dict(params, sep='/')
    return Checkpoint(location, architecture, tree, unused)


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of an architecture, by name; those of the head only if it has one."""
    side = architecture.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    tree = jax.eval_shape(module_of(architecture, split=0).init, jax.random.key(0), {'image': image})[
        'params'
    ]
    return {
        name: value.shape
        for name, value in _flat(tree).items()
        if architecture.num_outputs or not name.startswith('head_layer/')
    }


def _array(raw, path, key, rank):
    """An array of a file by its name there."""
    if key not in raw:
        raise UserError(f'{path} is not a ViT that td_jax knows: {key} is missing.')
    value = raw[key]
    if value.ndim != rank or not value.size:
        raise UserError(f'{path}: {key} is {_shape(value)}; in a ViT it has {rank} axes, none of them empty.')
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(f'{path}: {key} is of {value.dtype}, not of floating-point numbers.')
    return value


def _count(raw, pattern):
    """One more than the largest number that a pattern finds at the start of a name."""
    return 1 + max(int(match[1]) for name in raw if (match := re.match(pattern, name)))


def _image_size(path, position, patch):
    count = position.shape[1] - 1
    side = math.isqrt(max(count, 0))
    if side * side != count or not count:
        raise UserError(
            f'{path}: position embeddings of {_shape(position)} are not of a class token and a square grid.'
        )
    return side * patch


def _flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep='/')


def _shape(value):
    return str(list(getattr(value, 'shape', value)))


def _reason(error):
    """Why something failed, the first line of it."""
    reason = getattr(error, 'reason', None) or getattr(error, 'strerror', None) or error
    lines = str(reason).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip('.')


# Where files come from.


def _url(location):
    """The https address of a location."""
    if location.startswith('gs://'):
        return 'https://storage.googleapis.com/' + urllib.parse.quote(location.removeprefix('gs://'))
    return location


def _download(location):
    """The path of a file that is published at gs:// or https://; downloaded once."""
    try:
        url = urllib.parse.urlsplit(_url(location))
    except ValueError as error:
        raise UserError(f'{location} is no address of a file: {_reason(error)}.') from error
    *folders, name = urllib.parse.unquote(url.path).split('/')
    parts = [part for part in folders if part]
    if url.scheme != 'https' or not url.hostname or not name or {'.', '..'} & {*parts, name}:
        raise UserError(
            f'{location} is no address of a file; it is https://HOST/FILE, gs://BUCKET/FILE, hf://OWNER/NAME '
            'or a path.'
        )
    if url.query:
        # What follows the question mark may choose the file.
        name = f'{hashlib.sha256(url.query.encode()).hexdigest()[:8]}-{name}'
    cache = workdir.resolve(os.environ.get('TD_JAX_CACHE') or '~/.cache/td_jax')
    path = cache.joinpath(url.hostname, *parts, name)
    if path.exists():
        return path
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own until it is whole: what is left of a process that was killed is never read.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix='.', suffix='.part', delete=False) as file:
            temporary = file.name
            _copy(location, url.geturl(), file)
            file.flush()
            os.fsync(file.fileno())
        if not zipfile.is_zipfile(temporary):
            raise OSError('what came is no .npz')
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f'{location} cannot be downloaded ({_reason(error)}). Get {name} from {url.geturl()} where there '
            f'is a network and put it at {path}, or give the path where it is.'
        ) from error
    finally:
        # Only what did not become the file is still there.
        if temporary:
            pathlib.Path(temporary).unlink(missing_ok=True)
    return path


def _copy(location, url, file):
    """Copies what is at an address to an open file.

    Raises:
      OSError, http.client.HTTPException: it is not there, cannot be reached, or ended early.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            print(f'td_jax: downloading {url}', file=sys.stderr)
            shutil.copyfileobj(response, file)
            length = response.headers['Content-Length']
            # A connection that breaks looks like an end to a reader of pieces.
            if length is not None and file.tell() != int(length):
                raise OSError(f'it ended after {file.tell()} of {length} bytes')
    except urllib.error.HTTPError as error:
        with error:
            if not location.startswith('gs://') or error.code not in (401, 403):
                raise OSError(f'{error.code} {error.reason}') from error
        _copy_private(location, file)


def _copy_private(location, file):
    """Copies an object of a bucket that asks who is there, with the credentials of this machine."""
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(location, 'rb') as source:
            shutil.copyfileobj(source, file)
    except tf.errors.OpError as error:
        raise OSError(f'the bucket is private, and {error.message}') from error


def _snapshot(location):
    """The folder that holds the two files of hf://OWNER/NAME."""
    name = location.removeprefix('hf://')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', name):
        raise UserError(f'{location} is no name of a Hugging Face model; it is hf://OWNER/NAME.')
    # Only those who name such a model need it.
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # Its errors, and those of its network library, have no base in common.
        raise UserError(
            f'{location} cannot be downloaded ({_reason(error)}). Get {CONFIG} and {WEIGHTS} from '
            f'{HUB}/{name} where there is a network, put both into a folder and give its path instead.'
        ) from error
