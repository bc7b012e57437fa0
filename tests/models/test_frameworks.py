"""Models of Flax NNX, Keras and Linen with state, against their own frameworks, and as teachers."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import td_jax
from td_jax.devices import fingerprint
from td_jax.errors import UserError
from td_jax.models import base

IMAGES = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
OUTPUTS = 5


class Convolutional(nnx.Module):
    """A model with batch statistics, a list of layers and dropout."""

    def __init__(self, rngs, keeps_statistics=True):
        self.first = nnx.Conv(1, 7, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(7, rngs=rngs) if keeps_statistics else nnx.GroupNorm(7, 7, rngs=rngs)
        self.dense = nnx.List([nnx.Linear(112, 11, rngs=rngs), nnx.Linear(11, OUTPUTS, rngs=rngs)])
        self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])

    def lower(self, x):
        x = nnx.relu(self.norm(self.first(x.reshape(-1, 8, 8, 1))))
        return x.reshape(x.shape[0], -1)

    def upper(self, s):
        return nnx.relu(self.dense[0](self.dropouts[1](self.dropouts[0](s))))

    def __call__(self, x):
        return self.dense[1](self.upper(self.lower(x)))


def split_module(module):
    return base.from_nnx(
        module,
        lambda module, inputs: module.lower(inputs['image']),
        lambda module, s: module.upper(s),
        lambda module, e: module.dense[1](e),
    )


def run_whole(model, params, inputs, key=None):
    return model.head(params, model.upper(params, model.lower(params, inputs, key), key))


@pytest.fixture
def learned():
    """An NNX module with statistics that differ from the initial ones."""
    module = Convolutional(nnx.Rngs(0))
    module.norm.mean[...] = jnp.arange(7) / 7
    module.norm.var[...] = 1 + jnp.arange(7)
    return module


def test_an_nnx_module_computes_what_it_computes(learned):
    model = split_module(learned)
    params = jax.jit(model.init)(jax.random.key(3), {'image': IMAGES})
    logits = jax.jit(lambda params: run_whole(model, params, {'image': IMAGES}))(params)
    learned.eval()
    np.testing.assert_allclose(logits, learned(IMAGES), rtol=1e-5, atol=1e-6)
    assert set(params) == {'first', 'norm', 'dense', base.STATE}
    assert params['dense']['0']['kernel'].shape == (112, 11)
    assert model.is_teacher_only
    # Its fingerprint depends on its statistics, too.
    before = fingerprint.of(params)
    learned.norm.var[...] = jnp.ones(7)
    assert fingerprint.of(split_module(learned).init(None, None)) != before


def test_what_makes_an_nnx_module_makes_one_for_each_key():
    def make(rngs):
        return Convolutional(rngs, keeps_statistics=False)

    model = split_module(make)
    trees = [jax.jit(model.init)(jax.random.key(seed), None) for seed in (0, 0, 1)]
    kernels = [tree['dense']['1']['kernel'] for tree in trees]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.1
    assert not model.is_teacher_only
    module = make(nnx.Rngs(jax.random.key(1)))
    module.eval()
    logits = run_whole(model, trees[2], {'image': IMAGES})
    np.testing.assert_allclose(logits, module(IMAGES), rtol=1e-5, atol=1e-6)


class WithConstants(nnx.Module):
    """With an array that is no variable, and options."""

    def __init__(self, rngs, offset, factor=2.0):
        self.dense, self.offset, self.factor = nnx.Linear(64, OUTPUTS, rngs=rngs), offset, factor

    def __call__(self, x):
        return self.factor * self.dense(x) + jnp.broadcast_to(self.offset, (1, OUTPUTS))


def make_head(module):
    """A Model whose head is all of a module."""
    return base.from_nnx(
        module,
        lambda module, inputs: inputs['image'],
        lambda module, s: s,
        lambda module, e: module(e),
    )


@pytest.mark.parametrize('offset', [jnp.arange(5.0), np.arange(5.0), 3.0])
def test_an_nnx_module_keeps_arrays_that_are_no_variables(offset):
    module = WithConstants(nnx.Rngs(0), offset)
    model = make_head(module)
    params = jax.jit(model.init)(jax.random.key(0), None)
    np.testing.assert_allclose(model.head(params, IMAGES), module(IMAGES), rtol=1e-5, atol=1e-6)
    assert model.is_teacher_only == (base.STATE in params) == isinstance(offset, (jax.Array, np.ndarray))


def test_an_array_that_nnx_takes_for_an_option_is_refused():
    words = 'WithConstants has offset, an array that is no variable: make it an nnx.Variable, or'
    with pytest.raises(UserError, match=words):
        make_head(lambda rngs: WithConstants(rngs, jnp.arange(5.0)))


def test_dropout_of_an_nnx_module_follows_the_key():
    model = split_module(lambda rngs: Convolutional(rngs, keeps_statistics=False))
    params = model.init(jax.random.key(0), None)
    s = jnp.ones((400, 112))
    module = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def drop(key):
        """Applies two layers of dropout, one after the other."""
        model_of_dropout = base.from_nnx(
            lambda rngs: Convolutional(rngs, keeps_statistics=False),
            lambda module, inputs: inputs['image'],
            lambda module, s: module.dropouts[1](module.dropouts[0](s)),
            lambda module, e: e,
        )
        return np.asarray(model_of_dropout.upper(params, s, key))

    assert module.rate == 0.5
    np.testing.assert_array_equal(drop(None), s)
    np.testing.assert_array_equal(drop(jax.random.key(1)), drop(jax.random.key(1)))
    assert (drop(jax.random.key(1)) != drop(jax.random.key(2))).mean() > 0.2
    # Each layer has its own draw: a quarter is left, and not a half.
    assert abs((drop(jax.random.key(1)) > 0).mean() - 0.25) < 0.01


class Linen(nn.Module):
    def setup(self):
        self.hidden, self.norm, self.last = nn.Dense(7), nn.BatchNorm(True), nn.Dense(OUTPUTS)

    def lower(self, inputs, deterministic=True):
        return self.norm(self.hidden(inputs['image']))

    def upper(self, s, deterministic=True):
        return nn.relu(s)

    def head(self, e):
        return self.last(e)

    def __call__(self, inputs):
        return self.head(self.upper(self.lower(inputs)))


def test_a_linen_module_keeps_its_statistics():
    module = Linen()
    variables = module.init(jax.random.key(0), {'image': IMAGES})
    statistics = {'norm': {'mean': jnp.arange(7.0), 'var': 1 + jnp.arange(7.0)}}
    model = base.from_module(module)
    tree = model.init(jax.random.key(0), {'image': IMAGES})
    tree = {**tree, base.STATE: {'batch_stats': statistics}}
    expected = module.apply({'params': variables['params'], 'batch_stats': statistics}, {'image': IMAGES})
    np.testing.assert_array_equal(run_whole(model, tree, {'image': IMAGES}), expected)


@pytest.mark.parametrize('is_student', [True, False])
def test_a_model_with_state_is_not_trained(small_config, tmp_path, is_student):
    config = small_config(method='fitnet')
    (config if is_student else config.teacher).model.name = 'linen'
    config.model.initial = 'random'
    with pytest.raises(UserError) as error_info:
        td_jax.train(config, tmp_path / 'run', models={'linen': lambda *_: base.from_module(Linen())})
    key = 'model.name' if is_student else 'teacher.model.name'
    assert str(error_info.value).startswith(f'{key} is linen, which has state that training would have')
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_an_nnx_module_teaches(small_config, tmp_path, learned):
    config = small_config(method='td', teacher__num_steps=0)
    config.teacher.model.name = 'learned'
    models = {'learned': lambda *_: split_module(learned)}
    result = td_jax.train(config, tmp_path / 'run', models=models)
    expected = fingerprint.of(split_module(learned).init(None, None))
    assert result['teacher_fingerprint'] == expected
    assert result['steps'] == 6
    # With the same statistics it is the same run, and with others another one.
    assert td_jax.train(config, tmp_path / 'run', models=models) == result
    learned.norm.var[...] = 5 * jnp.ones(7)
    with pytest.raises(UserError, match='another teacher'):
        td_jax.train(config, tmp_path / 'run', models=models)


def test_a_teacher_of_other_labels_is_refused(small_config, tmp_path, learned):
    config = small_config(method='td', teacher__num_steps=0)
    config.teacher.model.name = 'learned'
    model = split_module(learned)
    three = model._replace(head=lambda params, e: model.head(params, e)[:, :3])
    words = r'teacher\.model\.name is learned, which predicts \[1, 3\] of one example, but .* takes \[1, 5\]'
    with pytest.raises(UserError, match=words):
        td_jax.train(config, tmp_path / 'run', models={'learned': lambda *_: three})


@pytest.fixture(scope='module')
def keras():
    """Keras on JAX, which conftest.py sets."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import keras
    assert keras.backend.backend() == 'jax'
    return keras


def compute_in_keras(model, images):
    """The output of Keras, which broadcasts as NumPy does."""
    with jax.numpy_rank_promotion('allow'):
        return np.asarray(model(images, training=False))


@pytest.fixture
def functional(keras):
    """A functional model with BatchNorm, dropout and a connection past a layer."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((64,))
    x = keras.layers.Reshape((8, 8, 1), name='reshape')(x)
    x = keras.layers.Conv2D(7, 3, strides=2, activation='relu', name='first')(x)
    x = keras.layers.BatchNormalization(name='norm')(x)
    y = keras.layers.Conv2D(7, 3, padding='same', name='inner')(x)
    x = keras.layers.Add(name='sum')([x, y])
    x = keras.layers.Dropout(0.5, name='dropout')(x)
    x = keras.layers.GlobalAveragePooling2D(name='pool')(x)
    model = keras.Model(inputs, keras.layers.Dense(OUTPUTS, name='last')(x), name='small')
    model.get_layer('norm').moving_mean.assign(np.arange(7) / 7)
    model.get_layer('norm').moving_variance.assign(1 + np.arange(7.0))
    return model


def test_a_keras_model_computes_what_it_computes(functional):
    model = base.from_keras(functional, 'norm', 'pool')
    params = jax.jit(model.init)(jax.random.key(0), {'image': IMAGES})
    s = model.lower(params, {'image': IMAGES})
    assert (s.shape, model.upper(params, s).shape) == ((5, 3, 3, 7), (5, 7))
    logits = jax.jit(lambda params: run_whole(model, params, {'image': IMAGES}))(params)
    np.testing.assert_allclose(logits, compute_in_keras(functional, IMAGES), rtol=1e-5, atol=1e-6)
    assert params[base.STATE]['norm']['moving_mean'].shape == (7,)
    # It computes with the given parameters, not with those of the model.
    logits_of_zeros = run_whole(model, jax.tree.map(jnp.zeros_like, params), {'image': IMAGES})
    np.testing.assert_array_equal(logits_of_zeros, np.zeros((5, OUTPUTS)))
    # Its upper part has a gradient.
    assert np.abs(jax.grad(lambda s: model.upper(params, s).sum())(s)).max() > 0


def test_parts_of_a_keras_model_may_be_functions(functional):
    def lower(inputs):
        x = functional.get_layer('reshape')(inputs['image'])
        return functional.get_layer('norm')(functional.get_layer('first')(x), training=False)

    def upper(s):
        return functional.get_layer('pool')(s + functional.get_layer('inner')(s))

    model = base.from_keras(functional, lower, upper, functional.get_layer('last'))
    params = model.init(None, None)
    expected = compute_in_keras(functional, IMAGES)
    np.testing.assert_allclose(run_whole(model, params, {'image': IMAGES}), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('lower', 'upper', 'words'),
    [
        ('inner', 'pool', 'small cannot be cut at these layers: a connection goes past one of them'),
        ('normal', 'pool', r'small has no layer normal\. Did you mean norm\?'),
        ('norm', lambda s: s, 'the names of two layers, or three functions'),
    ],
)
def test_what_is_no_part_of_a_keras_model_is_refused(functional, lower, upper, words):
    with pytest.raises(UserError, match=words):
        base.from_keras(functional, lower, upper)


@pytest.mark.parametrize('how', ['activation', 'layer', 'operation', 'sequential', 'model'])
def test_probabilities_are_no_logits(keras, functional, how):
    layers = keras.layers
    own = keras.Input((OUTPUTS,))
    softmax = {
        'activation': layers.Activation('softmax'),
        'layer': layers.Softmax(),
        'operation': keras.ops.softmax,
        'sequential': keras.Sequential([layers.Dense(OUTPUTS, activation='softmax')]),
        'model': keras.Model(own, layers.Softmax()(own)),
    }[how]
    model = keras.Model(functional.input, softmax(functional.output))
    with pytest.raises(UserError, match='ends in a softmax'):
        base.from_keras(model, 'norm', 'pool')
    # A head that is named may end where it likes.
    base.from_keras(model, 'norm', 'pool', softmax)


def test_a_sequential_model_is_cut_at_layers(keras):
    layers = [keras.layers.Dense(width, name=name) for name, width in (('a', 7), ('b', 3), ('c', OUTPUTS))]
    sequential = keras.Sequential(layers, name='row')
    with pytest.raises(
        UserError, match='row cannot be cut at the layer a, which is called never or more than'
    ):
        base.from_keras(sequential, 'a', 'b')
    sequential = keras.Sequential([keras.Input((64,)), *layers])
    model = base.from_keras(sequential, 'a', 'b')
    logits = run_whole(model, model.init(None, None), {'image': IMAGES})
    np.testing.assert_allclose(logits, compute_in_keras(sequential, IMAGES), rtol=1e-5, atol=1e-6)


def test_a_keras_model_of_two_outputs_needs_a_head(keras, functional):
    both = [functional.output, functional.get_layer('pool').output]
    model = keras.Model(functional.input, both, name='two')
    with pytest.raises(UserError, match='two has 2 outputs: name a head'):
        base.from_keras(model, 'norm', 'pool')


def test_keras_with_channels_first_is_refused(keras, functional):
    keras.config.set_image_data_format('channels_first')
    try:
        with pytest.raises(UserError, match=r'^Keras runs on jax with channels_first; set KERAS_BACKEND=jax'):
            base.from_keras(functional, 'norm', 'pool')
    finally:
        keras.config.set_image_data_format('channels_last')


@pytest.mark.long
def test_a_keras_model_teaches(small_config, tmp_path, functional):
    config = small_config(method='td', teacher__num_steps=0)
    config.teacher.model.name = 'functional'
    models = {'functional': lambda *_: base.from_keras(functional, 'norm', 'pool')}
    result = td_jax.train(config, tmp_path / 'run', models=models)
    assert result['steps'] == 6 and np.isfinite(result['values']).all()
    assert td_jax.train(config, tmp_path / 'run', models=models) == result
    config.model.name = 'functional'
    with pytest.raises(
        UserError, match=r'^model\.name is functional, which has state .* or comes from Keras'
    ):
        td_jax.train(config, tmp_path / 'other', models=models)


@pytest.mark.long
def test_a_cnn_of_keras_applications_teaches(keras, tmp_path, small_config):
    """MobileNetV2 with random weights, at 32 pixels."""
    keras.utils.set_random_seed(1)
    cnn = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=OUTPUTS, classifier_activation=None
    )
    rng = np.random.default_rng(2)
    for variable in cnn.non_trainable_variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    model = base.from_keras(cnn, 'block_6_project_BN', 'out_relu')
    images = np.tile(IMAGES[:2].reshape(2, 8, 8, 1), (1, 4, 4, 3))
    params = model.init(None, None)
    logits = jax.jit(lambda params: run_whole(model, params, {'image': images}))(params)
    np.testing.assert_allclose(logits, compute_in_keras(cnn, images), rtol=1e-4, atol=1e-5)

    def widen(inputs):
        """Repeats an image of digits to the size and the three colours of the CNN's input."""
        return {'image': jnp.tile(inputs['image'].reshape(-1, 8, 8, 1), (1, 4, 4, 3))}

    teacher = model._replace(lower=lambda params, inputs, key=None: model.lower(params, widen(inputs), key))
    config = small_config(method='td', teacher__num_steps=0)
    config.teacher.model.name = 'cnn'
    result = td_jax.train(config, tmp_path / 'run', models={'cnn': lambda *_: teacher})
    assert result['steps'] == 6 and np.isfinite(result['values']).all()
