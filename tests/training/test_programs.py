"""Runs in one process share traced programs, with the results that each has alone."""

import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax.data import base as data
from td_jax.devices import sharding
from td_jax.errors import UserError
from td_jax.training import assembly, dispatch, preflight, programs
from td_jax.training.programs import Programs
from td_jax.training.run import train

# Changes of arguments of a compiled step: other runs of the same program.
OTHER_ARGUMENTS = {
    'seed': 7,
    'seed_step': 3,
    'teacher__seed': 5,
    'optimizer__learning_rate': 0.004,
    'optimizer__weight_decay': 0.3,
    'hybrid__weights__logits': 2.5,
    'num_steps': 4,
}


@pytest.fixture
def traced_methods(monkeypatch):
    """The methods of the steps that are traced, in order."""
    methods, update = [], dispatch._Parts.update_all_seeds

    def update_and_record(self, *inputs):
        methods.append(self.config.method)
        return update(self, *inputs)

    monkeypatch.setattr(dispatch._Parts, 'update_all_seeds', update_and_record)
    return methods


@pytest.mark.long
def test_a_run_with_the_programs_of_another_computes_what_it_computes_alone(
    small_config, tmp_path, outcome, traced_methods
):
    shared, settings = Programs(), {'method': 'hybrid', 'diagnostics': True, 'model__dropout': 0.2}
    first = small_config(optimizer__weight_decay=0.1, **settings)
    second = small_config(**settings, **OTHER_ARGUMENTS)
    train(first, epath.Path(tmp_path / 'first'), programs=shared)
    # The teacher's step is traced in the checks, and used by its own run.
    assert sorted(traced_methods) == ['hybrid', 'supervised']
    traced_methods.clear()
    train(second, epath.Path(tmp_path / 'second'), programs=shared)
    assert not traced_methods
    train(second, epath.Path(tmp_path / 'alone'))
    assert sorted(traced_methods) == ['hybrid', 'supervised']
    for part in ('', 'teacher'):
        assert outcome(tmp_path / 'second' / part) == outcome(tmp_path / 'alone' / part)
        assert outcome(tmp_path / 'second' / part) != outcome(tmp_path / 'first' / part)


def get_programs(shared, config, source=None):
    """The entry of the Programs for a config; nothing is traced."""
    source = source or assembly.load_source(config, config.dataset)
    teacher_source = assembly.load_source(config, config.teacher.dataset)
    return shared.get_or_make(config, source, teacher_source, sharding.make_mesh(config), object)


@pytest.mark.parametrize(
    'change',
    [
        {'optimizer__weight_decay': 0.0},
        {'fitnet__weights__state': 0.0},
        {'model__dropout': 0.3},
        {'num_seeds': 1},
        {'teacher__control': 'shuffled'},
        {'dataset__classes': (5, 6, 7, 8)},
        {'optimizer__schedule': 'cosine', 'num_steps': 5},
    ],
    ids='-'.join,
)
def test_what_is_part_of_a_program_makes_another(change, small_config):
    shared, settings = Programs(), {'method': 'fitnet', 'optimizer__weight_decay': 0.1}
    first, second = small_config(**settings), small_config(**(settings | change))
    programs_made = [get_programs(shared, config) for config in (first, second, first, second)]
    assert programs_made[0] is programs_made[2]
    assert programs_made[1] is programs_made[3]
    assert programs_made[0] is not programs_made[1]


def test_the_length_of_a_run_is_part_of_it_where_the_learning_rate_decays(small_config):
    for schedule, is_one in (('constant', True), ('cosine', False)):
        shared = Programs()
        configs = [small_config(optimizer__schedule=schedule, num_steps=steps) for steps in (6, 8)]
        programs_made = [get_programs(shared, config) for config in configs]
        assert (programs_made[0] is programs_made[1]) == is_one


def change_value(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    return f'{value}x' if isinstance(value, str) else value + (1 if isinstance(value, int | float) else (1,))


def test_any_option_that_is_read_is_part_of_it_unless_it_is_an_argument(small_config):
    settings = {'method': 'hybrid', 'optimizer__schedule': 'cosine', 'optimizer__weight_decay': 0.5}
    flat = config_lib.flatten(small_config(**settings))
    given_keys = {'hybrid.weights.logits', 'hybrid.weights.feature'}
    given_keys |= {'optimizer.learning_rate', 'optimizer.weight_decay'}
    given_keys |= {'role', 'protocol', 'seed', 'seed_step', 'teacher.seed', 'teacher.checkpoint'}
    unread = config_lib.explain_without_effect(small_config(**settings), flat)
    assert given_keys < set(flat)
    assert {'td.rounds', 'fd.weights.feature'} < set(unread)
    before, parts = programs.describe_program(small_config(**settings)), set(flat) - set(unread) - {'method'}
    for name in parts:
        config = small_config(**settings)
        with config.unlocked(), config.ignore_type():
            config.update_from_flattened_dict({name: change_value(flat[name])})
        # A named teacher is not trained, so options of its training do not count.
        if name != 'teacher.checkpoint':
            assert (programs.describe_program(config) == before) == (name in given_keys), name


def test_data_of_other_shapes_makes_another(small_config):
    shared, config = Programs(), small_config()
    source = assembly.load_source(config, config.dataset)
    pool = source.train
    assert isinstance(pool, data.LabelledPool)
    source = source._replace(train=data.take(pool.examples, pool.rows(0)))
    fewer_examples = {name: array[:-1] for name, array in source.train.items()}
    others = (
        source._replace(train=fewer_examples),
        source._replace(train={**source.train, 'labels': source.train['labels'].astype('int16')}),
        source._replace(label_names=tuple('abcde')),
        source._replace(tables=source.train['labels']),
        source._replace(train=pool),
        source._replace(train=pool._replace(examples=source.train)),
    )
    programs_made = [get_programs(shared, config, other) for other in (source, *others)]
    assert len(set(map(id, programs_made))) == len(programs_made)
    same = source._replace(train={name: array[::-1] for name, array in source.train.items()})
    assert get_programs(shared, config, same) is programs_made[0]


def test_no_more_are_kept_than_fit(small_config, monkeypatch):
    monkeypatch.setattr(programs, 'MOST', 2)
    shared, configs = Programs(), [small_config(batch_size=size) for size in (4, 5, 6)]
    first, second, third = (get_programs(shared, config) for config in configs)
    assert get_programs(shared, configs[2]) is third
    assert get_programs(shared, configs[0]) is not first
    assert get_programs(shared, configs[1]) is not second


def count_mappings():
    """The number of memory mappings of this process."""
    return programs.MAPPINGS.read_text().count('\n')


@pytest.mark.skipif(not programs.MAPPINGS.exists(), reason='this system does not count mappings of memory')
def test_programs_are_let_go_of_before_the_mappings_of_memory_run_out(small_config, tmp_path, monkeypatch):
    """A process that reaches the system's limit cannot compile, and dies."""
    limit = tmp_path / 'limit'
    limit.write_text(f'{10**6}\n')
    monkeypatch.setattr(programs, 'MOST_MAPPINGS', limit)
    shared = Programs()
    first, second, third = (small_config(method='supervised', batch_size=size) for size in (4, 5, 6))
    train(first, epath.Path(tmp_path / 'run'), programs=shared)
    second_programs, mappings_before = get_programs(shared, second), count_mappings()
    # A third of the limit is used, and then two thirds.
    limit.write_text(str(3 * mappings_before))
    get_programs(shared, third)
    assert get_programs(shared, second) is second_programs
    limit.write_text(str(3 * mappings_before // 2))
    assert get_programs(shared, second) is second_programs
    get_programs(shared, first)
    assert get_programs(shared, second) is not second_programs
    assert mappings_before - count_mappings() > 200


@pytest.mark.parametrize('text', [None, 'many'])
def test_a_system_that_does_not_say_has_no_limit(small_config, tmp_path, monkeypatch, text):
    limit = tmp_path / 'limit'
    if text:
        limit.write_text(text)
    monkeypatch.setattr(programs, 'MOST_MAPPINGS', limit)
    shared = Programs()
    programs_made = [get_programs(shared, small_config(batch_size=size)) for size in (4, 5, 4)]
    assert programs_made[0] is programs_made[2]


def test_what_was_refused_is_refused_again(small_config, tmp_path):
    shared, config = Programs(), small_config(method='supervised', model__name='resnet')
    config.model.variant = 'R8x1'
    for _ in range(2):
        with pytest.raises(UserError, match='method supervised cannot be computed'):
            preflight.check(config, epath.Path(tmp_path / 'run'), shared)
