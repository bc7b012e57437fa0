"""Reads the folder of a published timm model: config.json with `architecture`, and model.safetensors."""

from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.pretrained import convert, hugging_face, preprocessing, timm_convolutions, timm_vit, weights
from td_jax.pretrained.architecture import Checkpoint

# Names of architectures -> function that reads a file, arguments that it supports, and timm's name for the
# input of the head.
READERS = {
    timm_vit.NAMES: (timm_vit.read, timm_vit.ARGUMENTS, 'token'),
    timm_convolutions.EFFICIENTNETS: (timm_convolutions.read_efficientnet, (), 'avg'),
    timm_convolutions.RESNETS: (timm_convolutions.read_resnet, (), 'avg'),
}
# Arguments that affect only training, or that follow from the arrays.
HARMLESS = (
    *('num_classes', 'in_chans', 'drop_rate', 'drop_path_rate', 'proj_drop_rate', 'attn_drop_rate'),
    *('img_size', 'dynamic_img_size', 'strict_img_size', 'global_pool'),
)


def recognises(folder) -> bool:
    """Whether a folder is timm's, whose config has `architecture` instead of `model_type`."""
    config = workdir.read_json(folder / hugging_face.CONFIG)
    return isinstance(config, dict) and 'architecture' in config and 'model_type' not in config


def read(location: str, folder) -> Checkpoint:
    """Makes a Checkpoint from a folder.

    Args:
      location: as the user wrote it.
      folder: contains config.json and the files of `weights`.

    Raises:
      UserError: a missing or damaged file, or an unknown architecture, argument or preprocessing; names the
        first key that is missing, has a wrong shape or is not used.
    """
    path = folder / hugging_face.CONFIG
    config = workdir.read_json(path)
    file = weights.find(folder)
    if file is None:
        raise UserError(f'{folder} holds no {weights.FILE}; a timm model has {path.name} and {weights.FILE}.')
    name = config['architecture']
    matches = {pattern: pattern.fullmatch(name) if isinstance(name, str) else None for pattern in READERS}
    pattern = next((pattern for pattern, match in matches.items() if match), None)
    if pattern is None:
        known = f'{timm_convolutions.KNOWN}, {timm_vit.KNOWN}'
        raise UserError(f'{path}: architecture {name!r} is not known. Known: {known}.')
    read_file, arguments, pool = READERS[pattern]
    _check_arguments(path, config, (*arguments, *HARMLESS), pool)
    image_options = preprocessing.read_timm(path, config)
    raw = weights.read_arrays(file)
    architecture, arrays, places = read_file(file, config, matches[pattern], raw)
    names = _read_label_names(path, config, architecture.num_outputs)
    checkpoint = convert.to_checkpoint(location, file, architecture, image_options, arrays, places)
    # Of an architecture without outputs, a head of zeros is not used.
    heads = {places[f'head_layer/{leaf}'].key for leaf in ('kernel', 'bias')}
    unknown = [key for key in checkpoint.unused if key not in heads]
    if unknown:
        raise UserError(f'{file}: {unknown[0]} is not part of {name} as td_jax knows it.')
    return checkpoint._replace(label_names=names, positions=timm_vit.POSITIONS)


def _check_arguments(path, config, known, pool):
    """Refuses arguments that change an architecture, and a head with another input."""
    arguments = config.get('model_args') or {}
    if not isinstance(arguments, dict):
        raise UserError(f'{path}: model_args is {arguments!r}; it is an object.')
    for key, value in arguments.items():
        if key not in known and value is not None:
            raise UserError(
                f'{path}: model_args has {key} {value!r}, which td_jax does not know; known: '
                f'{", ".join(known)}.'
            )
    # It is '' for a model without a head.
    pooling = arguments.get('global_pool') or config.get('global_pool') or pool
    if pooling != pool:
        raise UserError(
            f'{path}: global_pool is {pooling!r}, but the head of td_jax reads what timm calls {pool}; take '
            f'a model whose global_pool is {pool}.'
        )


def _read_label_names(path, config, count):
    """Reads the names of the head's outputs; None without a head or names."""
    fields = preprocessing.timm_fields(path, config)
    # Early versions of timm called them labels.
    candidates = config.get('label_names'), fields.get('label_names'), fields.get('labels')
    names = next((names for names in candidates if names is not None), None)
    if not count or names is None:
        return None
    if not isinstance(names, list) or len(names) != count:
        raise UserError(f'{path}: label_names are not one for each of the {count} outputs of the head.')
    return tuple(map(str, names))
