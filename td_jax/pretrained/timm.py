"""The folder of a timm model as it is published: config.json with `architecture`, and model.safetensors."""

from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.pretrained import convert, hugging_face, preprocessing, timm_convolutions, timm_vit
from td_jax.pretrained.architecture import Checkpoint

# Names of architectures -> what reads the file of one, the arguments that it understands, and what its head
# reads, as timm says it.
READERS = {
    timm_vit.NAMES: (timm_vit.read, timm_vit.ARGUMENTS, 'token'),
    timm_convolutions.EFFICIENTNETS: (timm_convolutions.read_efficientnet, (), 'avg'),
    timm_convolutions.RESNETS: (timm_convolutions.read_resnet, (), 'avg'),
}
# Arguments without effect on what a model computes that is not trained, or that its arrays tell.
HARMLESS = (
    *('num_classes', 'in_chans', 'drop_rate', 'drop_path_rate', 'proj_drop_rate', 'attn_drop_rate'),
    *('img_size', 'dynamic_img_size', 'strict_img_size', 'global_pool'),
)


def recognises(folder) -> bool:
    """Whether a folder is one of timm's: Hugging Face says model_type where timm says architecture."""
    config = workdir.read_json(folder / hugging_face.CONFIG)
    return isinstance(config, dict) and 'architecture' in config and 'model_type' not in config


def read(location: str, folder) -> Checkpoint:
    """Reads a folder.

    Args:
      location: as the user wrote it.
      folder: holds config.json and model.safetensors.

    Raises:
      UserError: a file is missing or damaged, an architecture or an argument of it that td_jax does not know,
        or preprocessing that it does not do; the first key that is missing or has a wrong shape is named, and
        the first that td_jax has no place for.
    """
    path = folder / hugging_face.CONFIG
    config = workdir.read_json(path)
    weights = folder / hugging_face.WEIGHTS
    if not weights.is_file():
        raise UserError(f'{folder} holds no {weights.name}; a timm model has {path.name} and {weights.name}.')
    name = config['architecture']
    matches = {pattern: pattern.fullmatch(name) if isinstance(name, str) else None for pattern in READERS}
    pattern = next((pattern for pattern, match in matches.items() if match), None)
    if pattern is None:
        known = f'{timm_convolutions.KNOWN}, {timm_vit.KNOWN}'
        raise UserError(f'{path}: architecture {name!r} is not known. Known: {known}.')
    read_file, arguments, pool = READERS[pattern]
    _check_arguments(path, config, (*arguments, *HARMLESS), pool)
    shown = preprocessing.read_timm(path, config)
    raw = hugging_face.tensors(weights)
    architecture, found, places = read_file(weights, config, matches[pattern], raw)
    names = _label_names(path, config, architecture.num_outputs)
    checkpoint = convert.converted(location, weights, architecture, shown, found, places)
    if checkpoint.unused:
        raise UserError(f'{weights}: {checkpoint.unused[0]} is not part of {name} as td_jax knows it.')
    return checkpoint._replace(label_names=names, positions=timm_vit.POSITIONS)


def _check_arguments(path, config, known, pool):
    """Refuses arguments that make another model of an architecture, and a head that reads something else."""
    arguments = config.get('model_args') or {}
    if not isinstance(arguments, dict):
        raise UserError(f'{path}: model_args is {arguments!r}; it is an object.')
    for key, value in arguments.items():
        if key not in known and value is not None:
            raise UserError(
                f'{path}: model_args has {key} {value!r}, which td_jax does not know; known: '
                f'{", ".join(known)}.'
            )
    # '' is that of a model without a head.
    there = arguments.get('global_pool') or config.get('global_pool') or pool
    if there != pool:
        raise UserError(
            f'{path}: global_pool is {there!r}, but the head of td_jax reads what timm calls {pool}; take a '
            f'model whose global_pool is {pool}.'
        )


def _label_names(path, config, count):
    """The names of the head's outputs, where the file has them."""
    names = config.get('label_names')
    if not count or names is None:
        return None
    if not isinstance(names, list) or len(names) != count:
        raise UserError(f'{path}: label_names are not one for each of the {count} outputs of the head.')
    return tuple(map(str, names))
