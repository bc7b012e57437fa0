"""Which options a run reads."""

from td_jax.config.tree import has_few_labels, has_teacher, starts_and_stays
from td_jax.method import objectives

# The options of a model that some architectures read and others do not, and those of a data set.
OF_MODELS = {
    'mlp': ('hidden', 'embeddings', 'embedding_width', 'dropout'),
    'vit': (
        *('variant', 'layers', 'width', 'mlp', 'heads', 'patch', 'dropout'),
        *('activation', 'epsilon', 'pre_logits', 'registers', 'pooling', 'remat_policy'),
    ),
    'resnet': ('variant', 'width', 'remat_policy'),
    'efficientnet': ('variant', 'padding'),
    'resnet_bn': ('variant',),
}
_CLASSES = ('classes', 'examples_per_class', 'labelled_by', 'test_part')
_IMAGES = (
    *('image_size', 'resize', 'crop_mode', 'crop_pct', 'image_mean', 'image_std'),
    *('min_crop_area', 'mirror_rate'),
)
_RATINGS = 'split_by', 'validation_slice', 'user_oov_rate', 'movie_oov_rate', 'min_title_word_count'
OF_DATASETS = {
    'movielens': ('movielens', 'genre', *_RATINGS),
    'ratings': (
        *('path', 'user_column', 'item_column', 'rating_column', 'timestamp_column'),
        *('words', 'categories', 'separator', 'filter_column', 'filter_value'),
        *_RATINGS,
    ),
    'digits': _CLASSES,
    'cifar10': _CLASSES + _IMAGES,
    'cifar100': _CLASSES + _IMAGES,
    'imagenet': (*_CLASSES, *_IMAGES, 'shuffle_buffer'),
    'images': (*_CLASSES, *_IMAGES, 'shuffle_buffer', 'path', 'kept_gb'),
    'tfds': (*_CLASSES, *_IMAGES, 'shuffle_buffer', 'tfds', 'kept_gb'),
}
# What a method that does not talk reads of config.communication.
OF_COMMUNICATION = {'crd': ('message',)}


def without_effect(config, keys) -> dict[str, str]:
    """{key: why} of those among some keys that a run of this config does not read.

    Args:
      config: of the run, checked.
      keys: dotted keys, such as those that a person set on a command line.
    """
    reasons = unread(config)
    return {
        key: next(reason for start, reason in reasons.items() if key.startswith(start))
        for key in keys
        if key.startswith(tuple(reasons))
    }


def said_of(config, keys) -> list[str]:
    """A line for a person of each of some keys that a run of this config does not read."""
    return [f'{key} has no effect: {reason}' for key, reason in without_effect(config, keys).items()]


def unread(config) -> dict[str, str]:
    """{what keys start with: why}, of those that a run of this config does not read."""
    found, method = _unread_of_method(config), f'method is {config.method}'
    if not has_teacher(config):
        found['teacher.'] = f'{method}, without a teacher'
    elif config.teacher.pretrained:
        # Its part of the data is not trained on; how it is shown images matters.
        parts = ('genre', 'filter_column', 'filter_value', 'classes', 'examples_per_class')
        untrained = 'teacher.num_steps', 'teacher.optimizer.', *(f'teacher.dataset.{part}' for part in parts)
        found |= dict.fromkeys(untrained, 'teacher.pretrained is not trained here')
    elif config.teacher.checkpoint:
        reason = 'teacher.checkpoint is trained already'
        found |= dict.fromkeys(('teacher.num_steps', 'teacher.optimizer.', 'teacher.seed'), reason)
    elif config.teacher.control == 'untrained':
        reason = 'teacher.control is untrained'
        found |= dict.fromkeys(('teacher.num_steps', 'teacher.optimizer.'), reason)
    elif starts_and_stays(config):
        found['teacher.optimizer.'] = 'teacher.num_steps is 0'
    if not objectives.active_terms(config):
        found['diagnostics'] = 'the task is the only term'
    if config.num_seeds == 1:
        found['seed_step'] = 'num_seeds is 1'
    if config.method == 'td':
        if not objectives.reads(config, 'states'):
            found |= dict.fromkeys(('td.scale', 'td.stop_target'), 'no distance of states has a weight')
        if not config.td.rounds or not config.td.weights.interact:
            knobs = 'reference', 'noise_std', 'remat_policy'
            found |= {f'td.{knob}': 'there are no rounds of interaction' for knob in knobs}
        elif config.td.rounds == 1:
            found['td.reference'] = 'td.rounds is 1, and a first round knows one state only'
    return found | _unread_of_split(config) | _unread_of_parts(config)


def _unread_of_split(config):
    """What `unread` finds in the options of what is evaluated."""
    if config.dataset.split == 'test':
        return {
            'eval_every': 'dataset.split is test, which is read once, at the end',
            'dataset.validation_slice': 'dataset.split is test',
        }
    return {'dataset.test_part': f'dataset.split is {config.dataset.split}'}


def _unread_of_method(config):
    """What `unread` finds in the options of methods, and of what some of them share."""
    reads = objectives.METHODS[config.method].reads
    method = f'method is {config.method}'
    others = [other for other in objectives.METHODS if other != config.method]
    found = {f'{start}{other}.': method for other in others for start in ('', 'own.')}
    if 'states' not in reads:
        kept = OF_COMMUNICATION.get(config.method, ())
        knobs = [knob for knob in config.communication if knob not in kept]
        found |= dict.fromkeys([f'communication.{knob}' for knob in knobs], method)
    if 'bridged_logits' not in reads:
        found['teacher.labels'] = method
    if not objectives.has_probe(config):
        found['teacher.probe_gb'] = 'there is no probe'
    # A term of this name compares by config.logits; others by themselves.
    if 'logits' not in reads.get('bridged_logits', ()):
        found['logits.'] = method
    elif config.logits.distance == 'l2':
        found['logits.temperature'] = 'logits.distance is l2'
    if not reads:
        found['teacher.inputs'] = method
        if config.teacher.control == 'shuffled':
            found['teacher.control'] = method
    if config.teacher.control == 'shuffled_states' and not reads.keys() - objectives.PREDICTIONS:
        found['teacher.control'] = method
    return found


def _unread_of_parts(config):
    """What `unread` finds in the models, optimizers and data of student and teacher."""
    found = {}
    for prefix in ('', 'teacher.'):
        part = config.teacher if prefix else config
        model, optimizer_config = part.model, part.optimizer
        if optimizer_config.name != 'sgd':
            found[f'{prefix}optimizer.momentum'] = f'{prefix}optimizer.name is {optimizer_config.name}'
        if not optimizer_config.weight_decay:
            found[f'{prefix}optimizer.decayed'] = f'{prefix}optimizer.weight_decay is 0'
        # What a caller brings, a model or a data set, may read any of them.
        of_model = OF_MODELS.get(model.name)
        found |= {
            f'{prefix}model.{knob}': f'{prefix}model.name is {model.name}'
            for knobs in OF_MODELS.values()
            for knob in knobs
            if of_model is not None and knob not in of_model
        }
        ours = OF_DATASETS.get(config.dataset.name)
        found |= {
            f'{prefix}dataset.{knob}': f'dataset.name is {config.dataset.name}'
            for knobs in OF_DATASETS.values()
            for knob in knobs
            if ours is not None and knob not in ours
        }
        if config.dataset.name in OF_DATASETS and set(_RATINGS).isdisjoint(ours):
            found[f'{prefix}model.embedding_width'] = f'dataset.name is {config.dataset.name}'
    if not has_few_labels(config):
        found['dataset.labelled_by'] = 'dataset.examples_per_class is 0'
    if config.dataset.name == 'ratings' and not config.dataset.words:
        found['dataset.min_title_word_count'] = 'dataset.words is empty'
    return found
