"""Which configs are refused, and how two of them are compared."""

import json

import ml_collections
import pytest

from td_jax import config as config_lib
from td_jax.config import checks, effect
from td_jax.configs import common, movielens
from td_jax.errors import UserError
from td_jax.method import objectives

# Options with free text, which are checked where they are used.
FREE_TEXT = {
    *(
        'teacher.checkpoint',
        'teacher.pretrained',
        'dataset.path',
        'dataset.unlabelled',
        'dataset.tfds',
        'dataset.separator',
    ),
    *('tracking.wandb', 'tracking.mlflow'),
    *(
        f'{side}dataset.{option}'
        for side in ('', 'teacher.')
        for option in ('genre', 'filter_column', 'filter_value')
    ),
    *(f'dataset.{of}_column' for of in ('user', 'item', 'rating', 'timestamp')),
}


def set_value(key, value):
    config = common.get_config()
    config.update_from_flattened_dict({key: value})
    return config


def assert_refused(config, *words):
    with pytest.raises(UserError) as error_info:
        config_lib.check(config)
    message = str(error_info.value)
    assert '\n' not in message
    for word in words:
        assert word in message, message


def test_defaults_are_accepted():
    config_lib.check(common.get_config())


@pytest.mark.parametrize('key', [*config_lib.flatten(common.get_config()), 'model.embeddings.user'])
def test_every_option_is_checked(key):
    config = common.get_config()
    config.model.embeddings.user = 4
    value = config_lib.flatten(config)[key]
    if isinstance(value, str):
        if key not in FREE_TEXT:
            assert_refused(set_value(key, 'nonsense'), key, 'nonsense', 'Known: ')
        return
    if isinstance(value, bool):
        # ml_collections checks their type, and both values are valid.
        return
    negative = tuple(-2 for _ in value) or (-2,) if isinstance(value, tuple) else type(value)(-2)
    config.update_from_flattened_dict({key: negative})
    assert_refused(config, key, '-2', 'must be')


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('optimizer.learning_rate', float('nan'), 'more than 0'),
        ('optimizer.learning_rate', float('inf'), 'more than 0'),
        ('optimizer.learning_rate', 0.0, 'more than 0'),
        ('teacher.optimizer.learning_rate', -1e-3, 'more than 0'),
        ('td.weights.interact', float('nan'), '0 or more'),
        ('td.noise_std', float('inf'), '0 or more'),
        ('num_steps', 0, 'more than 0'),
        ('num_seeds', 0, 'more than 0'),
        ('batch_size', 0, 'more than 0'),
        ('log_every', 0, 'more than 0'),
        ('teacher.num_steps', 0, 'more than 0'),
        ('model.dropout', 1.0, 'less than 1'),
        ('communication.dropout', 1.5, 'less than 1'),
        ('dataset.user_oov_rate', 1.0, 'less than 1'),
        ('optimizer.momentum', 1.0, 'less than 1'),
        ('logits.temperature', 0.0, 'more than 0'),
        ('model.hidden', (128, 0), 'more than 0'),
        ('model.hidden', (128, 5.5), 'whole number'),
        ('model.hidden', (128, 'wide'), 'whole number'),
        ('model.hidden', (128, True), 'whole number'),
        ('td.ramp_up', (1.5, 2), 'whole number'),
        ('td.ramp_up', (1, 2, 3), 'a pair'),
        ('td.ramp_up', (5,), 'a pair'),
        ('td.ramp_up', (600, 400), 'none is left'),
        ('dataset.classes', (1, 2.5), 'whole number'),
        ('optimizer.warmup_steps', 1000, 'training has 1000 steps'),
        ('teacher.optimizer.warmup_steps', 2000, 'training has 1000 steps'),
    ],
)
def test_values_that_cannot_work_are_refused(key, value, words):
    assert_refused(set_value(key, value), key, words)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        *(
            (key, value)
            for key, value in config_lib.flatten(common.get_config()).items()
            if not isinstance(value, (str, bool))
        ),
        ('model.embeddings.user', 4),
    ],
)
def test_no_number_is_larger_than_what_computes_with_it(key, value):
    config = common.get_config()
    config.model.embeddings.user = 4
    large = 1e39 if isinstance(value, float) else 2**31
    config.update_from_flattened_dict({key: (large,) * 2 if isinstance(value, tuple) else large})
    assert_refused(config, key, str(large))


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('optimizer.learning_rate', 1e308, 'inf in float32; there, too, it must be more than 0'),
        ('teacher.optimizer.learning_rate', 1e-60, '0 in float32'),
        ('model.dropout', 1 - 1e-12, '1 in float32; there, too, it must be from 0 to less than 1'),
        ('td.weights.interact', 1e40, 'inf in float32'),
        ('seed', 2**31, 'at most 2147483647'),
        ('teacher.seed', 10**20, 'at most 2147483647'),
        ('num_seeds', 10**12, 'at most 2147483647'),
        ('batch_size', 10**20, 'at most 2147483647'),
        ('model.hidden', (4, 10**20), 'at most 2147483647'),
        ('dataset.classes', (10**20,), 'at most 2147483647'),
        ('teacher.model.layers', 1001, 'from 0 to 1000'),
        ('dataset.validation_slice', 6, 'from 0 to 5'),
    ],
)
def test_numbers_that_are_too_large_or_too_small_are_refused(key, value, words):
    assert_refused(set_value(key, value), key, words)


def test_the_last_seed_is_a_seed():
    config = common.get_config()
    config.seed = 2**31 - 1
    config_lib.check(config)
    config.num_seeds = 2
    assert_refused(config, 'seed is 2147483647 and num_seeds is 2', 'at most 2147483647')
    config.seed, config.seed_step = 2147483640, 7
    config_lib.check(config)
    config.seed_step = 8
    assert_refused(config, 'num_seeds is 2 and seed_step is 8', 'at most 2147483647')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'method': 'rkd', 'batch_size': 2}, 'method rkd relates 3 examples of a batch or more'),
        ({'method': 'srd', 'batch_size': 8, 'micro_batches': 8}, 'micro_batches is 8; raise batch_size'),
        ({'method': 'crd', 'batch_size': 1}, 'method crd relates 2 examples'),
        (
            {'method': 'fd', 'communication.state_scale': 'data', 'batch_size': 4, 'micro_batches': 4},
            'communication.state_scale data relates 2 examples',
        ),
        ({'method': 'dist', 'batch_size': 1}, 'method dist relates 2 examples'),
        ({'td.scale': 'variance', 'batch_size': 4, 'micro_batches': 4}, 'td.scale variance relates 2'),
        ({'teacher.control': 'shuffled', 'batch_size': 1}, 'teacher.control shuffled relates 2'),
        ({'teacher.control': 'shuffled_states', 'batch_size': 1}, 'teacher.control shuffled_states relates'),
    ],
)
def test_too_few_examples_to_relate_are_refused(changes, words):
    config = common.get_config()
    config.update_from_flattened_dict(changes)
    assert_refused(config, words)


def test_as_few_examples_as_can_be_related_are_accepted():
    for method, size in (('rkd', 3), ('srd', 2), ('crd', 2), ('dkd', 1)):
        config = set_value('batch_size', size)
        config.method = method
        config_lib.check(config)
    config = set_value('teacher.control', 'shuffled')
    config.batch_size = config.micro_batches = 2
    config_lib.check(config)


def test_a_label_that_no_example_has_is_refused():
    config = set_value('method', 'dkd')
    config.teacher.labels = 'auxiliary'
    assert_refused(config, 'teacher.labels is auxiliary', 'method dkd', 'to shared or probe')
    config.method = 'dist'
    config_lib.check(config)


@pytest.mark.parametrize('place', ['checkpoint', 'pretrained'])
def test_an_untrained_teacher_is_not_given(place):
    config = set_value(f'teacher.{place}', 'runs/a')
    config.teacher.control = 'untrained'
    assert_refused(config, 'teacher.control is untrained', f'teacher.{place} is runs/a')


@pytest.mark.parametrize(('key', 'value'), [('keep', 'best'), ('patience', 3)])
def test_no_step_is_chosen_by_the_test(key, value):
    config = set_value(key, value)
    assert_refused(config, f'{key} is {value}', 'dataset.split is test', 'set dataset.split=validation')
    config.dataset.split = 'validation'
    config_lib.check(config)
    config.eval_every = config.num_steps
    assert_refused(config, f'{key} is {value}', 'eval_every is 1000 and num_steps 1000', 'lower eval_every')


def test_two_teachers_are_refused():
    config = common.get_config()
    config.teacher.checkpoint, config.teacher.pretrained = 'runs/a', 'vit.npz'
    assert_refused(config, 'teacher.checkpoint is runs/a', 'teacher.pretrained is vit.npz', 'one teacher')


def test_an_embedding_is_a_whole_number_wide():
    config = movielens.get_config()
    with config.model.embeddings.unlocked(), config.model.embeddings.ignore_type():
        config.model.embeddings.user = 2.5
    assert_refused(config, 'model.embeddings.user', '2.5', 'whole number')


def test_ramp_up_longer_than_training_is_td_alone():
    config = set_value('td.ramp_up', (600, 400))
    config.method = 'supervised'
    config_lib.check(config)


@pytest.mark.parametrize(
    ('key', 'value', 'nearest'),
    [
        ('method', 'fitnets', 'fitnet'),
        ('dataset.name', 'movielen', 'movielens'),
        ('optimizer.name', 'adam', 'adamw'),
    ],
)
def test_an_unknown_name_lists_the_known_ones_and_the_nearest(key, value, nearest):
    assert_refused(set_value(key, value), f'Did you mean {nearest}?', *checks.CHOICES[key])


def test_a_key_that_is_not_declared_is_refused_with_the_nearest():
    config = common.get_config()
    with config.unlocked():
        config.num_step = 3
    assert_refused(config, 'num_step ', 'Did you mean num_steps?')


def test_a_grid_of_messages_is_a_model_or_a_number():
    config = common.get_config()
    for grid in ('student', 'teacher', '1', '1024'):
        config.communication.grid = grid
        config_lib.check(config)
    for grid in ('0', '1025', '7.0', 'both', '1' * 5000):
        config.communication.grid = grid
        assert_refused(config, f'communication.grid {grid!r} is not known', 'a number from 1 to 1024')


@pytest.mark.parametrize('key', ['communication.grid', 'dataset.unlabelled', 'num_steps', 'td.rounds'])
def test_none_is_a_value_of_no_option(key):
    config = common.get_config()
    config.update_from_flattened_dict({key: None})
    assert_refused(config, f'{key} is None; it must be a value like ')


def test_a_key_that_is_missing_is_refused():
    config = common.get_config()
    with config.unlocked():
        del config.eval_every
    assert_refused(config, 'eval_every is missing')


def test_something_else_than_a_config_is_refused():
    assert_refused({'method': 'td'}, 'dict')


def test_a_config_equals_what_its_json_says():
    config = movielens.get_config()
    assert config_lib.differences(config, json.loads(config_lib.to_json(config))) == {}


def test_differences_name_both_values():
    config = movielens.get_config()
    stored = json.loads(config_lib.to_json(config))
    stored['td']['rounds'], stored['model']['hidden'] = 7, [128, 32]
    stored['gone'], stored['model']['embeddings'] = 1, {'user': 100, 'movie': 100, 'title_words': 50}
    differences = config_lib.differences(config, stored)
    assert differences == {
        'gone': (1, None),
        'model.embeddings.genres': (None, 50),
        'model.hidden': ([128, 32], [128, 64]),
        'td.rounds': (7, 1),
    }
    text = config_lib.describe(differences)
    assert 'td.rounds (7 there, 1 here)' in text
    assert 'model.embeddings.genres (none there, 50 here)' in text
    assert 'gone (1 there, not known to this version of td_jax)' in text


# --- The identity of a run -------------------------------------------------------------------------

# Options without effect on the result: how often something is measured or written, what is computed at once
# or again, and where; where the teacher is, which its fingerprint identifies; trackers of the run.
WITHOUT_EFFECT = {
    'log_every',
    'diagnostics',
    'save_every',
    'eval_batch_size',
    'mesh.data',
    'mesh.fsdp',
    'model.remat_policy',
    'teacher.model.remat_policy',
    'td.remat_policy',
    'teacher.checkpoint',
    'teacher.pretrained',
    'teacher.probe_gb',
    'tracking.wandb',
    'tracking.mlflow',
}
# {section of the config: methods that read it}.
READ_BY = {
    'communication.message': {'fd', 'fitnet', 'hybrid', 'td', 'crd'},
    'communication.': {'fd', 'fitnet', 'hybrid', 'td'},
    'logits.': {'ld', 'hybrid', 'td'},
    'teacher.labels': {'ld', 'hybrid', 'td', 'dkd', 'dist'},
    **dict.fromkeys(
        ('teacher.', 'dataset.unlabelled', 'unlabelled_batch_size'),
        objectives.METHODS.keys() - {'supervised'},
    ),
    **{f'{method}.': {method} for method in objectives.METHODS if method != 'supervised'},
}


def change_value(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f'{value}other'
    return (*value, 9) if isinstance(value, tuple) else type(value)(value + 3)


def list_effective_changes(key):
    """{key: value} of other options with which an option has an effect."""
    path, _, name = key.rpartition('.')
    side = 'teacher.' if path.startswith('teacher.') else ''
    needed = {
        ('momentum',): {f'{side}optimizer.name': 'sgd'},
        ('seed_step',): {'num_seeds': 2},
        ('decayed',): {f'{side}optimizer.weight_decay': 0.1},
        ('temperature',): {'logits.distance': 'kl'},
        ('reference',): {'td.rounds': 2},
        ('shuffle_buffer',): {'dataset.name': 'imagenet'},
        ('classes', 'examples_per_class'): {'dataset.name': 'digits'},
        ('labelled_by',): {'dataset.name': 'digits', 'dataset.examples_per_class': 5},
        ('unlabelled_batch_size',): {'dataset.unlabelled': 'rest'},
        ('unlabelled_views',): {'dataset.unlabelled': 'rest', 'teacher.views': 4},
        ('test_part',): {'dataset.name': 'digits', 'dataset.split': 'test'},
        ('tfds', 'kept_gb'): {'dataset.name': 'tfds'},
        effect.DATASET_OPTIONS['ratings'][:10]: {'dataset.name': 'ratings'},
        effect.DATASET_OPTIONS['cifar10'][2:]: {'dataset.name': 'cifar10'},
        effect.MODEL_OPTIONS['vit']: {f'{side}model.name': 'vit'},
        ('padding',): {f'{side}model.name': 'efficientnet'},
    }
    return next((others for names, others in needed.items() if name in names), {})


KEYS = sorted(config_lib.flatten(common.get_config()).keys() - {'method'})
# Options that all methods (with a teacher) read are tested with a few methods, the others with every one.
OF_ALL = ('supervised', 'ld', 'td')
OF_SOME = tuple(
    start for start in READ_BY if start not in ('teacher.', 'dataset.unlabelled', 'unlabelled_batch_size')
)


@pytest.mark.parametrize(
    ('key', 'method'),
    [(key, method) for key in KEYS for method in (objectives.METHODS if key.startswith(OF_SOME) else OF_ALL)],
)
def test_every_option_is_part_of_a_run_unless_a_reason_is_given(key, method):
    """A new option is part of the identity."""
    config = common.get_config()
    config.method, config.dataset.split = method, 'validation'
    config.update_from_flattened_dict(list_effective_changes(key))
    before, stored = config_lib.digest(config), json.loads(config_lib.to_json(config))
    old = config_lib.flatten(config)[key]
    config.update_from_flattened_dict({key: change_value(old)})
    readers = next((methods for start, methods in READ_BY.items() if key.startswith(start)), {method})
    counts = key not in WITHOUT_EFFECT and method in readers
    assert (config_lib.digest(config) != before) == counts
    assert (key in config_lib.differences(config, stored)) == counts
    # A missing key is at its default.
    part = stored
    for name in key.split('.')[:-1]:
        part = part[name]
    del part[key.split('.')[-1]]
    if key != 'dataset.split':
        assert (key in config_lib.differences(config, stored)) == counts


def test_methods_differ():
    digests = set()
    for method in objectives.METHODS:
        config = common.get_config()
        config.method = method
        digests.add(config_lib.digest(config))
    assert len(digests) == len(objectives.METHODS)


def test_a_new_option_changes_no_digest(monkeypatch):
    config = movielens.get_config()
    before, stored = config_lib.digest(config), json.loads(config_lib.to_json(config))
    declared = common.get_config

    def make_another():
        config = declared()
        config.td.another = 1.5
        return config

    monkeypatch.setattr(common, 'get_config', make_another)
    config = movielens.get_config()
    assert config.td.another == 1.5
    assert config_lib.digest(config) == before
    assert config_lib.differences(config, stored) == {}
    config.td.another = 2.0
    assert config_lib.digest(config) != before
    assert config_lib.differences(config, stored) == {'td.another': (1.5, 2.0)}


def test_a_student_that_starts_from_its_teacher_reads_it_whatever_its_method():
    config = common.get_config()
    config.method = 'supervised'
    alone = config_lib.digest(config)
    config.teacher.seed = 5
    assert config_lib.digest(config) == alone
    config.model.initial = 'teacher'
    started = config_lib.digest(config)
    config.teacher.labels, config.teacher.inputs = 'probe', 'clean'
    assert config_lib.digest(config) == started
    config.teacher.seed = 6
    assert config_lib.digest(config) != started


@pytest.mark.parametrize(
    ('place', 'unread_keys', 'read_keys'),
    [
        ('checkpoint', ('seed', 'num_steps', 'optimizer.learning_rate'), ('dataset.genre', 'model.dropout')),
        ('pretrained', ('dataset.genre', 'num_steps', 'optimizer.learning_rate'), ('seed', 'model.dropout')),
    ],
)
def test_how_a_teacher_was_trained_is_no_matter_where_one_is_given(place, unread_keys, read_keys):
    for key in (*unread_keys, *read_keys):
        config = set_value(f'teacher.{place}', 'somewhere')
        before = config_lib.digest(config)
        config.update_from_flattened_dict(
            {f'teacher.{key}': change_value(config_lib.flatten(config)[f'teacher.{key}'])}
        )
        assert (config_lib.digest(config) != before) == (key in read_keys), key


def test_the_curve_on_the_validation_slice_is_part_of_a_run_that_has_one():
    test, validation = common.get_config(), set_value('dataset.split', 'validation')
    before = [config_lib.digest(config) for config in (test, validation)]
    test.eval_every = validation.eval_every = 7
    assert config_lib.digest(test) == before[0]
    assert config_lib.digest(validation) != before[1]


def test_the_teachers_run_has_the_teachers_options():
    config = movielens.get_config()
    config.teacher.seed, config.teacher.num_steps = 5, 77
    config.teacher.dataset.genre = 'Comedy'
    config.teacher.optimizer.learning_rate = 0.25
    run = config_lib.teacher_run(config)
    config_lib.check(run)
    assert (run.method, run.seed, run.num_seeds, run.num_steps) == ('supervised', 5, 1, 77)
    assert run.dataset.genre == 'Comedy'
    assert run.dataset.name == config.dataset.name
    assert run.optimizer.learning_rate == 0.25
    assert tuple(run.model.hidden) == (512, 256)
    assert (config.method, config.dataset.genre) == ('td', 'Drama')


def test_flatten_joins_keys_with_dots():
    nested = {'a': {'b': {'c': 1}}, 'd': (2, 3)}
    expected = {'a.b.c': 1, 'd': (2, 3)}
    assert config_lib.flatten(nested) == expected
    assert config_lib.flatten(ml_collections.ConfigDict(nested)) == expected


@pytest.mark.parametrize(
    ('changes', 'key', 'reason'),
    [
        ({'method': 'ld'}, 'td.rounds', 'method is ld'),
        ({'method': 'supervised'}, 'diagnostics', 'the task is the only term'),
        ({'method': 'ld', 'ld.weights.logits': 0.0}, 'diagnostics', 'the task is the only term'),
        ({'method': 'ld'}, 'communication.message', 'method is ld'),
        ({'method': 'fd'}, 'logits.temperature', 'method is fd'),
        ({'method': 'dkd'}, 'logits.temperature', 'method is dkd'),
        ({'method': 'dist'}, 'communication.message', 'method is dist'),
        ({'method': 'crd'}, 'communication.hidden', 'method is crd'),
        ({'method': 'rkd'}, 'teacher.labels', 'method is rkd'),
        ({'method': 'rkd'}, 'srd.alpha', 'method is rkd'),
        ({'teacher.control': 'untrained'}, 'teacher.num_steps', 'teacher.control is untrained'),
        ({'teacher.num_steps': 0}, 'teacher.optimizer.learning_rate', 'teacher.num_steps is 0'),
        (
            {f'td.weights.{term}': 0.0 for term in ('interact', 'message', 'state')},
            'td.scale',
            'no distance of states has a weight',
        ),
        (
            {'method': 'hybrid', 'hybrid.weights.feature': 0.0},
            'communication.state_scale',
            'no distance of states has a weight',
        ),
        (
            {'method': 'supervised', 'model.initial': 'teacher', 'teacher.control': 'shuffled'},
            'teacher.control',
            'method is supervised',
        ),
        ({'method': 'ld', 'teacher.control': 'shuffled_states'}, 'teacher.control', 'method is ld'),
        ({'method': 'ld'}, 'logits.temperature', 'logits.distance is l2'),
        ({'method': 'supervised'}, 'teacher.num_steps', 'method is supervised, without a teacher'),
        ({'td.rounds': 0}, 'td.noise_std', 'there are no rounds of interaction'),
        ({'td.weights.interact': 0.0}, 'td.reference', 'there are no rounds of interaction'),
        ({'td.rounds': 1}, 'td.reference', 'td.rounds is 1, and a first round knows one state only'),
        ({}, 'optimizer.momentum', 'optimizer.name is adamw'),
        ({}, 'teacher.optimizer.momentum', 'teacher.optimizer.name is adamw'),
        ({}, 'optimizer.decayed', 'optimizer.weight_decay is 0'),
        ({}, 'model.variant', 'model.name is mlp'),
        ({'teacher.model.name': 'vit'}, 'teacher.model.hidden', 'teacher.model.name is vit'),
        ({'dataset.name': 'digits'}, 'dataset.user_oov_rate', 'dataset.name is digits'),
        ({'dataset.name': 'cifar10'}, 'dataset.shuffle_buffer', 'dataset.name is cifar10'),
        ({'dataset.name': 'movielens'}, 'dataset.classes', 'dataset.name is movielens'),
        ({}, 'eval_every', 'dataset.split is test, which is read once, at the end'),
        ({}, 'dataset.validation_slice', 'dataset.split is test'),
        ({'dataset.name': 'digits'}, 'dataset.split_by', 'dataset.name is digits'),
        ({'dataset.name': 'digits'}, 'teacher.model.embedding_width', 'dataset.name is digits'),
        ({'dataset.name': 'ratings'}, 'dataset.min_title_word_count', 'dataset.words is empty'),
        (
            {'teacher.pretrained': 'a.npz', 'dataset.name': 'ratings'},
            'teacher.dataset.filter_value',
            'teacher.pretrained is not trained here',
        ),
        ({'teacher.checkpoint': 'runs/t'}, 'teacher.seed', 'teacher.checkpoint is trained already'),
        (
            {'method': 'supervised', 'dataset.unlabelled': 'rest'},
            'dataset.unlabelled',
            'the task is the only term',
        ),
        ({}, 'unlabelled_batch_size', 'dataset.unlabelled is empty'),
        ({'teacher.views': 4}, 'teacher.unlabelled_views', 'dataset.unlabelled is empty'),
        ({'dataset.unlabelled': 'rest'}, 'teacher.unlabelled_views', 'teacher.views is 0'),
        (
            {'dataset.unlabelled': 'rest', 'teacher.views': 4, 'teacher.inputs': 'clean'},
            'teacher.unlabelled_views',
            'teacher.inputs is clean',
        ),
        *(
            (
                changes | {'teacher.views': 4, 'dataset.unlabelled': 'rest'},
                key,
                'training examples have no random variation',
            )
            for key in ('teacher.views', 'teacher.unlabelled_views')
            for changes in (
                {'dataset.name': 'digits'},
                {'dataset.name': 'cifar10', 'dataset.min_crop_area': 1.0, 'dataset.mirror_rate': 0.0},
                {'dataset.user_oov_rate': 0.0, 'dataset.movie_oov_rate': 0.0},
            )
        ),
    ],
)
def test_an_option_without_effect_is_reported_with_the_reason(changes, key, reason):
    config = common.get_config()
    config.update_from_flattened_dict(changes)
    assert config_lib.explain_without_effect(config, [key, 'num_steps']) == {key: reason}


@pytest.mark.parametrize(
    'changes',
    [
        {'dataset.name': 'cifar10', 'dataset.min_crop_area': 1.0},
        {'dataset.name': 'cifar10', 'dataset.mirror_rate': 0.0},
        {'dataset.user_oov_rate': 0.0},
        {'dataset.name': 'of a caller'},
    ],
)
def test_views_of_examples_that_vary_have_an_effect(changes):
    config = common.get_config()
    config.update_from_flattened_dict({'teacher.views': 4, **changes})
    assert config_lib.explain_without_effect(config, ['teacher.views']) == {}


def test_every_option_has_an_effect_in_some_run():
    """No option is reported as without effect in every config."""
    never_effective = set(config_lib.flatten(common.get_config()))
    for changes in (
        {'td.rounds': 2, 'dataset.split': 'validation', 'td.weights.logits': 1.0, 'logits.distance': 'kl'},
        {'dataset.name': 'imagenet', 'model.name': 'vit', 'teacher.model.name': 'vit'},
        {'dataset.name': 'ratings'},
        {'dataset.name': 'digits', 'dataset.examples_per_class': 5, 'dataset.unlabelled': 'rest'},
        {'method': 'ld', 'teacher.labels': 'probe'},
        {'dataset.name': 'tfds', 'model.name': 'vit'},
        {'dataset.name': 'tfds', 'model.name': 'efficientnet', 'teacher.model.name': 'efficientnet'},
        *({'method': method} for method in objectives.METHODS),
        {'num_seeds': 2},
        {'dataset.unlabelled': 'rest', 'teacher.views': 4},
        {
            f'{prefix}optimizer.{option}': value
            for prefix in ('', 'teacher.')
            for option, value in (('name', 'sgd'), ('weight_decay', 0.1))
        },
    ):
        config = common.get_config()
        config.update_from_flattened_dict(changes)
        never_effective &= config_lib.explain_without_effect(config, never_effective).keys()
    # The teacher's task has the options of a task.
    assert never_effective == set()


@pytest.mark.parametrize('key', ['dataset.image_mean', 'teacher.dataset.image_std'])
@pytest.mark.parametrize('value', [(0.5,), (0.5,) * 4])
def test_colours_are_three(key, value):
    assert_refused(set_value(key, value), key, str(value), 'three numbers, for red, green and blue')


def test_colours_need_not_be_whole():
    config_lib.check(set_value('dataset.image_mean', (0.485, 0, 1)))
