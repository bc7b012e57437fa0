"""The training step: which parameters it changes, and that seeds side by side equal seeds one by one."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from td_jax.devices import fingerprint, sharding
from td_jax.method import objectives
from td_jax.models import base
from td_jax.training import assembly, dispatch, optimizer, train_step


def build(config):
    """(Dispatch, Teacher, keys) of a config, the teacher untrained."""
    source, teacher_source = (
        assembly.load_source(config, task) for task in (config.dataset, config.teacher.dataset)
    )
    teacher = None
    if objectives.reads_teacher(config):
        teacher = assembly.untrained_teacher(config, teacher_source)
    mesh = sharding.make_mesh(config)
    return assembly.assemble(config, source, teacher, mesh), teacher, dispatch.seed_keys(config)


def advance(run, keys, state, stop):
    """Trains from a state until a step; returns the Progress."""
    step = int(state.step[0])
    progress, _ = run.run(run.begin(state), run.feed(keys, step), keys, step, stop)
    return progress


def train(config, steps=3):
    """Trains a few steps: (state before, state after, sums of metrics, finite)."""
    run, teacher, keys = build(config)
    state = run.init(keys)
    before = jax.tree.map(np.array, state)
    after, sums, finite = advance(run, keys, state, steps)
    return before, jax.tree.map(np.array, after), sums, finite, teacher


def list_changed(before, after):
    return [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
        if not np.array_equal(a, b)
    ]


@pytest.mark.parametrize('inputs', ['clean', pytest.param('varied', marks=pytest.mark.long)])
def test_student_and_all_modules_move_and_the_teacher_does_not(small_config, inputs):
    config = small_config(optimizer__weight_decay=0.1, teacher__inputs=inputs)
    run, teacher, keys = build(config)
    of_teacher = fingerprint.of(teacher.params)
    state = run.init(keys)
    before = jax.tree.map(np.array, state.params)
    state, _, finite = advance(run, keys, state, 3)
    assert finite
    assert fingerprint.of(run.constants.teacher_params) == of_teacher
    assert len(list_changed(before, state.params)) == len(jax.tree.leaves(before))
    assert set(before[train_step.COMMUNICATION]) == {
        'student_encoder',
        'student_decoder',
        'teacher_encoder',
        'teacher_decoder',
    }


def test_no_gradient_of_the_teacher_is_computed(small_config):
    """No array of the gradient, the optimizer or the products has the shape of a teacher's kernel."""
    config = small_config(teacher__inputs='varied', num_seeds=1)
    run, teacher, keys = build(config)
    state = run.init(keys)
    teacher_shapes = {leaf.shape for leaf in jax.tree.leaves(teacher.params) if leaf.ndim == 2}
    assert teacher_shapes == {(64, 7), (7, 11), (11, 5)}
    for leaf in jax.tree.leaves(state):
        assert leaf.shape[1:] not in teacher_shapes
    arguments = run.begin(state), run.feed(keys, 0), run.constants, keys, 1
    text = str(jax.make_jaxpr(run.jitted)(*arguments))
    # Its kernels are inputs of products; a gradient of one would be an output with its shape.
    for rows, columns in ((7, 11), (11, 5)):
        assert f'f32[{columns},{rows}] = dot_general' not in text
        assert f'f32[{rows},{columns}] = dot_general' not in text


@pytest.mark.long
def test_a_student_made_of_the_teachers_arrays_survives_donation(small_config):
    config = small_config(model__hidden=(7, 11), num_seeds=1)
    run, teacher, keys = build(config)
    state = run.init(keys)
    params = dict(state.params)
    params[train_step.STUDENT] = jax.tree.map(lambda leaf: leaf[None], teacher.params)
    state = state._replace(params=params)
    for stop in (1, 2):
        state, _, finite = advance(run, keys, state, stop)
        assert finite
    assert np.all(np.isfinite(jax.tree.leaves(run.constants.teacher_params)[0]))


@pytest.mark.parametrize(
    'method', ['supervised', *(pytest.param(name, marks=pytest.mark.long) for name in ('hybrid', 'td'))]
)
def test_seeds_side_by_side_are_seeds_one_by_one(comparable_config, method):
    changes = {'method': method, 'communication__dropout': 0.2, 'model__dropout': 0.2, 'td__noise_std': 0.1}
    before, together, _, _, _ = train(comparable_config(num_seeds=3, seed=3, **changes))
    for i in range(3):
        # Each seed trains on the examples that it draws.
        _, alone, _, finite, _ = train(comparable_config(num_seeds=1, seed=3 + i, **changes))
        assert finite
        for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=2e-4, atol=2e-6)
    assert len(list_changed(before.params, together.params)) == len(jax.tree.leaves(before.params))


@pytest.mark.long
def test_seeds_differ_in_parameters_order_and_noise(small_config):
    before, _, sums, _, _ = train(small_config(num_seeds=3), steps=1)
    kernels = before.params['student']['hidden_layers_0']['kernel']
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    assert len(set(np.asarray(sums['task']).tolist())) == 3


@pytest.mark.parametrize('method', ['fitnet', pytest.param('td', marks=pytest.mark.long)])
def test_the_cut_of_the_steps_does_not_change_a_bit(method, small_config):
    """An epoch of the 50 labelled examples has 6 steps, one of the 20 others has 4."""
    changes = {'method': method, 'dataset__unlabelled': '20', 'unlabelled_batch_size': 5}
    config = small_config(model__dropout=0.3, **changes)
    run, _, keys = build(config)
    ends = []
    for stops in ((13,), (1, 2, 5, 6, 12, 13)):
        progress, order, step = run.begin(run.init(keys)), run.feed(keys, 0), 0
        for stop in stops:
            progress, order = run.run(progress, order, keys, step, stop)
            for own, expected in zip(order, run.feed(keys, stop), strict=True):
                np.testing.assert_array_equal(own, expected)
            step = stop
        ends.append(fingerprint.of(progress))
    assert ends[0] == ends[1]


def test_training_stops_at_the_step_whose_loss_is_not_finite(small_config):
    config = small_config(optimizer__name='sgd', optimizer__learning_rate=1e30, method='supervised')
    _, after, _, finite, _ = train(config, steps=6)
    assert not finite
    assert after.step[0] < 6


def make_linear_step(config, task='regression'):
    """A step of a linear student with one weight, for cases by hand."""
    student = base.Model(
        init=lambda key, inputs: {'w': jnp.ones(())},
        lower=lambda params, inputs, key: inputs['x'] * params['w'],
        upper=lambda params, s, key: s,
        head=lambda params, e: e,
    )
    return train_step.make_step(student, task, 1, config)


def make_number_batch(x, labels, mask):
    return train_step.Batch({'x': jnp.asarray(x)[:, None]}, jnp.asarray(labels), jnp.asarray(mask), None)


def test_one_step_of_sgd_by_hand(small_config):
    config = small_config(
        method='supervised',
        optimizer__name='sgd',
        optimizer__learning_rate=0.1,
        optimizer__momentum=0.0,
    )
    step = make_linear_step(config)
    # Two real examples and a padding one: d/dw mean((wx - y)^2) = mean(2x(wx - y)) = (2*1*-1 + 2*3*2) / 2.
    batch = make_number_batch([1.0, 3.0, 99.0], [2.0, 1.0, 5.0], [1.0, 1.0, 0.0])
    state = step.init(jax.random.key(0), batch)
    state, metrics = step.update(
        state, jax.random.key(1), None, batch, train_step.read_hyperparameters(config)
    )
    np.testing.assert_allclose(state.params['student']['w'], 1 - 0.1 * 5, rtol=1e-6)
    np.testing.assert_allclose(metrics['loss'], (1 + 4) / 2)
    np.testing.assert_allclose(metrics['gradient_norm'], 5)
    np.testing.assert_allclose(metrics['learning_rate'], 0.1)
    assert state.step == 1


@pytest.mark.parametrize(('clip', 'expected'), [(2.0, 1 - 0.1 * 2), (7.0, 1 - 0.1 * 5)])
def test_the_gradient_is_clipped_by_its_norm(small_config, clip, expected):
    config = small_config(
        method='supervised',
        optimizer__name='sgd',
        optimizer__learning_rate=0.1,
        optimizer__momentum=0.0,
        optimizer__clip_norm=clip,
    )
    step = make_linear_step(config)
    batch = make_number_batch([1.0, 3.0], [2.0, 1.0], [1.0, 1.0])
    state = step.init(jax.random.key(0), batch)
    state, _ = step.update(state, jax.random.key(1), None, batch, train_step.read_hyperparameters(config))
    np.testing.assert_allclose(state.params['student']['w'], expected, rtol=1e-6)


def test_numbers_are_arguments_of_one_program(small_config):
    """Runs that differ only in weights, learning rate and decay share a program, with their own results."""
    changes = {
        'td__weights__interact': 30.0,
        'td__weights__state': 0.3,
        'optimizer__learning_rate': 0.02,
        'optimizer__weight_decay': 0.5,
    }
    run, _, keys = build(small_config(optimizer__weight_decay=0.1))
    other, _, _ = build(small_config(**changes))
    texts = [
        one.jitted.lower(one.begin(one.init(keys)), one.feed(keys, 0), one.constants, keys, 2).as_text()
        for one in (run, other)
    ]
    assert texts[0] == texts[1]
    ends = [advance(one, keys, one.init(keys), 2) for one in (run, other)]
    np.testing.assert_allclose(ends[1].sums['learning_rate'], 2 * 0.02, rtol=1e-6)
    sums = jax.tree.map(np.asarray, ends[1].sums)
    total = sums['task'] + 30 * sums['interact'] + sums['message'] + 0.3 * sums['state']
    np.testing.assert_allclose(sums['loss'], total, rtol=1e-5)
    assert len(list_changed(ends[0].state.params, ends[1].state.params)) == len(
        jax.tree.leaves(ends[0].state.params)
    )


def test_ramp_up_trains_one_group_then_the_other_then_both(small_config):
    config = small_config(td__ramp_up=(2, 3), num_steps=9, optimizer__weight_decay=0.1)
    run, _, keys = build(config)
    state = run.init(keys)
    moves = []
    for stop in range(1, 8):
        before = jax.tree.map(np.array, (state.params, state.opt_state))
        state, _, _ = advance(run, keys, state, stop)
        after = state.params, state.opt_state
        moves.append(
            tuple(
                bool(list_changed([part[group] for part in before], [part[group] for part in after]))
                for group in (train_step.STUDENT, train_step.COMMUNICATION)
            )
        )
    assert moves == [(True, False)] * 2 + [(False, True)] * 3 + [(True, True)] * 2


@pytest.mark.long
def test_ramp_up_starts_with_the_task_alone(comparable_config):
    before, ramped, _, _, _ = train(comparable_config(td__ramp_up=(3, 1)), steps=2)
    config = comparable_config(method='supervised')
    run, _, keys = build(config)
    state, _, _ = advance(run, keys, run.init(keys), 2)
    for a, b in zip(
        jax.tree.leaves(ramped.params['student']), jax.tree.leaves(state.params['student']), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert list_changed(before.params['student'], ramped.params['student'])


def test_weights_warm_up_after_the_student_was_alone(small_config):
    weights = {'interact': 2.0, 'message': 3.0, 'state': 0.5}
    config = small_config(td__ramp_up=(1, 0), td__warmup_steps=3, num_steps=6)
    config.td.weights.update(weights)
    run, _, keys = build(config)
    state, shares = run.init(keys), []
    for stop in range(1, 7):
        state, sums, _ = advance(run, keys, state, stop)
        terms = sum(weight * sums[term] for term, weight in weights.items())
        shares.append((sums['loss'] - sums['task']) / terms)
    np.testing.assert_allclose(shares, np.transpose([[0, 1 / 3, 2 / 3, 1, 1, 1]] * 2), atol=1e-5)


def test_learning_rates(small_config):
    config = small_config(optimizer__learning_rate=0.5, optimizer__warmup_steps=4)
    _, rate = optimizer.make_optimizer(config.optimizer, 12)
    np.testing.assert_allclose([rate(i) for i in (0, 2, 4, 11)], [0, 0.25, 0.5, 0.5])
    config.optimizer.schedule = 'cosine'
    _, rate = optimizer.make_optimizer(config.optimizer, 12)
    np.testing.assert_allclose([rate(i) for i in (2, 4, 8, 12)], [0.25, 0.5, 0.25, 0], atol=1e-7)


def compute_first_update(config, params, grads):
    """The first update of an optimizer."""
    tx, rate = optimizer.make_optimizer(config.optimizer, 5)
    directions, _ = tx.update(grads, tx.init(params), params)
    return jax.tree.map(lambda direction: -rate(0) * direction, directions)


def test_adamw_by_hand_and_by_optax(small_config):
    config = small_config(
        optimizer__weight_decay=0.3, optimizer__learning_rate=0.01, optimizer__decayed='all'
    )
    params, grads = {'w': jnp.array([1.0, -2.0])}, {'w': jnp.array([0.5, 0.1])}
    updates = compute_first_update(config, params, grads)
    # First step of Adam: a step of the learning rate along the sign, then the decay.
    np.testing.assert_allclose(updates['w'], [-0.01 - 0.003, -0.01 + 0.006], rtol=1e-4)
    theirs = optax.adamw(0.01, weight_decay=0.3)
    expected, _ = theirs.update(grads, theirs.init(params), params)
    np.testing.assert_allclose(updates['w'], expected['w'], rtol=1e-6)


def test_the_decay_of_sgd_is_decoupled_from_its_momentum(small_config):
    """Two steps by hand: v = 0.5 v + g, w = w - 0.1 (v + 0.2 w)."""
    config = small_config(
        optimizer__name='sgd',
        optimizer__momentum=0.5,
        optimizer__learning_rate=0.1,
        optimizer__weight_decay=0.2,
    )
    tx, rate = optimizer.make_optimizer(config.optimizer, 5)
    params = {'kernel': jnp.array([1.0])}
    state = tx.init(params)
    expected, velocity = 1.0, 0.0
    for gradient in (0.4, -0.3):
        directions, state = tx.update({'kernel': jnp.array([gradient])}, state, params)
        params = jax.tree.map(lambda w, d: w - rate(0) * d, params, directions)
        velocity = 0.5 * velocity + gradient
        expected -= 0.1 * (velocity + 0.2 * expected)
        np.testing.assert_allclose(params['kernel'], expected, rtol=1e-6)


def test_decay_acts_on_kernels_alone(small_config):
    """Without a gradient, only decay changes parameters of a ViT, an embedding and a communication module."""
    config = small_config(optimizer__name='sgd', optimizer__weight_decay=0.5, optimizer__learning_rate=1.0)
    names = {
        'block_0/mlp_in/kernel': True,
        'block_0/mlp_in/bias': False,
        'block_0/attention_norm/scale': False,
        'cls': False,
        'pos_embedding': False,
        'embedding/kernel': True,
        'user_embedding/embedding': True,
        'student_encoder/hidden/kernel_1': True,
    }
    params = flax.traverse_util.unflatten_dict({name: jnp.ones(2) for name in names}, sep='/')
    updates = compute_first_update(config, params, jax.tree.map(jnp.zeros_like, params))
    moved_by_decay = {
        name: bool(np.any(update))
        for name, update in flax.traverse_util.flatten_dict(updates, sep='/').items()
    }
    assert moved_by_decay == names
    config.optimizer.decayed = 'all'
    updates = compute_first_update(config, params, jax.tree.map(jnp.zeros_like, params))
    assert all(np.all(np.asarray(update) == -0.5) for update in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    'method',
    [
        method if method == 'td' else pytest.param(method, marks=pytest.mark.long)
        for method in objectives.METHODS
        if method != 'supervised'
    ],
)
def test_a_method_without_weights_trains_the_student_from_scratch(small_config, method):
    """Bit for bit, with clipping, decay, dropout and a schedule."""
    changes = {
        'model__dropout': 0.3,
        'optimizer__clip_norm': 0.1,
        'optimizer__weight_decay': 0.1,
        'optimizer__schedule': 'cosine',
        'optimizer__warmup_steps': 1,
    }
    _, scratch, _, _, _ = train(small_config(method='supervised', **changes))
    config = small_config(method=method, **changes)
    for term in config[method].weights:
        config[method].weights[term] = 0.0
    _, alone, sums, _, _ = train(config)
    assert set(sums) == {'loss', 'task', 'gradient_norm', 'learning_rate'}
    for a, b in zip(
        jax.tree.leaves(alone.params['student']), jax.tree.leaves(scratch.params['student']), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_the_communication_modules_do_not_scale_the_students_gradient(small_config):
    """A huge loss of the modules does not reduce the clipped update of the student."""
    config = small_config(
        method='fd',
        optimizer__name='sgd',
        optimizer__momentum=0.0,
        optimizer__learning_rate=1.0,
        optimizer__clip_norm=1e-3,
        fd__weights__feature=1e4,
        num_seeds=1,
    )
    before, after, _, _, _ = train(config, steps=1)
    for group in (train_step.STUDENT, train_step.COMMUNICATION):
        squares = jax.tree.map(
            lambda a, b: np.sum(np.square(a - b, dtype=np.float64)), before.params[group], after.params[group]
        )
        np.testing.assert_allclose(np.sqrt(sum(jax.tree.leaves(squares))), 1e-3, rtol=1e-3)


def test_the_learning_rate_of_the_log_is_that_of_the_step_after_a_ramp_up(small_config):
    """With SGD, the update divided by the known gradient is the logged learning rate."""
    config = small_config(
        td__ramp_up=(2, 2),
        num_steps=9,
        optimizer__schedule='cosine',
        optimizer__name='sgd',
        optimizer__momentum=0.0,
        optimizer__learning_rate=0.5,
        num_seeds=1,
    )
    run, _, keys = build(config)
    state = run.init(keys)
    for stop in range(1, 9):
        before = jax.tree.map(np.array, state.params)
        state, sums, _ = advance(run, keys, state, stop)
        moves = [
            np.sum(np.square(a - np.asarray(b), dtype=np.float64))
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True)
        ]
        moving = stop > 4  # During the ramp-up one of the two groups is not trained, but the norm is of both.
        if moving:
            np.testing.assert_allclose(
                np.sqrt(sum(moves)), sums['learning_rate'][0] * sums['gradient_norm'][0], rtol=1e-3
            )
        np.testing.assert_allclose(
            sums['learning_rate'][0], 0.25 * (1 + np.cos(np.pi * (stop - 1) / 9)), rtol=1e-5
        )
