"""A config as a flat dict and as JSON, and the config of its teacher's run."""

import json

import ml_collections

from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.method import objectives

# The version of the rules of training (docs/decisions.md), and the values of the first version, whose configs
# do not store them.
PROTOCOL = common.get_config().protocol
FIRST_PROTOCOL = {'protocol': 1, 'dataset.labelled_by': 'first'}
# Keys of teacher.dataset that take the student's value where they are 0 or ''.
INHERITED_KEYS = 'image_size', 'resize', 'crop_mode', 'crop_pct'


def flatten(config) -> dict:
    """Flattens a config, or the dict read from its JSON, to {dotted key: value}."""
    if isinstance(config, (ml_collections.ConfigDict, ml_collections.FrozenConfigDict)):
        config = config.to_dict()
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f'{key}.{rest}': inner for rest, inner in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def to_json(config) -> str:
    """The config as JSON text, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def make_explicit(stored: dict) -> dict:
    """Flattens a config read from JSON to {dotted key: value}, with what the first protocol left implicit."""
    flat = flatten(stored)
    return flat if 'protocol' in flat else FIRST_PROTOCOL | flat


def from_json(stored: dict) -> ml_collections.ConfigDict:
    """Makes the config that `to_json` wrote from the dict that was read."""
    config = common.get_config()
    flat = make_explicit(stored)
    for key in sorted(flat.keys() & flatten(config).keys()):
        value = tuple(flat[key]) if isinstance(flat[key], list) else flat[key]
        config.update_from_flattened_dict({key: value})
    for key in flat.keys() - flatten(config).keys():
        path, _, name = key.rpartition('.')
        if path not in ('model.embeddings', 'teacher.model.embeddings') and not key.startswith('own.'):
            raise UserError(f'{key} is a key of another version of td_jax.')
        place = config
        for part in path.split('.'):
            if part not in place:
                place[part] = ml_collections.ConfigDict()
            place = place[part]
        place[name] = flat[key]
    return config


# --- Teacher and labels ----------------------------------------------------------------------------


def has_teacher(config) -> bool:
    """Whether a run has a teacher: its method reads one, or its student starts from one."""
    return objectives.reads_teacher(config) or config.model.initial == 'teacher'


def trains_teacher(config) -> bool:
    """Whether a run's teacher is trained by a run: no public checkpoint, and not left at initialization."""
    return has_teacher(config) and not config.teacher.pretrained and not keeps_initial_teacher(config)


def has_few_labels(config) -> bool:
    """Whether a run, or that of its teacher, trains on a part of the examples of a class."""
    teacher_has_few = trains_teacher(config) and config.teacher.dataset.examples_per_class
    return bool(config.dataset.examples_per_class or teacher_has_few)


def has_unlabelled(config) -> bool:
    """Whether a run trains on examples without labels, too: it names some, and has a term that reads them."""
    return bool(config.dataset.unlabelled and objectives.active_terms(config))


def keeps_initial_teacher(config) -> bool:
    """Whether a run's teacher is left as its model's `init` makes it, untrained."""
    return config.teacher.control == 'untrained' or config.teacher.num_steps == 0


def teacher_run(config):
    """Makes the config of the supervised run that trains `config`'s teacher."""
    run = config.copy_and_resolve_references()
    with run.unlocked():
        run.method, run.role = 'supervised', 'teacher'
        run.num_seeds = 1
        run.seed = config.teacher.seed
        run.num_steps = config.teacher.num_steps
        # Options of the students; a teacher whose step is to be chosen needs a run of its own.
        run.keep, run.patience = 'last', 0
        run.model = config.teacher.model.copy_and_resolve_references()
        run.optimizer = config.teacher.optimizer.copy_and_resolve_references()
        run.unlabelled_batch_size, run.dataset.unlabelled = 0, ''
        task = config.teacher.dataset.to_dict()
        run.dataset.update({key: value for key, value in task.items() if value or key not in INHERITED_KEYS})
    return run
