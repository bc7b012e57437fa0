"""What the distances of a conversation are divided by, and where their gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.configs import common
from td_jax.method import objectives, shared, talking
from td_jax.models import base

BATCH, LOWER, UPPER, TEACHER_LOWER, TEACHER_UPPER = 7, 5, 2, 3, 11


def state(seed, *widths):
    return tuple(np.random.default_rng(seed).normal(size=(BATCH, w)).astype(np.float32) for w in widths)


def test_the_variance_is_the_mean_of_those_of_all_features():
    parts = state(0, LOWER, UPPER)
    joined = np.concatenate(parts, -1)
    np.testing.assert_allclose(talking.variance(parts), joined.var(axis=0).mean(), rtol=1e-6)
    # Of every token's features, seen from the other examples.
    tokens = tuple(np.stack([x, 3 * x + 1], axis=1) for x in parts)
    np.testing.assert_allclose(talking.variance(tokens), 5 * joined.var(axis=0).mean(), rtol=1e-5)


def test_a_scaled_distance_does_not_see_the_size_of_both():
    target, found = state(0, LOWER, UPPER), state(1, LOWER, UPPER)
    plain, scaled = [
        talking.measure(target, found, scale=scale, stop_target=False) for scale in ('none', 'variance')
    ]
    np.testing.assert_allclose(scaled, plain / (talking.variance(target) + 1e-6), rtol=1e-6)
    large = [tuple(10 * x for x in each) for each in (target, found)]
    np.testing.assert_allclose(
        talking.measure(*large, scale='variance', stop_target=False), scaled, rtol=1e-4
    )


def test_a_target_without_variance_is_divided_by_a_little():
    target, found = (jnp.ones((BATCH, 3)),), (jnp.zeros((BATCH, 3)),)
    value = talking.measure(target, found, scale='variance', stop_target=False)
    np.testing.assert_allclose(value, np.full(BATCH, 1e6), rtol=1e-4)


@pytest.mark.parametrize('stop_target', [False, True])
def test_no_gradient_flows_through_the_divisor_nor_a_stopped_target(stop_target):
    (target,), (found,) = state(0, 3), state(1, 3)

    def mean(target, found):
        return talking.measure((target,), (found,), scale='variance', stop_target=stop_target).mean()

    of_target, of_found = jax.grad(mean, argnums=(0, 1))(target, found)
    variance = target.var(axis=0).mean() + 1e-6
    expected = 2 * (target - found) / target.size / variance
    np.testing.assert_allclose(of_found, -expected, rtol=1e-4)
    np.testing.assert_allclose(of_target, 0 * expected if stop_target else expected, rtol=1e-4)


def gradients(term, **changes):
    """{what: whether the gradient of one term of TD reaches it} of the student's states and all modules."""
    config = common.get_config()
    config.communication.hidden, config.communication.message = 13, 11
    for name in config.td.weights:
        config.td.weights[name] = float(name == term)
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    g = base.Activations(*state(0, LOWER, UPPER, 1))
    h = base.Activations(*state(1, TEACHER_LOWER, TEACHER_UPPER, 1))
    objective = objectives.METHODS['td']
    params = objective.init(jax.random.key(0), g, h, config, 1)

    def loss(params, s, e):
        student = shared.Participant(g._replace(lower=s, upper=e), lambda s, key: s[:, :UPPER])
        teacher = shared.Participant(h, lambda s, key: jnp.tile(s, 4)[:, :TEACHER_UPPER])
        return objective.terms(params, student, teacher, jnp.zeros(BATCH), config, None)[term].mean()

    of_params, of_s, of_e = jax.grad(loss, argnums=(0, 1, 2))(params, g.lower, g.upper)
    reached = {name: any(np.any(leaf) for leaf in jax.tree.leaves(of_params[name])) for name in of_params}
    return {**reached, 's': bool(np.any(of_s)), 'e': bool(np.any(of_e))}


@pytest.mark.long
def test_what_a_stopped_target_leaves_to_be_learned():
    everything = dict.fromkeys(('student_encoder', 's', 'e'), True)
    free = gradients('message')
    assert free == {**everything, 'teacher_encoder': True, 'student_decoder': False, 'teacher_decoder': False}
    # The teacher's message is given.
    assert gradients('message', td__stop_target=True) == {**free, 'teacher_encoder': False}
    # The student's state still moves by what is decoded from its message, of the teacher's state.
    assert gradients('state', td__stop_target=True) == dict.fromkeys(free, True)
    assert gradients('interact', td__stop_target=True) == dict.fromkeys(free, True)


def test_scaled_distances_under_vmap_are_those_of_each_seed():
    targets, founds = (np.stack([*state(seed, 3), *state(seed + 9, 3)]) for seed in (0, 1))
    targets[1] *= 5

    def run(target, found):
        return talking.measure((target,), (found,), scale='variance', stop_target=False)

    together = jax.vmap(run)(targets, founds)
    for i in range(2):
        np.testing.assert_allclose(together[i], run(targets[i], founds[i]), rtol=1e-6)
