"""Tells which options a run reads."""

from td_jax.config.tree import has_few_labels, has_teacher, keeps_initial_teacher
from td_jax.method import objectives

# The options that some architectures, or some data sets, read and others do not.
MODEL_OPTIONS = {
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
DATASET_OPTIONS = {
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
# The options of config.communication that a method without communication reads.
COMMUNICATION_OPTIONS = {'crd': ('message',)}


def has_variation(config) -> bool:
    """Whether training varies the inputs of its examples at random; data of a caller's own may be varied."""
    dataset = config.dataset
    if dataset.name not in DATASET_OPTIONS:
        return True
    options = DATASET_OPTIONS[dataset.name]
    is_cropped = 'min_crop_area' in options and (dataset.min_crop_area < 1 or dataset.mirror_rate > 0)
    is_replaced = 'user_oov_rate' in options and (dataset.user_oov_rate > 0 or dataset.movie_oov_rate > 0)
    return is_cropped or is_replaced


def explain_without_effect(config, keys) -> dict[str, str]:
    """Finds those of some keys that a run of this config does not read: {key: why}.

    Args:
      config: of the run, checked.
      keys: dotted keys, such as those set on a command line.
    """
    reasons = find_unread(config)
    return {
        key: next(reason for start, reason in reasons.items() if key.startswith(start))
        for key in keys
        if key.startswith(tuple(reasons))
    }


def describe_without_effect(config, keys) -> list[str]:
    """Makes a line for a person about each of some keys that a run of this config does not read."""
    return [f'{key} has no effect: {reason}' for key, reason in explain_without_effect(config, keys).items()]


def find_unread(config) -> dict[str, str]:
    """Finds the keys that a run of this config does not read: {prefix of keys: why}."""
    reasons, method = _find_unread_of_method(config), f'method is {config.method}'
    if not has_teacher(config):
        reasons['teacher.'] = f'{method}, without a teacher'
    elif config.teacher.pretrained:
        # It is not trained on its part of the data, but its preprocessing of images matters.
        parts = ('genre', 'filter_column', 'filter_value', 'classes', 'examples_per_class')
        training_keys = (
            'teacher.num_steps',
            'teacher.optimizer.',
            *(f'teacher.dataset.{part}' for part in parts),
        )
        reasons |= dict.fromkeys(training_keys, 'teacher.pretrained is not trained here')
    elif config.teacher.checkpoint:
        reason = 'teacher.checkpoint is trained already'
        reasons |= dict.fromkeys(('teacher.num_steps', 'teacher.optimizer.', 'teacher.seed'), reason)
    elif config.teacher.control == 'untrained':
        reason = 'teacher.control is untrained'
        reasons |= dict.fromkeys(('teacher.num_steps', 'teacher.optimizer.'), reason)
    elif keeps_initial_teacher(config):
        reasons['teacher.optimizer.'] = 'teacher.num_steps is 0'
    if not objectives.active_terms(config):
        keys = 'diagnostics', 'dataset.unlabelled', 'unlabelled_batch_size', 'teacher.unlabelled_views'
        reasons |= dict.fromkeys(keys, 'the task is the only term')
    elif not config.dataset.unlabelled:
        keys = 'unlabelled_batch_size', 'teacher.unlabelled_views'
        reasons |= dict.fromkeys(keys, 'dataset.unlabelled is empty')
    if config.num_seeds == 1:
        reasons['seed_step'] = 'num_seeds is 1'
    if config.method == 'td':
        if not objectives.reads(config, 'states'):
            reasons |= dict.fromkeys(('td.scale', 'td.stop_target'), 'no distance of states has a weight')
        if not config.td.rounds or not config.td.weights.interact:
            options = 'reference', 'noise_std', 'remat_policy'
            reasons |= {f'td.{option}': 'there are no rounds of interaction' for option in options}
        elif config.td.rounds == 1:
            reasons['td.reference'] = 'td.rounds is 1, and a first round knows one state only'
    return reasons | _find_unread_of_split(config) | _find_unread_of_parts(config)


def _find_unread_of_split(config):
    """The part of `find_unread` about the options of evaluation."""
    if config.dataset.split == 'test':
        return {
            'eval_every': 'dataset.split is test, which is read once, at the end',
            'dataset.validation_slice': 'dataset.split is test',
        }
    return {'dataset.test_part': f'dataset.split is {config.dataset.split}'}


def _find_unread_of_method(config):
    """The part of `find_unread` about the options of methods, and those that some of them share."""
    reads = objectives.METHODS[config.method].reads
    method = f'method is {config.method}'
    others = [other for other in objectives.METHODS if other != config.method]
    reasons = {f'{start}{other}.': method for other in others for start in ('', 'own.')}
    if 'states' not in reads:
        options_read = COMMUNICATION_OPTIONS.get(config.method, ())
        options = [option for option in config.communication if option not in options_read]
        reasons |= dict.fromkeys([f'communication.{option}' for option in options], method)
    elif not objectives.reads(config, 'states'):
        reasons['communication.state_scale'] = 'no distance of states has a weight'
    if 'bridged_logits' not in reads:
        reasons['teacher.labels'] = method
    if not objectives.has_probe(config):
        reasons['teacher.probe_gb'] = 'there is no probe'
    # A term of this name compares by config.logits; others by themselves.
    if 'logits' not in reads.get('bridged_logits', ()):
        reasons['logits.'] = method
    elif config.logits.distance == 'l2':
        reasons['logits.temperature'] = 'logits.distance is l2'
    views = 'teacher.views', 'teacher.unlabelled_views'
    if config.teacher.inputs == 'clean':
        reasons |= dict.fromkeys(views, 'teacher.inputs is clean')
    elif not has_variation(config):
        reasons |= dict.fromkeys(views, 'training examples have no random variation')
    elif not config.teacher.views:
        reasons['teacher.unlabelled_views'] = 'teacher.views is 0'
    if not reads:
        reasons |= dict.fromkeys((*views, 'teacher.inputs'), method)
        if config.teacher.control == 'shuffled':
            reasons['teacher.control'] = method
    if config.teacher.control == 'shuffled_states' and not reads.keys() - objectives.PREDICTIONS:
        reasons['teacher.control'] = method
    return reasons


def _find_unread_of_parts(config):
    """The part of `find_unread` about models, optimizers and data of student and teacher."""
    reasons = {}
    for prefix in ('', 'teacher.'):
        part = config.teacher if prefix else config
        model, optimizer_config = part.model, part.optimizer
        if optimizer_config.name != 'sgd':
            reasons[f'{prefix}optimizer.momentum'] = f'{prefix}optimizer.name is {optimizer_config.name}'
        if not optimizer_config.weight_decay:
            reasons[f'{prefix}optimizer.decayed'] = f'{prefix}optimizer.weight_decay is 0'
        # A caller's model or data set may read any of them.
        model_options = MODEL_OPTIONS.get(model.name)
        reasons |= {
            f'{prefix}model.{option}': f'{prefix}model.name is {model.name}'
            for options in MODEL_OPTIONS.values()
            for option in options
            if model_options is not None and option not in model_options
        }
        dataset_options = DATASET_OPTIONS.get(config.dataset.name)
        reasons |= {
            f'{prefix}dataset.{option}': f'dataset.name is {config.dataset.name}'
            for options in DATASET_OPTIONS.values()
            for option in options
            if dataset_options is not None and option not in dataset_options
        }
        if config.dataset.name in DATASET_OPTIONS and set(_RATINGS).isdisjoint(dataset_options):
            reasons[f'{prefix}model.embedding_width'] = f'dataset.name is {config.dataset.name}'
    if not has_few_labels(config):
        reasons['dataset.labelled_by'] = 'dataset.examples_per_class is 0'
    if config.dataset.name == 'ratings' and not config.dataset.words:
        reasons['dataset.min_title_word_count'] = 'dataset.words is empty'
    return reasons
