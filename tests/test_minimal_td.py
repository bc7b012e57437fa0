"""The example in one file: its length, and its step, which is the library's."""

import pathlib

import jax
import numpy as np
import pytest

from examples import minimal_td
from td_jax.configs import digits
from td_jax.models import base, mlp
from td_jax.training import train_step

EXAMPLE = pathlib.Path(minimal_td.__file__)
# The layers of the example, in the order of the library's names.
LAYERS = {'hidden_layers_0': 'lower', 'hidden_layers_1': 'upper', 'output_layer': 'head'}


@pytest.fixture
def config():
    """The library's config for the example."""
    config = digits.get_config()
    config.batch_size, config.model.hidden, config.td.rounds = 13, minimal_td.WIDTHS['student'][1:3], 2
    config.optimizer.name, config.optimizer.schedule, config.optimizer.learning_rate = (
        'adamw',
        'constant',
        1e-3,
    )
    config.optimizer.warmup_steps, config.optimizer.weight_decay, config.optimizer.clip_norm = 0, 0.0, 0.0
    config.model.dropout = config.communication.dropout = 0.0
    for name, weight in minimal_td.WEIGHTS.items():
        config.td.weights[name] = weight
    return config


def convert_from_library(params):
    """Converts the library's parameters to the example's tree."""
    student = {own: params[train_step.STUDENT][name] for name, own in LAYERS.items()}
    modules = {name: {'params': tree} for name, tree in params[train_step.COMMUNICATION].items()}
    return {'student': student, **modules}


def test_a_step_is_that_of_the_library(config):
    """The loss and every parameter over three steps, each with another batch."""
    assert config.td.rounds == minimal_td.ROUNDS
    rng = np.random.default_rng(0)
    teacher = minimal_td.init_model(jax.random.key(5), minimal_td.WIDTHS['teacher'])
    step = train_step.make_step(mlp.build(config.model, {}, 5, 'float32'), 'classification', 5, config)
    library_update = jax.jit(
        lambda state, batch: step.update(
            state,
            jax.random.key(1),
            lambda s: minimal_td.run_upper(teacher, s),
            batch,
            train_step.read_hyperparameters(config),
        )
    )
    # The library refuses arrays that broadcast by rank; the example's layers add a bias as NumPy does.
    with jax.numpy_rank_promotion('allow'):
        state = params = None
        for _ in range(3):
            images = rng.random((config.batch_size, 64), np.float32)
            labels = rng.integers(0, 5, config.batch_size)
            teacher_state, logits = minimal_td.run_model(teacher, images)
            activations = base.Activations(*teacher_state, logits)
            batch = train_step.Batch({'image': images}, labels, np.ones(len(labels), np.float32), activations)
            if state is None:
                state = step.init(jax.random.key(0), batch)
                params = convert_from_library(state.params)
                optimizer_state = minimal_td.OPTIMIZER.init(params)
            before = params
            state, metrics = library_update(state, batch)
            params, optimizer_state, loss = minimal_td.update(
                params, optimizer_state, teacher, images, labels
            )
            np.testing.assert_allclose(loss, metrics['loss'], rtol=1e-6)
            has_changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, params)
            assert all(jax.tree.leaves(has_changed))
            jax.tree.map(
                lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7),
                params,
                convert_from_library(state.params),
            )


def test_it_stays_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 150


@pytest.mark.long
def test_it_prints_the_accuracy_of_both(monkeypatch, capsys):
    monkeypatch.setattr(minimal_td, 'STUDENTS', 1)
    with jax.numpy_rank_promotion('allow'):
        minimal_td.main()
    alone, with_teacher = capsys.readouterr().out.splitlines()
    assert alone.startswith('1 students alone: mean test accuracy 0.9')
    assert with_teacher.startswith('1 students with the teacher: mean test accuracy 0.9')
