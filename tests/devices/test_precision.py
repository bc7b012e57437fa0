"""Products of float32 ask for full precision everywhere, which changes no bit on a CPU."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from td_jax import own
from td_jax.configs import vit_tiny_cifar10
from td_jax.data import base as data
from td_jax.devices import precision, sharding
from td_jax.method import objectives
from td_jax.models import base
from td_jax.predicting import program
from td_jax.training import assembly, dispatch, evaluation

DTYPES = 'float32', 'bfloat16'
EXACT = (jax.lax.Precision.HIGHEST,) * 2


def iterate_products(jaxpr):
    """Yields the products of a program and of all that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
            yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from iterate_products(getattr(value, 'jaxpr', value))


def is_program(value):
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def assert_exact(function, *arguments, kinds=('dot_general',)):
    """Asserts that float32 products ask for HIGHEST; returns how many are of float32 and how many are not."""
    products = list(iterate_products(function.trace(*arguments).jaxpr.jaxpr))
    of_float32 = [
        product for product in products if {var.aval.dtype.name for var in product.invars} == {'float32'}
    ]
    assert all(product.params['precision'] == EXACT for product in of_float32)
    assert {product.primitive.name for product in products} == set(kinds)
    return len(of_float32), len(products) - len(of_float32)


def make_parts(config):
    """(source, abstract teacher, Abstract) of a config."""
    source, theirs = (assembly.load_source(config, task) for task in (config.dataset, config.teacher.dataset))
    teacher = assembly.abstract_teacher(config, theirs)
    return source, teacher, assembly.abstract(config, source, teacher, sharding.make_mesh(config))


@pytest.mark.parametrize(
    'method',
    [
        method if method in ('td', 'crd') else pytest.param(method, marks=pytest.mark.long)
        for method in objectives.METHODS
        if method != 'supervised'
    ],
)
def test_every_product_of_a_run_is_of_float32(small_config, method):
    """Products of training and its gradients, diagnostics, evaluation and exported programs."""
    labels = 'probe' if 'probe' in objectives.METHODS[method].bridges else 'shared'
    config = small_config(method=method, td__rounds=3, td__weights__logits=1.0, teacher__labels=labels)
    source, _, abstract = make_parts(config)
    in_step, _ = assert_exact(abstract.jitted.run, *abstract.arguments)
    # Forward, and two gradients per layer but the first; the student alone has three layers.
    assert in_step >= 3 + 2 + 3
    progress, order, constants, keys, _ = abstract.arguments
    assert_exact(abstract.jitted.diagnose, constants, progress.state, keys, order)
    student = assembly.build_model(config, config.model, source)
    params = assembly.parameter_shapes(config, config.model, source)
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params)
    values = evaluation.make_values(student, source, sharding.make_mesh(config))
    examples = data.one_example(source)
    assert assert_exact(values, stacked, source.tables, examples, np.ones(1, np.float32)) == (3, 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    exported = program.make_program(student, zeros, source)
    assert_exact(jax.jit(exported.run), {name: np.zeros((2, 8, 8, 3), np.uint8) for name in exported.inputs})


@pytest.mark.parametrize('compute_dtype', [pytest.param('float32', marks=pytest.mark.long), 'bfloat16'])
def test_every_product_of_images_is_of_its_type(compute_dtype):
    """Attention, convolutions and messages on a grid; in bfloat16 only heads and losses are float32."""
    config = vit_tiny_cifar10.get_config()
    config.compute_dtype, config.num_seeds, config.batch_size = compute_dtype, 1, 8
    config.dataset.examples_per_class = 0
    sizes = {'layers': 1, 'split': 1, 'width': 16, 'mlp': 16, 'heads': 2}
    config.model.update(sizes)
    config.teacher.model.update({'name': 'resnet', 'variant': 'R8x1', 'width': 4, 'split': 1})
    abstract = assembly.abstract_images(config, sharding.make_mesh(config))
    kinds = 'dot_general', 'conv_general_dilated'
    of_float32, others = assert_exact(abstract.jitted.run, *abstract.arguments, kinds=kinds)
    assert of_float32 > 0 and (others > of_float32) == (compute_dtype == 'bfloat16')
    assert others == 0 or compute_dtype == 'bfloat16'


def test_a_model_that_a_caller_brings_is_exact_too(small_config):
    def build(model, vocabularies, num_outputs, dtype):
        def init(key, inputs):
            shapes = {'lower': (64, 3), 'upper': (3, 5), 'head': (5, num_outputs)}
            return {name: jax.random.normal(key, shape) for name, shape in shapes.items()}

        return base.Model(
            init,
            lambda params, inputs, key: inputs['image'] @ params['lower'],
            lambda params, s, key: s @ params['upper'],
            lambda params, e: e @ params['head'],
        )

    with own.use_parts(models={'mine': build}):
        config = small_config(method='fd', model__name='mine')
        _, _, abstract = make_parts(config)
        of_float32, others = assert_exact(abstract.jitted.run, *abstract.arguments)
    assert of_float32 > 8 and others == 0


@pytest.mark.parametrize(
    ('method', 'compute_dtype'),
    [('fitnet', 'float32'), *(pytest.param('td', dtype, marks=pytest.mark.long) for dtype in DTYPES)],
)
def test_on_a_cpu_the_bits_are_as_they_were(small_config, method, compute_dtype, monkeypatch):
    config = small_config(
        method=method,
        compute_dtype=compute_dtype,
        td__rounds=2,
        td__weights__logits=1.0,
        # The teacher has the student's labels.
        teacher__dataset__classes=(5, 6, 7, 8, 9),
    )
    source = assembly.load_source(config, config.dataset)
    params_of_runs = []
    for wrap in (precision.exact, lambda function: function):
        monkeypatch.setattr(precision, 'exact', wrap)
        teacher = assembly.untrained_teacher(config, source)
        run = assembly.assemble(config, source, teacher, sharding.make_mesh(config))
        keys = dispatch.seed_keys(config)
        progress, _ = run.run(run.begin(run.init(keys)), run.feed(keys, 0), keys, 0, 2)
        params_of_runs.append(jax.tree.map(np.asarray, progress.state.params))
    jax.tree.map(np.testing.assert_array_equal, *params_of_runs)


def test_a_function_is_exact_alone(small_config):
    """Code around it is not affected, nor a precision that the function sets itself."""
    a = jnp.ones((2, 2))
    assert jax.config.jax_default_matmul_precision is None
    for function, expected in (
        (lambda x: x @ x, EXACT),
        (lambda x: jnp.matmul(x, x, precision='high'), (jax.lax.Precision.HIGH,) * 2),
    ):
        (product,) = iterate_products(jax.jit(precision.exact(function)).trace(a).jaxpr.jaxpr)
        assert product.params['precision'] == expected
    with contextlib.suppress(ZeroDivisionError):
        precision.exact(lambda: 1 / 0)()
    (product,) = iterate_products(jax.jit(lambda x: x @ x).trace(a).jaxpr.jaxpr)
    assert product.params['precision'] is None
