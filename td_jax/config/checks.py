"""Refuses values of a config that cannot work, before anything is built."""

import math
import numbers

import ml_collections
import numpy as np

from td_jax.config.effect import MODEL_OPTIONS
from td_jax.config.tree import (
    INHERITED_KEYS,
    PROTOCOL,
    flatten,
    has_teacher,
    has_unlabelled,
    keeps_initial_teacher,
)
from td_jax.configs import common
from td_jax.data import SOURCES, images, movielens, ratings, resizing
from td_jax.data import base as data
from td_jax.devices.remat import POLICIES
from td_jax.errors import UserError, suggest
from td_jax.method import objectives, shared
from td_jax.models import MODELS, efficientnet, resnet, resnet_bn, vit
from td_jax.training import optimizer

# {key of a name, of the student's model or optimizer and the teacher's: its choices}.
_OF_BOTH = {
    'model.activation': vit.ACTIVATIONS,
    'model.pooling': vit.POOLINGS,
    'model.padding': efficientnet.PADDINGS,
    'model.remat_policy': POLICIES,
    'model.name': MODELS,
    'optimizer.name': optimizer.OPTIMIZERS,
    'optimizer.schedule': optimizer.SCHEDULES,
    'optimizer.decayed': optimizer.DECAYED,
}
# {key of a name: its choices}.
CHOICES = {
    'method': objectives.METHODS,
    'role': ('student', 'teacher'),
    'dataset.name': SOURCES,
    'dataset.split': ('validation', 'test'),
    'dataset.split_by': ratings.SPLITS_BY,
    'dataset.labelled_by': ('seed', 'first'),
    'dataset.test_part': ('all', *data.TEST_PARTS),
    'dataset.movielens': movielens.SIZES,
    'dataset.resize': resizing.RESIZES,
    'teacher.dataset.resize': ('', *resizing.RESIZES),
    'dataset.crop_mode': resizing.CROP_MODES,
    'teacher.dataset.crop_mode': ('', *resizing.CROP_MODES),
    'compute_dtype': ('float32', 'bfloat16'),
    'keep': ('last', 'best'),
    'model.initial': ('random', 'teacher'),
    'teacher.model.initial': ('random',),
    **_OF_BOTH,
    **{f'teacher.{key}': choices for key, choices in _OF_BOTH.items()},
    'td.remat_policy': POLICIES,
    'teacher.inputs': ('clean', 'varied'),
    'teacher.labels': shared.BRIDGES,
    'teacher.control': ('none', 'untrained', 'shuffled', 'shuffled_states'),
    'logits.distance': ('l2', 'kl'),
    'td.reference': ('running', 'original'),
    'td.scale': ('none', 'variance'),
    'communication.state_scale': ('none', 'data'),
}

# {architecture: function that reads its sizes}; for others that of a ViT, whose options have no effect there.
SIZES = {
    'vit': vit.sizes_of,
    'resnet': resnet.sizes_of,
    'efficientnet': lambda model: efficientnet.sizes_of_variant(model.variant),
    'resnet_bn': lambda model: resnet_bn.sizes_of_variant(model.variant),
}
# Architectures with BatchNorm, which is part of their convolutions here.
WITH_FROZEN_BATCH_NORM = 'efficientnet', 'resnet_bn'
# The largest side of a grid of messages; 1024 pixels in patches of 8 have 128.
MAX_GRID = 1024

# Steps, seeds and sizes are int32 in computations.
MAX_INT32 = 2**31 - 1
# A ViT is traced and compiled block by block; the deepest that were published have fewer than a hundred.
MAX_LAYERS = 1000

# {last part of the key of a number: (what it must be, the check)}
_POSITIVE = 'more than 0', lambda x: x > 0
_NOT_NEGATIVE = '0 or more', lambda x: x >= 0
_RATE = 'from 0 to less than 1', lambda x: 0 <= x < 1
_DEVICES = 'more than 0, or -1 for what is left', lambda x: x > 0 or x == -1
_CHANCE = 'from 0 to 1', lambda x: 0 <= x <= 1
_SHARE = 'more than 0 and at most 1', lambda x: 0 < x <= 1
NUMBERS = {
    'protocol': (f'from 1 to {PROTOCOL}', lambda x: 1 <= x <= PROTOCOL),
    'num_seeds': _POSITIVE,
    'seed_step': _POSITIVE,
    'num_steps': _POSITIVE,
    'batch_size': _POSITIVE,
    'unlabelled_batch_size': _NOT_NEGATIVE,
    'eval_batch_size': _POSITIVE,
    'micro_batches': _POSITIVE,
    'eval_every': _POSITIVE,
    'patience': _NOT_NEGATIVE,
    'log_every': _POSITIVE,
    'save_every': _POSITIVE,
    'examples_per_class': _NOT_NEGATIVE,
    'validation_slice': (
        f'from 0 to {ratings.LAST_SLICE}',
        lambda x: 0 <= x <= ratings.LAST_SLICE,
    ),
    'user_oov_rate': _RATE,
    'movie_oov_rate': _RATE,
    'min_title_word_count': _NOT_NEGATIVE,
    'image_size': _POSITIVE,
    'crop_pct': _SHARE,
    'min_crop_area': _SHARE,
    'mirror_rate': _CHANCE,
    'image_mean': _CHANCE,
    'image_std': _POSITIVE,
    'shuffle_buffer': _POSITIVE,
    'kept_gb': _NOT_NEGATIVE,
    'probe_gb': _POSITIVE,
    'views': _NOT_NEGATIVE,
    'unlabelled_views': _NOT_NEGATIVE,
    'data': _DEVICES,
    'fsdp': _DEVICES,
    'layers': (f'from 0 to {MAX_LAYERS}', lambda x: 0 <= x <= MAX_LAYERS),
    'width': _NOT_NEGATIVE,
    'mlp': _NOT_NEGATIVE,
    'heads': _NOT_NEGATIVE,
    'patch': _NOT_NEGATIVE,
    'registers': _NOT_NEGATIVE,
    'epsilon': _POSITIVE,
    'hidden': _POSITIVE,
    'embedding_width': _NOT_NEGATIVE,
    'split': _NOT_NEGATIVE,
    'dropout': _RATE,
    'learning_rate': _POSITIVE,
    'warmup_steps': _NOT_NEGATIVE,
    'weight_decay': _NOT_NEGATIVE,
    'momentum': _RATE,
    'clip_norm': _NOT_NEGATIVE,
    'message': _POSITIVE,
    'temperature': _POSITIVE,
    'alpha': ('1 or more', lambda x: x >= 1),
    'rounds': _NOT_NEGATIVE,
    'noise_std': _NOT_NEGATIVE,
    'ramp_up': _NOT_NEGATIVE,
    'seed': _NOT_NEGATIVE,
    'classes': _NOT_NEGATIVE,
}
# Those of them that have a number for each of red, green and blue.
COLOURS = ('image_mean', 'image_std')
# The same by the part before, where the last part is a free name.
NUMBERS_IN = {'weights': _NOT_NEGATIVE, 'embeddings': _POSITIVE}


def check(config):
    """Refuses values that cannot work.

    Raises:
      UserError: one line that names the key, its value and what it may be.
    """
    check_names(config)
    flat = flatten(config)
    # A caller's model may come trained, and then needs no steps.
    is_learned = config.teacher.model.name not in MODEL_OPTIONS and config.teacher.num_steps == 0
    for key, value in flat.items():
        is_open = (
            key.startswith('teacher.dataset.') and key.rpartition('.')[2] in INHERITED_KEYS and value == 0
        )
        if not is_open and not (key == 'teacher.num_steps' and is_learned):
            _check_numbers(key, value)
    last_seed = config.seed + (config.num_seeds - 1) * config.seed_step
    if last_seed > MAX_INT32:
        step = '' if config.seed_step == 1 else f' and seed_step is {config.seed_step}'
        raise UserError(
            f'seed is {config.seed} and num_seeds is {config.num_seeds}{step}, so the last seed would be '
            f'{last_seed}; it must be at most {MAX_INT32}.'
        )
    if config.teacher.checkpoint and config.teacher.pretrained:
        raise UserError(
            f'teacher.checkpoint is {config.teacher.checkpoint} and teacher.pretrained is '
            f'{config.teacher.pretrained}; a run has one teacher: leave one of them empty.'
        )
    _check_selection(config)
    _check_control(config)
    _check_method(config)
    _check_grid(config.communication.grid)
    for prefix, steps in (('', config.num_steps), ('teacher.', config.teacher.num_steps)):
        warmup = flat[f'{prefix}optimizer.warmup_steps']
        if warmup >= steps and not (prefix and is_learned):
            raise UserError(
                f'{prefix}optimizer.warmup_steps is {warmup}, but training has {steps} steps: '
                f'lower it or raise {prefix}num_steps.'
            )
    _check_frozen(config)
    _check_images(config)
    for option in ('words', 'categories'):
        if not all(isinstance(name, str) and name for name in config.dataset[option]):
            raise UserError(
                f'dataset.{option} is {config.dataset[option]}; it must be names of columns, such as '
                "('title',)."
            )
    if len(config.td.ramp_up) != 2:
        raise UserError(
            f'td.ramp_up is {config.td.ramp_up}; it is a pair, steps of the student alone and of the '
            'communication modules alone.'
        )
    if sum(config.td.ramp_up) >= config.num_steps and config.method == 'td':
        raise UserError(
            f'td.ramp_up takes {sum(config.td.ramp_up)} steps of num_steps={config.num_steps}: none is '
            'left to train everything together.'
        )


def check_names(config):
    """Refuses what is no config, unknown and missing keys, and unknown names.

    Raises:
      UserError: one line that names the key, its value and what it may be.
    """
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f'the config is a {type(config).__name__}; get_config returns what common.get_config() gave it.'
        )
    flat = flatten(config)
    _check_keys(flat)
    for key, default in flatten(common.get_config()).items():
        # ml_collections takes None for a value of any type.
        if flat[key] is None:
            raise UserError(f'{key} is None; it must be a value like {default!r}.')
    for key, known in CHOICES.items():
        check_choice(key, flat[key], known)


def _check_selection(config):
    """Refuses to choose a step on the test split."""
    selections = {'keep': config.keep == 'best', 'patience': config.patience > 0}
    for key, is_set in selections.items():
        if is_set and config.dataset.split == 'test':
            raise UserError(
                f'{key} is {config[key]}, which chooses a step by validations, but dataset.split is test, '
                f'which is read once, at the end; set dataset.split=validation, or leave {key} out.'
            )
        if is_set and config.eval_every >= config.num_steps:
            raise UserError(
                f'{key} is {config[key]}, which chooses a step by validations, but eval_every is '
                f'{config.eval_every} and num_steps {config.num_steps}: only the last is validated; lower '
                'eval_every.'
            )


def _check_control(config):
    """Refuses an untrained teacher together with a checkpoint."""
    sources = [place for place in ('checkpoint', 'pretrained') if config.teacher[place]]
    if keeps_initial_teacher(config) and sources:
        why = 'control is untrained' if config.teacher.control == 'untrained' else 'num_steps is 0'
        raise UserError(
            f'teacher.{why}, which makes a teacher here, but teacher.{sources[0]} is '
            f'{config.teacher[sources[0]]}; leave one of them out.'
        )


def _check_grid(side):
    """Refuses a grid of messages that is neither a model's nor a number."""
    is_number = side in map(str, range(1, MAX_GRID + 1))
    if not is_number and side not in ('student', 'teacher'):
        raise UserError(
            f'communication.grid {side!r} is not known. Known: student, teacher, or a number from 1 to '
            f'{MAX_GRID}.'
        )


def _check_method(config):
    """Refuses what the terms of a method cannot do with the config as it is."""
    method, labels = objectives.METHODS[config.method], config.teacher.labels
    _check_weights(config)
    if 'bridged_logits' in method.reads and labels not in method.bridges:
        raise UserError(
            f'teacher.labels is {labels}, but method {config.method} has to know which of the compared '
            f'classes an example is of; set teacher.labels to {" or ".join(method.bridges)}.'
        )
    batch_size = config.batch_size
    if has_unlabelled(config):
        batch_size += config.unlabelled_batch_size or config.batch_size
    examples_at_once = batch_size // config.micro_batches
    # (what relates examples to each other, how many there are, how many it needs)
    relations = [(f'method {config.method}', examples_at_once, method.smallest_batch)]
    if config.method == 'td' and config.td.scale == 'variance':
        relations.append(('td.scale variance', examples_at_once, 2))
    if objectives.reads(config, 'states') and config.communication.state_scale == 'data':
        relations.append(('communication.state_scale data', examples_at_once, 2))
    if method.reads and config.teacher.control.startswith('shuffled'):
        relations.append((f'teacher.control {config.teacher.control}', batch_size, 2))
    for what, available, required in relations:
        if available < required and required > 1:
            raise UserError(
                f'{what} relates {required} examples of a batch or more to each other, but batch_size is '
                f'{config.batch_size} and micro_batches is {config.micro_batches}; raise batch_size or lower '
                'micro_batches.'
            )


def _check_weights(config):
    """Refuses a caller's method without a weight for each of its terms."""
    if config.method == 'supervised' or config.method in config:
        return
    flat, start = flatten(config.own), f'{config.method}.weights.'
    terms = {term for part in objectives.METHODS[config.method].reads.values() for term in part}
    missing = sorted(term for term in terms if start + term not in flat)
    if missing or not any(key.startswith(start) for key in flat):
        example = ', '.join(f'{term!r}: 1.0' for term in missing or ['TERM'])
        raise UserError(
            f'own.{start.removesuffix(".")} has no weight for {", ".join(missing) or "any term"}; set '
            f"config.own.{config.method} = {{'weights': {{{example}}}}}."
        )


def _check_frozen(config):
    """Refuses to train a model whose BatchNorm is part of its convolutions."""
    name, teacher = config.model.name, config.teacher.model.name
    if name in WITH_FROZEN_BATCH_NORM:
        raise UserError(
            f'model.name is {name}, which has BatchNorm and is for a pretrained teacher alone: for a student '
            'take resnet (R20x1 for small images, R50x1 for large ones), which has GroupNorm, or vit.'
        )
    is_read = config.teacher.pretrained or config.teacher.control == 'untrained'
    if teacher in WITH_FROZEN_BATCH_NORM and has_teacher(config) and not is_read:
        raise UserError(
            f'teacher.model.name is {teacher}, which has BatchNorm and is not trained here: name a '
            'checkpoint in teacher.pretrained, or take resnet or vit.'
        )


def _check_images(config):
    """Refuses image options that do not fit the data set, the three colours or the sizes of the models."""
    if config.dataset.test_part != 'all' and config.dataset.name in ('movielens', 'ratings'):
        raise UserError(
            f'dataset.test_part is {config.dataset.test_part}, which is of images, but dataset.name is '
            f'{config.dataset.name}; leave it at all.'
        )
    for prefix, task in (('', config.dataset), ('teacher.', config.teacher.dataset)):
        for key in COLOURS:
            if len(task[key]) != 3:
                raise UserError(
                    f'{prefix}dataset.{key} is {tuple(task[key])}; it has three numbers, for red, green and '
                    'blue.'
                )
    for prefix, model, task in (
        ('', config.model, config.dataset),
        ('teacher.', config.teacher.model, config.teacher.dataset),
    ):
        try:
            sizes = SIZES.get(model.name, vit.sizes_of)(model)
        except UserError as error:
            raise UserError(f'{prefix}{error}') from error
        if model.name != 'vit':
            continue
        _, patch = sizes
        side = images.view_of(config.dataset, task).side
        if side % patch:
            key = f'{prefix if task.image_size else ""}dataset.image_size'
            raise UserError(
                f'{key} is {side}, which the patches of {prefix}model, {patch} pixels, do not divide; set '
                f'{prefix}dataset.image_size to a multiple, or {prefix}model.variant or .patch.'
            )


def _check_keys(flat):
    known = flatten(common.get_config())
    # Names of inputs with an embedding, and a caller's options, are free.
    free = {key for key in flat if '.embeddings.' in key or key.startswith('own.')}
    for key in sorted(flat.keys() - known.keys() - free):
        check_key(key, known)
    for key in sorted(known.keys() - flat.keys()):
        raise UserError(f'{key} is missing in the config; start from what common.get_config() returns.')


def check_key(key, known, place=''):
    """Raises a UserError that begins with `place` and names the nearest key, unless key is a known one."""
    if key not in known:
        raise UserError(f'{place}{key} is not a key of the config.{suggest(key, known)}')


def check_choice(key, value, known):
    """Raises a UserError that lists the known names, the nearest one first, unless value is among them."""
    if value not in known:
        hint = suggest(str(value), known)
        raise UserError(f'{key} {value!r} is not known.{hint} Known: {", ".join(known)}.')


def _check_numbers(key, value):
    *path, name = key.split('.')
    if path and path[-1] in NUMBERS_IN:
        what, is_right = NUMBERS_IN[path[-1]]
    elif path[:1] == ['own']:
        return
    elif name in NUMBERS and not (name == 'split' and path[-1:] == ['dataset']):
        # `dataset.split` is a name, `model.split` a number.
        what, is_right = NUMBERS[name]
    else:
        return
    is_sequence = isinstance(value, (tuple, list))
    # ml_collections checks the type of a single number, but not of those in a tuple or under a free name.
    is_count = path[-1:] == ['embeddings'] or (is_sequence and name not in COLOURS)
    kind = numbers.Integral if is_count else numbers.Real
    for number in value if is_sequence else (value,):
        is_number = isinstance(number, kind) and not isinstance(number, bool)
        # math.isfinite raises an OverflowError for an int that is larger than any float.
        if not is_number or not abs(number) < math.inf or not is_right(number):
            integers = ', a whole number' if kind is numbers.Integral else ''
            raise UserError(f'{key} is {value}; it must be {what}{integers}.')
        if isinstance(number, numbers.Integral) and number > MAX_INT32:
            raise UserError(f'{key} is {value}; it must be at most {MAX_INT32}.')
        _check_float32(key, number, what, is_right)


def _check_float32(key, number, what, is_right):
    """Refuses a number that leaves its range in float32, such as one that becomes infinite, 0 or 1."""
    with np.errstate(over='ignore', under='ignore'):
        rounded = float(np.float32(number))
    if not math.isfinite(rounded) or not is_right(rounded):
        raise UserError(f'{key} is {number}, which is {rounded:g} in float32; there, too, it must be {what}.')
