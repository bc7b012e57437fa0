"""Operation counts against products counted by hand."""

import time

import jax
import jax.numpy as jnp
import pytest

from td_jax.devices import flops
from td_jax.models import MODELS, base
from td_jax.training import train_step

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def scan_products(a):
    return jax.lax.scan(lambda carry, _: (carry @ jnp.ones((5, 5)), None), a, length=11)[0]


def nest_products(a):
    """Each of two outer iterations computes a product once, and one of width 5 in three inner iterations."""

    @jax.jit
    def turn(carry, _):
        inner = jax.lax.scan(lambda c, _: (c @ jnp.ones((5, 5)), None), carry, length=3)[0]
        return inner, jax.checkpoint(lambda x: x @ B)(carry)

    return jax.lax.scan(turn, a, length=2)


def convolve(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def test_convolutions_by_hand():
    """Of 2 images of 6 by 6: a kernel of 3 by 3 from 5 to 7 channels, and one for each of 5 channels."""
    x, kernel, by_channel = jnp.ones((2, 6, 6, 5)), jnp.ones((3, 3, 5, 7)), jnp.ones((3, 3, 1, 5))
    assert flops.of(convolve, x, kernel) == 2 * 2 * 36 * 7 * 9 * 5
    assert flops.of(lambda x, k: convolve(x, k, stride=2), x, kernel) == 2 * 2 * 9 * 7 * 9 * 5
    assert flops.of(lambda x, k: convolve(x, k, groups=5), x, by_channel) == 2 * 2 * 36 * 5 * 9
    for stride in (1, 2):
        forward = flops.of(lambda x, k, stride=stride: convolve(x, k, stride), x, kernel)
        for argument in (0, 1):
            gradient = jax.grad(
                lambda x, k, stride=stride: jnp.sum(convolve(x, k, stride) ** 2), argnums=argument
            )
            assert flops.of(gradient, x, kernel) == 2 * forward
    gradient = jax.grad(lambda k: jnp.sum(convolve(x, k, groups=5) ** 2))
    assert flops.of(gradient, by_channel) == 2 * 2 * 2 * 36 * 5 * 9


def multiply_in_a_branch(a):
    return jax.lax.cond(a[0, 0] > 0, lambda: (a @ B) @ jnp.ones((7, 1)), lambda: a @ jnp.ones((5, 1)))


@pytest.mark.parametrize(
    ('function', 'expected'),
    [
        (lambda a: a + 1, 0),
        (lambda a: a @ B, PRODUCT),
        (lambda a: jax.vmap(lambda x: x @ B)(jnp.stack([a, a])), 2 * PRODUCT),
        (lambda a: jnp.einsum('bij,bjk->bik', jnp.stack([a, a, a]), jnp.stack([B, B, B])), 3 * PRODUCT),
        # Two axes are summed over: 3 and 5, for 4 outputs.
        (lambda a: jnp.tensordot(a, jnp.ones((3, 5, 4)), 2), 2 * 3 * 5 * 4),
        (jax.jit(lambda a: jax.nn.relu(a @ B)), PRODUCT),
        (scan_products, 11 * 2 * 3 * 5 * 5),
        (nest_products, 2 * (PRODUCT + 3 * 2 * 3 * 5 * 5)),
        (multiply_in_a_branch, PRODUCT + 2 * 3 * 7 * 1),
        (
            lambda a: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ jnp.ones((5, 5)), a),
            2 * 3 * 5 * 5,
        ),
        # Forward, and the gradient of a; that of B is not needed.
        (jax.grad(lambda a: jnp.sum(jax.checkpoint(lambda x: x @ B)(a) ** 2)), 2 * PRODUCT),
    ],
)
def test_products_by_hand(function, expected):
    assert flops.of(function, A) == expected


def count_step_operations(config):
    """Counts a step of a student of 64 inputs and 5 labels on a batch of 8, given the teacher's states."""
    student = MODELS['mlp'](config.model, {}, 5, 'float32')
    step, numbers = (
        train_step.make_step(student, 'classification', 5, config),
        train_step.read_hyperparameters(config),
    )
    teacher_activations = base.Activations(jnp.ones((8, 7)), jnp.ones((8, 11)), jnp.ones((8, 5)))
    batch = train_step.Batch(
        {'image': jnp.ones((8, 64))}, jnp.zeros(8, jnp.int32), jnp.ones(8), teacher_activations
    )
    key = jax.random.key(0)
    state = jax.eval_shape(step.init, key, batch)

    def update(state):
        return step.update(state, key, lambda s: s @ jnp.ones((7, 11)), batch, numbers)

    return flops.of(update, state)


def test_a_step_from_scratch_by_hand(small_config):
    first, rest = 2 * 8 * 64 * 5, 2 * 8 * (5 * 3 + 3 * 5)
    # Forward, the gradient of every kernel, and that of the input of every layer but the first.
    assert count_step_operations(small_config(method='supervised')) == 2 * first + 3 * rest


def test_each_further_round_costs_the_same_as_by_hand(small_config):
    none, one, two, three = [count_step_operations(small_config(td__rounds=rounds)) for rounds in range(4)]
    # Of states 5 and 3 wide, and 7 and 11 wide; hidden layers of 13 and messages of 2.
    speak = (7 + 11) * 13 + 13 * 2 + (5 + 3) * 13 + 13 * 2
    listen = 2 * 13 + 13 * (5 + 3) + 2 * 13 + 13 * 7  # the higher state that the teacher decodes is not used
    # The gradient of every kernel but the teacher's own, and of every input of a product.
    further = 2 * 8 * (3 * (speak + listen + 5 * 3) + 2 * 7 * 11)
    assert none < one
    assert (two - one, three - two) == (further, further)


def test_a_rate_is_that_of_products_in_the_time_that_they_take(monkeypatch):
    monkeypatch.setattr(flops, 'SIDE', 256)
    start = time.perf_counter()
    rate = flops.measure_rate('float32', repeats=4)
    # The fastest of four takes at most a quarter of the time of all.
    assert 4 * 2 * 256**3 / rate < time.perf_counter() - start
