"""The MLP against NumPy, and its three parts against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.configs import common, movielens
from td_jax.errors import UserError
from td_jax.models import MODELS, base, mlp

BATCH, USERS, WORDS, USER_WIDTH, WORD_WIDTH, OUTPUTS = 3, 11, 7, 2, 5, 2


def make_config(**changes):
    config = common.model_config()
    config.update({'hidden': (13, 5, 3), 'split': 2, **changes})
    return config


def make_case(**changes):
    """A model with an id, a bag and a plain input, its parameters and a batch."""
    config = make_config(embeddings={'user': USER_WIDTH, 'title': WORD_WIDTH}, **changes)
    model = MODELS['mlp'](config, {'user': USERS, 'title': WORDS}, OUTPUTS, 'float32')
    rng = np.random.default_rng(3)
    inputs = {
        'user': rng.integers(0, USERS, BATCH),
        'title': rng.dirichlet(np.ones(WORDS), BATCH).astype(np.float32),
        'image': rng.normal(size=(BATCH, 2, 3)).astype(np.float32),
    }
    return model, model.init(jax.random.key(1), inputs), inputs


def apply_dense(params, x):
    return x @ np.asarray(params['kernel']) + np.asarray(params['bias'])


def numpy_mlp(params, inputs, split, depth):
    """(s, e, y) of an MLP by the definition."""
    user = np.asarray(params['user_embedding']['embedding'])[inputs['user']]
    title = np.stack(
        [
            sum(
                w * row
                for w, row in zip(bag, np.asarray(params['title_embedding']['embedding']), strict=True)
            )
            for bag in inputs['title']
        ]
    )
    x = np.concatenate([user, title, inputs['image'].reshape(BATCH, 6)], axis=1)
    states = [x]
    for i in range(depth):
        x = np.maximum(apply_dense(params[f'hidden_layers_{i}'], x), 0)
        states.append(x)
    return states[split], states[-1], apply_dense(params['output_layer'], x)


@pytest.mark.parametrize('split', [0, 1, 2, 3])
def test_forward_is_embed_dense_relu_for_every_split(split):
    model, params, inputs = make_case(split=split)
    s, e, y = base.activations(model, params, inputs)
    for ours, expected in zip((s, e, y), numpy_mlp(params, inputs, split, 3), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert (s.shape, e.shape, y.shape) == (
        (BATCH, (USER_WIDTH + WORD_WIDTH + 6, 13, 5, 3)[split]),
        (BATCH, 3),
        (BATCH, OUTPUTS),
    )


def test_parameters_are_those_of_the_widths():
    _, params, _ = make_case()
    width = USER_WIDTH + WORD_WIDTH + 6
    assert jax.tree.map(jnp.shape, params) == {
        'user_embedding': {'embedding': (USERS, USER_WIDTH)},
        'title_embedding': {'embedding': (WORDS, WORD_WIDTH)},
        'hidden_layers_0': {'kernel': (width, 13), 'bias': (13,)},
        'hidden_layers_1': {'kernel': (13, 5), 'bias': (5,)},
        'hidden_layers_2': {'kernel': (5, 3), 'bias': (3,)},
        'output_layer': {'kernel': (3, OUTPUTS), 'bias': (OUTPUTS,)},
    }


@pytest.mark.parametrize('split', [1, 3])
def test_the_parts_in_a_row_are_the_whole(split):
    module = mlp.MLP((7, 5, 3), OUTPUTS, split, 0.0, ())
    inputs = {'image': np.random.default_rng(0).normal(size=(BATCH, 2)).astype(np.float32)}
    variables = module.init(jax.random.key(0), inputs)
    model = base.from_module(module)
    params = variables['params']
    s = model.lower(params, inputs)
    parts = model.head(params, model.upper(params, s))
    np.testing.assert_array_equal(parts, module.apply(variables, inputs))
    # A split after the last layer leaves no layer for `upper`.
    assert np.array_equal(s, model.upper(params, s)) == (split == 3)


def test_upper_takes_states_that_are_not_the_models_own():
    model, params, _ = make_case(split=1)
    suggested = np.random.default_rng(5).normal(size=(BATCH, 13)).astype(np.float32)
    x = np.maximum(apply_dense(params['hidden_layers_1'], suggested), 0)
    expected = np.maximum(apply_dense(params['hidden_layers_2'], x), 0)
    np.testing.assert_allclose(model.upper(params, suggested), expected, rtol=1e-4, atol=1e-6)


def test_dropout_acts_with_a_key_alone():
    plain, params, inputs = make_case(hidden=(1009, 101), split=1, dropout=0.0)
    model, _, _ = make_case(hidden=(1009, 101), split=1, dropout=0.25)
    without = base.activations(plain, params, inputs)
    for ours, expected in zip(base.activations(model, params, inputs), without, strict=True):
        np.testing.assert_array_equal(ours, expected)

    s, e, _ = base.activations(model, params, inputs, jax.random.key(0))
    # Kept units are scaled by 1 / (1 - rate), so that the mean stays; the others are 0.
    is_positive = without.lower > 0
    is_kept = np.asarray(s)[is_positive] > 0
    np.testing.assert_allclose(
        np.asarray(s)[is_positive][is_kept], np.asarray(without.lower)[is_positive][is_kept] / 0.75, 1e-5
    )
    np.testing.assert_allclose(is_kept.mean(), 0.75, atol=0.05)
    again, other = (base.activations(model, params, inputs, jax.random.key(i)) for i in (0, 1))
    np.testing.assert_array_equal(again.upper, e)
    assert np.any(other.lower != s)
    # The upper part draws its own dropout.
    assert np.mean(np.asarray(e) == 0) > np.mean(np.asarray(without.upper) == 0)


@pytest.mark.parametrize('split', [0, 4, -1])
def test_a_split_outside_the_hidden_layers_is_refused(split):
    with pytest.raises(UserError, match=rf'model\.split is {split}; with 3 hidden layers.*between 1 and 3'):
        mlp.build(make_config(split=split), {}, OUTPUTS, 'float32')


def test_a_split_in_front_of_all_layers_needs_embeddings():
    with pytest.raises(UserError, match=r'model\.split is -1; with 3 hidden layers.*between 0 and 3'):
        make_case(split=-1)


@pytest.mark.parametrize('embeddings', [{}, {'user': 2}, {'user': 2, 'title': 3, 'genres': 5}])
def test_embeddings_that_the_data_does_not_have_are_refused(embeddings):
    message = r"model\.embeddings names \[.*\], the data set has \['title', 'user'\]; give each a width"
    with pytest.raises(UserError, match=message):
        mlp.build(make_config(embeddings=embeddings), {'user': USERS, 'title': WORDS}, OUTPUTS, 'float32')


def test_the_papers_teacher_has_the_parameters_counted_by_hand():
    """Inputs of width 300, hidden layers of 512 and 256, one output."""
    config = movielens.get_config().teacher.model
    vocabularies = {'user': 907, 'movie': 1601, 'title_words': 599, 'genres': 19}
    model = MODELS[config.name](config, vocabularies, 1, 'float32')
    inputs = {
        'user': np.zeros(1, np.int32),
        'movie': np.zeros(1, np.int32),
        'title_words': np.zeros((1, 599), np.float32),
        'genres': np.zeros((1, 19), np.float32),
    }
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    embeddings = 907 * 100 + 1601 * 100 + 599 * 50 + 19 * 50
    layers = (300 * 512 + 512) + (512 * 256 + 256) + (256 * 1 + 1)
    assert layers == 285_697
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == embeddings + layers
