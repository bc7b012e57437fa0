"""Terms that relate the examples of a batch: symmetries, gradients and degenerate batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.configs import common
from td_jax.method import objectives, shared
from td_jax.models import base

BATCH, STUDENT, TEACHER = 7, 5, 3
METHODS = ('rkd', 'crd', 'srd')


def make_objective(method, e_g, e_h, **changes):
    """(config, parameters, function from the student's representations to the terms) of a method."""
    config = common.get_config()
    config.method, config.communication.message = method, 11
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    objective = objectives.METHODS[method]
    g, h = (base.Activations(e[:, :1], e, e[:, :2]) for e in (e_g, e_h))
    params = objective.init(jax.random.key(0), g, h, config, 2)

    def terms(e_g, e_h=e_h, params=params):
        sides = (shared.Participant(g._replace(upper=e), None) for e in (e_g, e_h))
        return objective.terms(params, *sides, jnp.zeros(BATCH, jnp.int32), config, None)

    return config, params, terms


@pytest.fixture
def pair():
    keys = jax.random.split(jax.random.key(1))
    return jax.random.normal(keys[0], (BATCH, STUDENT)), jax.random.normal(keys[1], (BATCH, TEACHER))


def move_points(x):
    """The same points, rotated, scaled by two and shifted."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(x.shape[-1],) * 2))
    return 2 * x @ jnp.asarray(turn, jnp.float32) + 3


def test_relations_are_those_of_a_congruent_figure():
    """Relative distances and angles do not depend on the position or size of a figure."""
    x = jax.random.normal(jax.random.key(2), (BATCH, TEACHER))
    _, _, terms = make_objective('rkd', move_points(x), x)
    for name, value in terms(move_points(x)).items():
        np.testing.assert_allclose(value, np.zeros(BATCH), atol=1e-9, err_msg=name)
    assert all(np.all(value > 1e-4) for value in terms(x[::-1]).values())


@pytest.mark.parametrize('method', METHODS)
def test_terms_follow_their_examples(method, pair):
    """Terms are permuted with the batch; an example alone has other terms."""
    _, _, terms = make_objective(method, *pair)
    order = np.random.default_rng(0).permutation(BATCH)
    original = terms(*pair)
    for name, value in terms(*(x[order] for x in pair)).items():
        np.testing.assert_allclose(value, original[name][order], rtol=1e-5, err_msg=name)
    changed = terms(pair[0].at[0].add(1.0))
    assert all(not np.allclose(changed[name][1:], original[name][1:]) for name in original)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('degenerate', ['equal', 'twins', 'zero'])
def test_examples_in_one_place_have_finite_gradients(method, degenerate, pair):
    e_g, e_h = pair
    e_g = {'equal': jnp.ones_like(e_g), 'twins': e_g.at[1].set(e_g[0]), 'zero': 0 * e_g}[degenerate]
    for target in (e_h, jnp.ones_like(e_h)):
        _, params, terms = make_objective(method, e_g, target)
        values, gradient = jax.value_and_grad(
            lambda e, params, terms=terms: sum(v.mean() for v in terms(e, params=params).values()),
            argnums=(0, 1),
        )(e_g, params)
        assert np.isfinite(values)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('method', METHODS)
def test_gradients_are_those_of_differences(method, pair):
    _, _, terms = make_objective(method, *pair)
    direction = jax.random.normal(jax.random.key(3), pair[0].shape)

    def loss(step):
        return sum(value.mean() for value in terms(pair[0] + step * direction).values())

    step = 1e-2
    expected = (loss(step) - loss(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(0.0), expected, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize('method', METHODS)
def test_bfloat16_states_are_compared_in_float32(method, pair):
    low = tuple(x.astype(jnp.bfloat16) for x in pair)
    _, _, terms = make_objective(method, *low)
    for name, value in terms(*low).items():
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, terms(*(x.astype(jnp.float32) for x in low))[name])


def test_of_a_sequence_the_first_token_counts(pair):
    e_g, e_h = (jnp.stack([x, x + 1], axis=1) for x in pair)
    _, _, terms = make_objective('rkd', *pair)
    expected = terms(*pair)
    for name, value in terms(e_g, e_h).items():
        np.testing.assert_array_equal(value, expected[name])
