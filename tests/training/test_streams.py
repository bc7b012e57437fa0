"""Random streams: a student and a teacher of one seed, and their parts, have no random numbers in common."""

import itertools
import json

import jax
import numpy as np
import pytest

from td_jax import config as config_lib
from td_jax import randomness
from td_jax.configs import movielens
from td_jax.data.base import TrainStream
from td_jax.devices import sharding
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.method import objectives
from td_jax.models import base
from td_jax.training import assembly, dispatch, train_step
from td_jax.training.run import train


def draw_initial_params(config, seed_index=0):
    """The student's parameters before the first step of a run without a teacher."""
    source = assembly.load_source(config, config.dataset)
    run = assembly.assemble(config, source, None, sharding.make_mesh(config))
    params = run.init(dispatch.seed_keys(config)).params[train_step.STUDENT]
    return jax.tree.map(lambda x: np.asarray(x)[seed_index], params)


def flatten_kernels(params):
    return {
        jax.tree_util.keystr(path): leaf.ravel()
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.ndim > 1
    }


def test_a_student_and_a_teacher_of_one_seed_start_from_unlike_parameters(small_config):
    """With the same architecture and data, only their roles differ."""
    config = small_config(method='supervised', model__hidden=(64, 32), num_seeds=2)
    config.teacher.model.hidden, config.teacher.seed = config.model.hidden, config.seed + 1
    config.teacher.dataset.update({key: config.dataset[key] for key in config.teacher.dataset})
    student = flatten_kernels(draw_initial_params(config, seed_index=1))
    teacher_config = config_lib.teacher_run(config)
    teacher = flatten_kernels(draw_initial_params(teacher_config))
    assert student.keys() == teacher.keys() and len(student) == 3
    for name, kernel in student.items():
        (correlation,) = np.corrcoef(kernel, teacher[name])[:1, 1]
        assert abs(correlation) < 4 / np.sqrt(kernel.size), name
    # With the same role the parameters are the same.
    teacher_config.role = 'student'
    for name, kernel in flatten_kernels(draw_initial_params(teacher_config)).items():
        np.testing.assert_array_equal(kernel, student[name])


def test_every_key_of_a_run_is_another_one(small_config):
    """For all seeds of both roles: parameters, modules, the order of examples, variation and dropout."""
    keys = []
    for role in ('student', 'teacher'):
        seed_keys = dispatch.seed_keys(small_config(role=role, num_seeds=3))
        keys += list(seed_keys)
        for key in seed_keys:
            streams = dispatch.split_key(key)
            keys += list(streams)
            for stream, group in itertools.product(streams, (train_step.STUDENT, train_step.COMMUNICATION)):
                keys.append(randomness.fold_name(stream, group))
                keys.append(randomness.fold_name(jax.random.fold_in(stream, 0), group))
    words = {tuple(jax.random.key_data(key).tolist()) for key in keys}
    assert len(words) == len(keys) == 6 * (1 + 4 + 16)


def test_a_seed_is_the_same_among_others(small_config):
    many, alone = (dispatch.seed_keys(small_config(seed=s, num_seeds=n)) for s, n in ((0, 3), (2, 1)))
    assert jax.random.key_data(many[2]).tolist() == jax.random.key_data(alone[0]).tolist()


def test_a_module_starts_alike_in_every_method_that_has_it(small_config):
    """The name of a module decides its random numbers, so methods with common modules differ less."""
    shapes = {'lower': (1, 5), 'upper': (1, 3), 'logits': (1, 5)}
    student = base.Activations(*(np.zeros(shape, np.float32) for shape in shapes.values()))
    teacher = base.Activations(*(np.zeros((1, n), np.float32) for n in (7, 11, 5)))
    modules_by_name = {}
    for method in ('fd', 'hybrid', 'td', 'ld', 'fitnet'):
        config = small_config(method=method, td__weights__logits=1.0, teacher__labels='auxiliary')
        params = objectives.METHODS[method].init(jax.random.key(3), student, teacher, config, 5)
        for name, module in params.items():
            modules_by_name.setdefault(name, []).append(jax.tree.map(np.asarray, module))
    for name in ('student_encoder', 'teacher_encoder', 'auxiliary'):
        first, *others = modules_by_name[name]
        assert len(others) == 2
        for other in others:
            jax.tree.map(np.testing.assert_array_equal, other, first)


def test_the_order_of_a_stream_is_that_of_its_role(small_config, monkeypatch):
    seeds = []
    config = small_config(method='supervised', num_seeds=2)
    source = assembly.load_source(config, config.dataset)
    examples = source.train.examples

    def open_stream(seed, step, batch_size, rows):
        seeds.append(seed)
        while True:
            yield {name: array[:batch_size] for name, array in examples.items()}

    example = {name: array[:1] for name, array in examples.items()}
    source = source._replace(train=TrainStream(len(examples['labels']), example, open_stream))
    for role in ('student', 'teacher'):
        config.role = role
        run = assembly.assemble(config, source, None, sharding.make_mesh(config))
        feed = run.feed(dispatch.seed_keys(config), 0)
        next(feed)
        feed.close()
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- Runs of another protocol ----------------------------------------------------------------------


@pytest.mark.parametrize('is_finished', [True, False])
def test_a_run_of_the_first_protocol_is_neither_continued_nor_taken_for_one_of_today(
    is_finished, small_config, tmp_path
):
    config = small_config(method='supervised', num_seeds=1, num_steps=2)
    train(config, tmp_path)
    path = tmp_path / workdir.CONFIG
    stored = json.loads(path.read_text())
    assert stored['protocol'] == config_lib.PROTOCOL > 1
    # The config of a version without protocols.
    for key in ('protocol', 'role'):
        del stored[key]
    path.write_text(json.dumps(stored))
    if not is_finished:
        (tmp_path / workdir.RESULT).unlink()
        config.num_steps = 4
    before = {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}
    with pytest.raises(
        UserError, match=r'holds a run by another protocol \(1 there, 2 here\).* Choose another'
    ):
        train(config, tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()} == before


def test_a_config_that_does_not_say_its_protocol_is_of_the_first(small_config):
    config = small_config()
    stored = json.loads(config_lib.to_json(config))
    del stored['protocol']
    loaded = config_lib.from_json(stored)
    assert loaded.protocol == 1
    assert config_lib.complete(stored)['protocol'] == 1
    assert config_lib.digest(loaded) != config_lib.digest(config)
    assert config_lib.differences(config, stored)['protocol'] == (1, config_lib.PROTOCOL)


def test_the_digest_of_the_first_protocol_is_what_it_was():
    """docs/results identifies its runs by it; the expected digest was computed by the version before."""
    config = movielens.get_config()
    config.protocol = 1
    assert config_lib.digest(config) == '2d346aa990'


def test_a_protocol_is_not_to_be_chosen(small_config, tmp_path):
    with pytest.raises(
        UserError, match=r'^protocol is 1, but .* trains by protocol 2 alone; leave it out\.$'
    ):
        train(small_config(protocol=1), tmp_path / 'run')
    with pytest.raises(UserError, match=r'^protocol is 99; it must be from 1 to 2\.$'):
        train(small_config(protocol=99), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_teacher_with_the_random_numbers_of_a_student_is_reported(small_config, tmp_path, capsys):
    config = small_config(method='ld', num_seeds=2, num_steps=2, teacher__num_steps=2)
    for role in ('student', 'teacher'):
        teacher_config = config_lib.teacher_run(config)
        teacher_config.role, teacher_config.seed = role, 1
        train(teacher_config, tmp_path / f'teacher_{role}')
        config.teacher.checkpoint = str(tmp_path / f'teacher_{role}')
        capsys.readouterr()
        train(config, tmp_path / f'run_{role}')
        err = capsys.readouterr().err
        assert ('warning: the student of seed 1 starts from the same random numbers' in err) == (
            role == 'student'
        )
