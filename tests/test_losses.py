"""The losses against NumPy, as functions of arrays without a config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax import losses
from td_jax.devices.remat import POLICIES
from tests import equations

BATCH, LOWER, UPPER, TEACHER_LOWER, TEACHER_UPPER, MESSAGE = 3, 5, 2, 7, 3, 11


CLASSES, TEMPERATURE = 5, 2.5
LABELS = np.array([0, 1, 2])


def draw_state(seed, *widths):
    """A state of random numbers, an array [batch, width] for each width."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(BATCH, width)).astype(np.float32) for width in widths)


def weigh_state(state, weights):
    """Scales a state so that its squared differences have these weights."""
    return [np.sqrt(weight) * x for x, weight in zip(state, weights, strict=True)]


# --- Every loss against its equation ---------------------------------------------------------------

G, DECODED_G = draw_state(0, LOWER, UPPER), draw_state(1, LOWER, UPPER)
H, DECODED_H = draw_state(2, TEACHER_LOWER, TEACHER_UPPER), draw_state(3, TEACHER_LOWER, TEACHER_UPPER)
(M_G,), (M_H,) = draw_state(4, MESSAGE), draw_state(5, MESSAGE)
WEIGHTS_G, WEIGHTS_H = (0.5, 30.0), (2.0, 0.1)
(Y_G,), (Y_H,) = draw_state(6, CLASSES), draw_state(7, CLASSES)
(X_G,), (X_H,) = draw_state(8, 13), draw_state(9, 17)

# name -> (value of the loss, value by NumPy)
CASES = {
    'distance': (lambda: losses.distance(G, DECODED_G), lambda: equations.mean_square(G, DECODED_G)),
    'distance over a variance': (
        lambda: losses.distance(G, DECODED_G, scale='variance'),
        lambda: equations.mean_square(G, DECODED_G) / (equations.join(G).var(0).mean() + 1e-6),
    ),
    'distance of weighted parts': (
        lambda: losses.distance(G, DECODED_G, part_weights=WEIGHTS_G),
        lambda: equations.mean_square(*(weigh_state(state, WEIGHTS_G) for state in (G, DECODED_G))),
    ),
    'distance of weighted parts over a variance': (
        lambda: losses.distance(G, DECODED_G, scale='variance', part_weights=WEIGHTS_G),
        lambda: (
            equations.mean_square(*(weigh_state(state, WEIGHTS_G) for state in (G, DECODED_G)))
            / (equations.join(weigh_state(G, WEIGHTS_G)).var(0).mean() + 1e-6)
        ),
    ),
    'state_consistency of weighted parts': (
        lambda: losses.state_consistency(
            G, H, DECODED_G, DECODED_H, student_weights=WEIGHTS_G, teacher_weights=WEIGHTS_H
        ),
        lambda: (
            equations.mean_square(*(weigh_state(state, WEIGHTS_G) for state in (G, DECODED_G)))
            + equations.mean_square(*(weigh_state(state, WEIGHTS_H) for state in (H, DECODED_H)))
        ),
    ),
    'message_consistency': (
        lambda: losses.message_consistency(M_G, M_H, scale='variance'),
        lambda: equations.mean_square([M_H], [M_G]) / (M_H.var(0).mean() + 1e-6),
    ),
    'state_consistency': (
        lambda: losses.state_consistency(G, H, DECODED_G, DECODED_H),
        lambda: equations.mean_square(G, DECODED_G) + equations.mean_square(H, DECODED_H),
    ),
    'feature_distillation': (
        lambda: losses.feature_distillation(M_G, M_H),
        lambda: equations.mean_square([M_G], [M_H]),
    ),
    'fitnet': (lambda: losses.fitnet(G, DECODED_G), lambda: equations.mean_square(G, DECODED_G)),
    'label_l2': (lambda: losses.label_l2(Y_G, Y_H), lambda: ((Y_G - Y_H) ** 2).mean(-1)),
    'label_kl': (
        lambda: losses.label_kl(Y_G, Y_H, temperature=TEMPERATURE),
        lambda: equations.kl(Y_G, Y_H, TEMPERATURE),
    ),
    'dkd': (
        lambda: losses.dkd(Y_G, Y_H, LABELS, temperature=TEMPERATURE),
        lambda: equations.dkd(Y_G, Y_H, LABELS, TEMPERATURE),
    ),
    'dist': (
        lambda: losses.dist(Y_G, Y_H, temperature=TEMPERATURE),
        lambda: equations.dist(Y_G, Y_H, TEMPERATURE),
    ),
    'relational': (lambda: losses.relational(X_G, X_H), lambda: equations.relational(X_G, X_H)),
    'contrastive': (
        lambda: losses.contrastive(M_G, M_H, temperature=TEMPERATURE),
        lambda: equations.contrastive(M_G, M_H, TEMPERATURE),
    ),
    'srd': (lambda: losses.srd(M_G, M_H, alpha=3.0), lambda: equations.srd(M_G, M_H, 3.0)),
}


@pytest.mark.parametrize('name', CASES)
def test_a_loss_is_that_of_its_equation(name):
    ours, reference = (np.asarray(compute()) for compute in CASES[name])
    assert ours.dtype == np.float32
    assert ours.shape[-1] == BATCH
    np.testing.assert_allclose(ours, reference, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    'run',
    [
        lambda: losses.label_l2(Y_G, Y_H[:, :1]),
        lambda: losses.label_kl(Y_G, Y_H[:1]),
        lambda: losses.dkd(Y_G, Y_H[:, :1], LABELS),
        lambda: losses.dist(Y_G, Y_H[:1]),
        lambda: losses.one_minus_correlation(Y_G, Y_H[:, :1], axis=0),
        lambda: losses.contrastive(M_G, M_H[:1]),
        lambda: losses.srd(M_G[:1], M_H),
        lambda: losses.relational(X_G, X_H[:2]),
        lambda: losses.fitnet(G, DECODED_G[::-1]),
    ],
)
def test_unlike_shapes_are_refused_and_not_broadcast(run):
    with pytest.raises(ValueError, match=r'Cannot (compare|relate)'):
        run()


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"scale is 'std'; it must be 'none' or 'variance'"):
        losses.distance(G, DECODED_G, scale='std')
    with pytest.raises(ValueError, match=r"reference is 'first'; it must be 'running' or 'original'"):
        losses.interaction(None, None, G, H[0], reference='first')


# --- Distances -------------------------------------------------------------------------------------


def test_the_variance_is_the_mean_of_those_of_all_features():
    parts = draw_state(0, LOWER, UPPER)
    features = np.concatenate(parts, -1)
    np.testing.assert_allclose(losses.variance(parts), features.var(axis=0).mean(), rtol=1e-6)
    # The variance of each token's features over the examples.
    tokens = tuple(np.stack([x, 3 * x + 1], axis=1) for x in parts)
    np.testing.assert_allclose(losses.variance(tokens), 5 * features.var(axis=0).mean(), rtol=1e-5)


def test_a_scaled_distance_does_not_see_the_size_of_both():
    target, prediction = draw_state(0, LOWER, UPPER), draw_state(1, LOWER, UPPER)
    plain, scaled = [
        losses.distance(target, prediction, scale=scale, stop_target=False) for scale in ('none', 'variance')
    ]
    np.testing.assert_allclose(scaled, plain / (losses.variance(target) + 1e-6), rtol=1e-6)
    large = [tuple(10 * x for x in each) for each in (target, prediction)]
    np.testing.assert_allclose(losses.distance(*large, scale='variance'), scaled, rtol=1e-4)


def test_a_target_without_variance_is_divided_by_a_little():
    target, prediction = (jnp.ones((BATCH, 3)),), (jnp.zeros((BATCH, 3)),)
    value = losses.distance(target, prediction, scale='variance')
    np.testing.assert_allclose(value, np.full(BATCH, 1e6), rtol=1e-4)


@pytest.mark.parametrize('stop_target', [False, True])
def test_no_gradient_flows_through_the_divisor_nor_a_stopped_target(stop_target):
    (target,), (prediction,) = draw_state(0, 3), draw_state(1, 3)

    def mean(target, prediction):
        return losses.distance((target,), (prediction,), scale='variance', stop_target=stop_target).mean()

    of_target, of_prediction = jax.grad(mean, argnums=(0, 1))(target, prediction)
    variance = target.var(axis=0).mean() + 1e-6
    expected = 2 * (target - prediction) / target.size / variance
    np.testing.assert_allclose(of_prediction, -expected, rtol=1e-4)
    np.testing.assert_allclose(of_target, 0 * expected if stop_target else expected, rtol=1e-4)


def test_scaled_distances_under_vmap_are_those_of_each_seed():
    targets, predictions = (np.stack([*draw_state(seed, 3), *draw_state(seed + 9, 3)]) for seed in (0, 1))
    targets[1] *= 5

    def run(target, prediction):
        return losses.distance((target,), (prediction,), scale='variance')

    together = jax.vmap(run)(targets, predictions)
    for i in range(2):
        np.testing.assert_allclose(together[i], run(targets[i], predictions[i]), rtol=1e-6)


# --- The conversation ------------------------------------------------------------------------------


def make_speakers(key):
    """Two speakers of linear maps with prime widths, and the student's state."""
    keys = iter(jax.random.split(key, 12))

    def linear(rows, columns):
        weight = 0.5 * jax.random.normal(next(keys), (rows, columns))
        return lambda x: jnp.tanh(x @ weight)

    def speaker(lower, upper):
        upper_map, encoder = linear(lower, upper), linear(lower + upper, MESSAGE)
        decoder = linear(MESSAGE, lower + upper)

        def add_noise(x, key):
            return x if key is None else x + 0.1 * jax.random.normal(key, x.shape)

        return losses.Speaker(
            lambda s, key: add_noise(upper_map(s), key),
            lambda s, e, key: add_noise(encoder(jnp.concatenate([s, e], -1)), key),
            lambda m, key: tuple(jnp.split(add_noise(decoder(m), key), [lower], axis=-1)),
        )

    student, teacher = speaker(LOWER, UPPER), speaker(TEACHER_LOWER, TEACHER_UPPER)
    state = (
        jax.random.normal(next(keys), (BATCH, LOWER)),
        jax.random.normal(next(keys), (BATCH, UPPER)),
    )
    return student, teacher, state


def unroll(student, teacher, state, decoded, rounds, reference):
    """Algorithm 1 as a Python loop, without noise."""
    s, e = state
    total = jnp.zeros(BATCH)
    for _ in range(rounds):
        message = teacher.encode(decoded, teacher.upper(decoded, None), None)
        s_new, e_new = student.decode(message, None)
        target = (s, e) if reference == 'running' else state
        difference = jnp.concatenate([target[0] - s_new, target[1] - e_new], -1)
        total += jnp.mean(difference**2, axis=-1)
        s, e = s_new, student.upper(s_new, None)
        decoded, _ = teacher.decode(student.encode(s, e, None), None)
    return total


@pytest.fixture
def float64():
    """Computes in float64, in which sums in another order differ by less than any tolerance here."""
    jax.config.update('jax_enable_x64', True)
    yield
    jax.config.update('jax_enable_x64', False)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('rounds', [0, 1, 2, 3])
@pytest.mark.parametrize(
    ('reference', 'remat_policy'),
    [('running', policy) for policy in POLICIES] + [('original', 'dots_saveable')],
)
def test_scan_equals_the_unrolled_loop(rounds, reference, remat_policy):
    student, teacher, state = make_speakers(jax.random.key(0))

    def decode_first(state):
        return teacher.decode(student.encode(*state, None), None)[0]

    def scan(state):
        return losses.interaction(
            student,
            teacher,
            state,
            decode_first(state),
            rounds=rounds,
            reference=reference,
            noise_std=0.0,
            remat_policy=POLICIES[remat_policy],
            key=None,
        )

    def loop(state):
        return unroll(student, teacher, state, decode_first(state), rounds, reference)

    np.testing.assert_allclose(scan(state), loop(state), rtol=1e-12)
    gradients = [jax.grad(lambda state, f=f: f(state).sum())(state) for f in (scan, loop)]
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)
    assert (rounds == 0) == (not np.any(scan(state)))


def test_rounds_have_their_own_noise_and_dropout():
    student, teacher, _ = make_speakers(jax.random.key(1))
    recorded = {'noise': [], 'key': []}

    def upper(s, key):
        jax.debug.callback(lambda s, k: (recorded['noise'].append(s), recorded['key'].append(k)), s, key)
        return teacher.upper(s, None)

    # Every message decodes to the same, so what the teacher hears differs by noise alone.
    teacher_with_noise = teacher._replace(
        upper=upper, decode=lambda m, key: (jnp.zeros((1, TEACHER_LOWER)), m)
    )
    losses.interaction(
        student,
        teacher_with_noise,
        (jnp.ones((1, LOWER)), jnp.ones((1, UPPER))),
        jnp.zeros((1, TEACHER_LOWER)),
        rounds=3,
        reference='running',
        noise_std=0.5,
        remat_policy=POLICIES['dots_saveable'],
        key=jax.random.PRNGKey(2),
    ).block_until_ready()
    jax.effects_barrier()
    for values in recorded.values():
        assert len(values) == 3
        assert len({np.asarray(value).tobytes() for value in values}) == 3
    assert 0.1 < np.std(recorded['noise']) < 1.0


def test_distance_is_over_the_joined_features():
    a = (jnp.array([[1.0, 2.0]]), jnp.array([[3.0]]))
    b = (jnp.array([[0.0, 2.0]]), jnp.array([[1.0]]))
    np.testing.assert_allclose(losses.distance(a, b), [(1 + 0 + 4) / 3])


def test_distance_refuses_to_broadcast():
    with pytest.raises(ValueError, match='Cannot compare'):
        losses.distance((jnp.zeros((4, 1)),), (jnp.zeros((4, 4)),))


# --- Predictions -----------------------------------------------------------------------------------


def test_kl_of_a_hand_worked_case():
    teacher, student = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 0.0]])
    # KL(softmax([1, 0]) || [0.5, 0.5]) = log 2 - H = 0.1109, times T^2 = 4.
    np.testing.assert_allclose(losses.label_kl(student, teacher, temperature=2.0), [0.4438], atol=5e-5)
    np.testing.assert_allclose(losses.label_kl(student, teacher, temperature=2.0) / 4, [0.1109], atol=5e-5)


def test_kl_of_huge_logits_is_finite():
    teacher, student = jnp.array([[1e4, -1e4]]), jnp.array([[-1e4, 1e4]])
    value, gradient = jax.value_and_grad(lambda s: losses.label_kl(s, teacher, temperature=1.0).sum())(
        student
    )
    np.testing.assert_allclose(value, 2e4, rtol=1e-6)
    assert np.all(np.isfinite(gradient))


def test_the_parts_of_dkd_make_up_the_divergence():
    """Zhao et al. 2022, equation 5: KL = target + (1 - p_c of the teacher) others."""
    keys = jax.random.split(jax.random.key(0))
    student, teacher = (3 * jax.random.normal(key, (3, 5)) for key in keys)
    temperature = 2.0
    target, others = losses.dkd(student, teacher, LABELS, temperature=temperature)
    rest = 1 - jax.nn.softmax(teacher / temperature)[np.arange(3), LABELS]
    expected = losses.label_kl(student, teacher, temperature=temperature)
    np.testing.assert_allclose(target + rest * others, expected, rtol=1e-5)


@pytest.mark.parametrize('size', [30.0, 1000.0])
def test_the_parts_of_dkd_of_certain_models_are_finite(size):
    student, teacher = -size * jnp.eye(3), size * jnp.eye(3)
    target, others = losses.dkd(student, teacher, LABELS, temperature=1.0)
    # The teacher is certain of the label, the student of the other two classes, which both rank equally.
    np.testing.assert_allclose(target, np.full(3, size + np.log(2)), rtol=1e-5)
    np.testing.assert_allclose(others, np.zeros(3), atol=1e-5)
    gradient = jax.grad(lambda y: sum(x.sum() for x in losses.dkd(y, teacher, LABELS, temperature=1.0)))(
        student
    )
    assert np.all(np.isfinite(gradient))


def test_of_two_classes_nothing_is_left_among_the_others():
    student, teacher = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, -1.0]])
    target, others = losses.dkd(student, teacher, jnp.array([1]), temperature=1.0)
    np.testing.assert_allclose(target, losses.label_kl(student, teacher, temperature=1.0), rtol=1e-6)
    np.testing.assert_array_equal(others, [0.0])


def test_correlation_does_not_see_shift_and_size():
    x = jax.random.normal(jax.random.key(0), (7, 3))
    for axis, length in ((0, 3), (1, 7)):
        value = losses.one_minus_correlation(x, 2 * x + 3, axis=axis)
        np.testing.assert_allclose(value, np.zeros(length), atol=5e-3)
        np.testing.assert_allclose(
            losses.one_minus_correlation(x, -x, axis=axis), np.full(length, 2.0), rtol=5e-4
        )


@pytest.mark.parametrize('spread', [3.0, 0.3, 0.03, 0.003])
@pytest.mark.parametrize('axis', [0, 1])
def test_correlations_are_those_of_numpy_with_a_floor_under_each_variance(spread, axis):
    """In float64, on probabilities; the floor is a standard deviation of a hundredth of the mean."""
    rng = np.random.default_rng(0)
    a, b = (np.exp(size * rng.normal(size=(11, 7))) for size in (spread, 1.0))
    a, b = (x / x.sum(axis=1, keepdims=True) for x in (a, b))

    def subtract_mean(x):
        return x - x.mean(axis=axis, keepdims=True)

    def measure_length(x):
        return np.sqrt((subtract_mean(x) ** 2).mean(axis=axis) + 1e-4 * x.mean(axis=axis) ** 2)

    expected = 1 - (subtract_mean(a) * subtract_mean(b)).mean(axis=axis) / measure_length(a) / measure_length(
        b
    )
    value = losses.one_minus_correlation(jnp.float32(a), jnp.float32(b), axis=axis)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    if spread == 3.0:
        without_floor = 1 - np.diagonal(
            np.corrcoef(a, b, rowvar=bool(axis))[: a.shape[1 - axis], a.shape[1 - axis] :]
        )
        np.testing.assert_allclose(value, without_floor, rtol=1e-3)


@pytest.mark.parametrize('number', [0.0, 0.25])
def test_a_constant_has_no_correlation(number):
    x, constant = jax.random.normal(jax.random.key(0), (7, 3)), jnp.full((7, 3), number)

    def loss(a):
        return losses.one_minus_correlation(a, x, axis=0).sum()

    value, gradient = jax.value_and_grad(loss)(constant)
    assert float(value) == 3.0
    assert np.all(np.isfinite(gradient))


def test_a_head_that_starts_at_zero_has_a_gradient_of_a_usual_size():
    """The gradient of DIST's terms, once 600,000, is of the order of cross-entropy's, 0.6."""
    rng = np.random.default_rng(0)
    representations, teacher = rng.normal(size=(64, 32)), jax.nn.softmax(2 * rng.normal(size=(64, 10)))

    def dist(kernel):
        p = jax.nn.softmax(representations @ kernel)
        return sum(losses.one_minus_correlation(p, teacher, axis=axis).mean() for axis in (0, 1))

    assert 1.0 < jnp.linalg.norm(jax.grad(dist)(jnp.zeros((32, 10)))) < 100.0


# --- Relations -------------------------------------------------------------------------------------


def test_a_triangle_by_hand():
    """A right angle at the first corner against an equilateral triangle."""
    right, equal = (
        jnp.array(corners) for corners in ([[0.0, 0], [1, 0], [0, 1]], [[0.0, 0], [2, 0], [1, 3**0.5]])
    )
    distance, angle = losses.relational(right, equal)
    # Cosines 0, 1/sqrt(2) and 1/sqrt(2) against three times 1/2.
    angles = np.square([0.5, 0.5**0.5 - 0.5, 0.5**0.5 - 0.5]) / 2
    np.testing.assert_allclose(angle, angles, rtol=1e-5)
    mean = (2 + 2**0.5) / 3
    legs, longest = (1 / mean - 1) ** 2 / 2, (2**0.5 / mean - 1) ** 2 / 2
    expected = [legs, (legs + longest) / 2, (legs + longest) / 2]
    np.testing.assert_allclose(distance, expected, rtol=1e-5)
