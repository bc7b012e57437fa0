"""Which parameters the gradients of a conversation reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.configs import common
from td_jax.method import objectives, shared
from td_jax.models import base

BATCH, LOWER, UPPER, TEACHER_LOWER, TEACHER_UPPER = 7, 5, 2, 3, 11


def draw_state(seed, *widths):
    return tuple(np.random.default_rng(seed).normal(size=(BATCH, w)).astype(np.float32) for w in widths)


def find_reached_by_gradient(term, **changes):
    """{name: whether the gradient of a term of TD reaches it} for the student's states and all modules."""
    config = common.get_config()
    config.communication.hidden, config.communication.message = 13, 11
    for name in config.td.weights:
        config.td.weights[name] = float(name == term)
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    g = base.Activations(*draw_state(0, LOWER, UPPER, 1))
    h = base.Activations(*draw_state(1, TEACHER_LOWER, TEACHER_UPPER, 1))
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
    reached = find_reached_by_gradient('message')
    assert reached == {
        **everything,
        'teacher_encoder': True,
        'student_decoder': False,
        'teacher_decoder': False,
    }
    # The teacher's message is the constant target.
    assert find_reached_by_gradient('message', td__stop_target=True) == {**reached, 'teacher_encoder': False}
    # The student's state still has a gradient by the teacher's state that is decoded from its message.
    assert find_reached_by_gradient('state', td__stop_target=True) == dict.fromkeys(reached, True)
    assert find_reached_by_gradient('interact', td__stop_target=True) == dict.fromkeys(reached, True)
