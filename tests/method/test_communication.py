"""The conversation against NumPy, and the scan over rounds against the loop it stands for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.devices.remat import POLICIES
from td_jax.method import communication

BATCH, LOWER, UPPER, TEACHER_LOWER, TEACHER_UPPER, MESSAGE = 3, 5, 2, 7, 3, 11


def make_speakers(key):
    """Two speakers of linear maps with prime widths, and the student's state."""
    keys = iter(jax.random.split(key, 12))

    def linear(rows, columns):
        weight = 0.5 * jax.random.normal(next(keys), (rows, columns))
        return lambda x: jnp.tanh(x @ weight)

    def speaker(lower, upper):
        upper_map, encoder = linear(lower, upper), linear(lower + upper, MESSAGE)
        decoder = linear(MESSAGE, lower + upper)

        def noisy(x, key):
            return x if key is None else x + 0.1 * jax.random.normal(key, x.shape)

        return communication.Speaker(
            lambda s, key: noisy(upper_map(s), key),
            lambda s, e, key: noisy(encoder(jnp.concatenate([s, e], -1)), key),
            lambda m, key: tuple(jnp.split(noisy(decoder(m), key), [lower], axis=-1)),
        )

    student, teacher = speaker(LOWER, UPPER), speaker(TEACHER_LOWER, TEACHER_UPPER)
    state = (
        jax.random.normal(next(keys), (BATCH, LOWER)),
        jax.random.normal(next(keys), (BATCH, UPPER)),
    )
    return student, teacher, state


def unrolled(student, teacher, state, heard, rounds, reference):
    """Algorithm 1 as a Python loop, without noise."""
    s, e = state
    total = jnp.zeros(BATCH)
    for _ in range(rounds):
        message = teacher.encode(heard, teacher.upper(heard, None), None)
        s_heard, e_heard = student.decode(message, None)
        target = (s, e) if reference == 'running' else state
        difference = jnp.concatenate([target[0] - s_heard, target[1] - e_heard], -1)
        total += jnp.mean(difference**2, axis=-1)
        s, e = s_heard, student.upper(s_heard, None)
        heard, _ = teacher.decode(student.encode(s, e, None), None)
    return total


@pytest.fixture
def float64():
    """Computes with 64 bits: sums in another order then differ by less than any bound here."""
    jax.config.update('jax_enable_x64', True)
    yield
    jax.config.update('jax_enable_x64', False)


def mean_square(a, b):
    """The distance, which td_jax sums in float32, in what the states are in."""
    return jnp.mean(jnp.square(jnp.concatenate(a, -1) - jnp.concatenate(b, -1)), axis=-1)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('rounds', [0, 1, 2, 3])
@pytest.mark.parametrize(
    ('reference', 'remat_policy'),
    [('running', policy) for policy in POLICIES] + [('original', 'dots_saveable')],
)
def test_scan_equals_the_unrolled_loop(rounds, reference, remat_policy):
    student, teacher, state = make_speakers(jax.random.key(0))

    def first_heard(state):
        return teacher.decode(student.encode(*state, None), None)[0]

    def scanned(state, measure=mean_square):
        return communication.communicate(
            student,
            teacher,
            state,
            first_heard(state),
            rounds=rounds,
            reference=reference,
            measure=measure,
            noise_std=0.0,
            remat_policy=POLICIES[remat_policy],
            key=None,
        )

    def looped(state):
        return unrolled(student, teacher, state, first_heard(state), rounds, reference)

    np.testing.assert_allclose(scanned(state), looped(state), rtol=1e-12)
    np.testing.assert_allclose(scanned(state, communication.distance), looped(state), rtol=1e-6)
    gradients = [jax.grad(lambda state, f=f: f(state).sum())(state) for f in (scanned, looped)]
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)
    assert (rounds == 0) == (not np.any(scanned(state)))


def test_rounds_have_their_own_noise_and_dropout():
    student, teacher, _ = make_speakers(jax.random.key(1))
    seen = {'noise': [], 'key': []}

    def upper(s, key):
        jax.debug.callback(lambda s, k: (seen['noise'].append(s), seen['key'].append(k)), s, key)
        return teacher.upper(s, None)

    # Every answer says the same, so what the teacher hears differs by noise alone.
    listening = teacher._replace(upper=upper, decode=lambda m, key: (jnp.zeros((1, TEACHER_LOWER)), m))
    communication.communicate(
        student,
        listening,
        (jnp.ones((1, LOWER)), jnp.ones((1, UPPER))),
        jnp.zeros((1, TEACHER_LOWER)),
        rounds=3,
        reference='running',
        noise_std=0.5,
        remat_policy=POLICIES['dots_saveable'],
        key=jax.random.PRNGKey(2),
    ).block_until_ready()
    jax.effects_barrier()
    for values in seen.values():
        assert len(values) == 3
        assert len({np.asarray(value).tobytes() for value in values}) == 3
    assert 0.1 < np.std(seen['noise']) < 1.0


def test_distance_is_over_the_joined_features():
    a = (jnp.array([[1.0, 2.0]]), jnp.array([[3.0]]))
    b = (jnp.array([[0.0, 2.0]]), jnp.array([[1.0]]))
    np.testing.assert_allclose(communication.distance(a, b), [(1 + 0 + 4) / 3])


def test_distance_refuses_to_broadcast():
    with pytest.raises(ValueError, match='Cannot compare'):
        communication.distance((jnp.zeros((4, 1)),), (jnp.zeros((4, 4)),))


@pytest.mark.parametrize('shape', [(BATCH,), (BATCH, 13)])
def test_encoder_is_norm_dense_relu_dense(shape):
    rng = np.random.default_rng(0)
    s, e = rng.normal(2.0, 3.0, (*shape, 5)), rng.normal(size=(*shape, 3))
    encoder = communication.Encoder(hidden=7, message=2, dropout=0.5)
    params = encoder.init(jax.random.key(0), s, e)['params']
    hidden, last = (jax.tree.map(np.asarray, params[name]) for name in ('hidden', 'message'))
    x = np.concatenate([s, e], -1)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = np.maximum(x @ np.concatenate([hidden['kernel_0'], hidden['kernel_1']]) + hidden['bias'], 0)
    expected = x @ last['kernel'] + last['bias']
    np.testing.assert_allclose(encoder.apply({'params': params}, s, e), expected, rtol=1e-4, atol=1e-5)


def joined_norm_dense(parts, kernels, epsilon=1e-6):
    """Dense(LayerNorm({a; b})) in float64 without a bias, and the gradient by the input of a sum of it."""
    x, kernel = (
        np.concatenate(arrays, axis).astype(np.float64) for arrays, axis in ((parts, -1), (kernels, 0))
    )
    std = np.sqrt(x.var(-1, keepdims=True) + epsilon)
    normalised = (x - x.mean(-1, keepdims=True)) / std
    inner = np.broadcast_to(kernel.sum(axis=1), x.shape)
    along = (inner * normalised).mean(-1, keepdims=True)
    return normalised @ kernel, (inner - inner.mean(-1, keepdims=True) - normalised * along) / std


@pytest.mark.parametrize('case', ['mean 1000', 'mean -20,000', 'first far away', 'one large', 'parts apart'])
def test_a_norm_is_exact_however_far_the_mean_is(case):
    """It was 34% off at mean 1000 and standard deviation 1."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 96)), rng.normal(size=(40, 31))
    if case == 'first far away':
        a[:, 0] = 1000.0
    elif case == 'one large':
        b[:, 7] = 1e5
    elif case == 'parts apart':
        a, b = a + 300.0, b - 500.0
    else:
        shift = float(case.removeprefix('mean ').replace(',', ''))
        a, b = a + shift, b + shift
    a, b = np.float32(a), np.float32(b)
    layer = communication.NormalizedDense(17)
    params = layer.init(jax.random.key(0), a, b)
    kernels = [np.asarray(params['params'][f'kernel_{i}']) for i in (0, 1)]
    expected, gradient = joined_norm_dense((a, b), kernels)
    found, gradient_of = jax.vjp(lambda *parts: layer.apply(params, *parts), a, b)
    # The product is of the numbers as they are, in float32.
    size = np.abs(np.concatenate([a, b], -1)).mean() / np.concatenate([a, b], -1).std(-1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * (1 + size))
    found_gradient = np.concatenate(gradient_of(jnp.ones_like(found)), -1)
    np.testing.assert_allclose(found_gradient, gradient, atol=2e-5 * (1 + size) * np.abs(gradient).max())


@pytest.mark.parametrize('mean', [0.0, 1.0, 5.0, 30.0, 100.0])
def test_bfloat16_is_as_exact_however_far_the_mean_is(mean):
    """LayerNorm and Dense in float64 on the same rounded input; a bfloat16 has steps of 1/256 of itself."""
    x = np.asarray(
        jnp.asarray(np.random.default_rng(0).normal(mean, 1.0, (40, 96)), jnp.bfloat16), np.float64
    )
    layer = communication.NormalizedDense(31, dtype='bfloat16')
    params = layer.init(jax.random.key(0), x.astype(np.float32))
    kernel = np.asarray(params['params']['kernel_0'], np.float64)
    normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = normalised @ kernel
    low = layer.apply(params, jnp.asarray(x, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    error = np.std(np.asarray(low, np.float64) - expected) / np.std(expected)
    assert error < 1 / 256


def test_a_kernel_of_parts_starts_like_one_on_the_joined_input():
    """The variance of LeCun's initialisation, 1 / inputs, over many numbers."""
    a, b = jnp.zeros((1, 300)), jnp.zeros((1, 100))
    params = communication.NormalizedDense(2000).init(jax.random.key(0), a, b)['params']
    dense = nn.Dense(2000).init(jax.random.key(1), jnp.zeros((1, 400)))['params']
    for kernel in (params['kernel_0'], params['kernel_1'], dense['kernel']):
        np.testing.assert_allclose(np.var(kernel), 1 / 400, rtol=0.02)


def test_a_constant_state_has_a_finite_norm():
    layer = communication.NormalizedDense(4)
    x = jnp.full((2, 6), 1e3)
    params = layer.init(jax.random.key(0), x)
    assert np.all(np.isfinite(layer.apply(params, x)))
    gradient = jax.grad(lambda x: layer.apply(params, x).sum())(x)
    assert np.all(np.isfinite(gradient))
