"""Losses of Talking-model Distillation and of one-way methods, as pure functions of arrays.

    from td_jax import losses

    message = losses.message_consistency(student_message, teacher_message).mean()

No function needs a config. Each returns one value per example, [batch], so that the caller can mask padding
and take the mean. In the formulas g is the student and h the teacher; s is a model's lower hidden state, e
its higher one, {s; e} their concatenation on the feature axis, and y its predictions.

    Talking-model Distillation   message_consistency, state_consistency, interaction
    states                       feature_distillation, fitnet
    predictions                  label_l2, label_kl, dkd, dist
    relations within a batch     relational, contrastive, srd

The last three, `dist`, and `scale='variance'` relate the examples of a batch to each other: give them real
examples only. Everything is computed in float32, or in float64 where the arguments are.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# (s, e): a lower and a higher hidden state, batch-first.
State = tuple[jax.Array, jax.Array]

# Added to the variance of a target that a distance is divided by.
VARIANCE_EPSILON = 1e-6
# Two examples whose squared distance is below this share of their squared lengths, measured from the batch
# mean, count as one point: what is left of the difference is rounding.
SAME_POINT = 1e-6
# Added to the squared length of a projection, so that one of length 0 has a finite gradient.
CONTRASTIVE_EPSILON = 1e-6
# Added to the variances of features, as the paper's own code does, and to the logarithm's argument.
SRD_VARIANCE_EPSILON, SRD_EPSILON = 1e-4, 1e-12
# The variance in a correlation is at least this share of the squared mean: a correlation with a constant is
# 0, and one with an almost constant vector would have an unbounded gradient.
SMALLEST_VARIANCE = 1e-4


# --- Distances -------------------------------------------------------------------------------------


def distance(
    target: tuple[jax.Array, ...],
    prediction: tuple[jax.Array, ...],
    *,
    scale: str = 'none',
    stop_target: bool = False,
    part_weights: tuple[jax.Array, ...] | None = None,
) -> jax.Array:
    """The mean squared difference d of two states, over all axes but the batch.

        d(t, p) = mean_i w_i (t_i - p_i)^2                                         scale='none'
        d(t, p) = mean_i w_i (t_i - p_i)^2 / (mean_i w_i var_batch(t_i) + 1e-6)    scale='variance'

    where i runs over all features of all arrays, so that a wider array weighs more, and w is 1 or the weight
    of an array.

    Args:
      target, prediction: tuples of the same number of arrays [batch, ...], of pairwise equal shapes.
      scale: 'none' or 'variance'. No gradient flows through the variance.
      stop_target: whether the target is a constant for the gradient.
      part_weights: a number for each array, such as 1 / its variance; None weighs all of them by 1.

    Returns:
      [batch]

    Raises:
      ValueError: shapes that differ, or an unknown `scale`.

    Reference:
      Zhao et al. 2023, arXiv 2310.03188, section 3.3; the three options are additions.
    """
    _check_option('scale', scale, ('none', 'variance'))
    shapes = [x.shape for x in target], [x.shape for x in prediction]
    if shapes[0] != shapes[1]:
        raise ValueError(f'Cannot compare states of shapes {shapes[0]} and {shapes[1]}.')
    if stop_target:
        target = jax.lax.stop_gradient(target)
    squares = [
        jnp.sum(jnp.square(_to_float32(x) - _to_float32(y)), axis=range(1, x.ndim))
        for x, y in zip(target, prediction, strict=True)
    ]
    mean = sum(_weigh(squares, part_weights)) / _count_features(target)
    if scale == 'none':
        return mean
    return mean / (jax.lax.stop_gradient(variance(target, part_weights)) + VARIANCE_EPSILON)


def variance(state: tuple[jax.Array, ...], part_weights: tuple[jax.Array, ...] | None = None) -> jax.Array:
    """The variance of each feature over the batch, averaged over all features of all arrays.

    Args:
      state: a tuple of arrays [batch, ...].
      part_weights: a factor for each array; None takes 1.

    Returns:
      a scalar
    """
    variances = [_to_float32(x).var(axis=0).sum() for x in state]
    return sum(_weigh(variances, part_weights)) / _count_features(state)


def _weigh(values, part_weights):
    """The values of the parts of a state, times their weights where there are any."""
    if part_weights is None:
        return values
    return [weight * value for weight, value in zip(part_weights, values, strict=True)]


# --- Talking-model Distillation --------------------------------------------------------------------


class Speaker(NamedTuple):
    """One side of a conversation: three functions that have their parameters bound.

        upper(s, key) -> e         interprets a lower hidden state with the model's own layers
        encode(s, e, key) -> m     encodes a message
        decode(m, key) -> (s, e)   decodes a message

    A key of None means no dropout.
    """

    upper: Callable[..., jax.Array]
    encode: Callable[..., jax.Array]
    decode: Callable[..., State]


def message_consistency(
    student_message: jax.Array,
    teacher_message: jax.Array,
    *,
    scale: str = 'none',
    stop_target: bool = False,
) -> jax.Array:
    """Makes both models send the same message about an example.

        L_MC = d(m_h, m_g),   m_g = E_g(s_g, e_g),   m_h = E_h(s_h, e_h)

    Args:
      student_message, teacher_message: m_g and m_h, [batch, ..., message].
      scale, stop_target: as in `distance`; the target is the teacher's message.

    Returns:
      [batch]

    Reference:
      Zhao et al. 2023, arXiv 2310.03188, section 3.3.
    """
    return distance((teacher_message,), (student_message,), scale=scale, stop_target=stop_target)


def state_consistency(
    student_state: State,
    teacher_state: State,
    decoded_by_student: State,
    decoded_by_teacher: State,
    *,
    scale: str = 'none',
    stop_target: bool = False,
    student_weights: tuple[jax.Array, jax.Array] | None = None,
    teacher_weights: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Makes each model decode its own state from the other model's message.

        L_SC = d({s_g; e_g}, D_g(m_h)) + d({s_h; e_h}, D_h(m_g))

    Args:
      student_state, teacher_state: (s_g, e_g) and (s_h, e_h).
      decoded_by_student: D_g(m_h), shaped as the student's state.
      decoded_by_teacher: D_h(m_g), shaped as the teacher's state.
      scale, stop_target: as in `distance`; the targets are the states.
      student_weights, teacher_weights: part_weights of `distance` for the states of each model.

    Returns:
      [batch]

    Reference:
      Zhao et al. 2023, arXiv 2310.03188, section 3.3.
    """
    measure = functools.partial(distance, scale=scale, stop_target=stop_target)
    of_student = measure(student_state, decoded_by_student, part_weights=student_weights)
    return of_student + measure(teacher_state, decoded_by_teacher, part_weights=teacher_weights)


def interaction(
    student: Speaker,
    teacher: Speaker,
    student_state: State,
    teacher_lower: jax.Array,
    *,
    rounds: int = 1,
    reference: str = 'running',
    scale: str = 'none',
    stop_target: bool = False,
    part_weights: tuple[jax.Array, jax.Array] | None = None,
    noise_std: float = 0.0,
    remat_policy: Callable[..., bool] = jax.checkpoint_policies.dots_saveable,
    key: jax.Array | None = None,
) -> jax.Array:
    """Makes the student's state agree with the teacher's answers, summed over the rounds of a conversation.

    The first round starts from the student's state {s; e} and the lower state s'_h that the teacher decodes
    from the student's message. A round is

        m_h          = E_h(s'_h, upper_h(s'_h))      the teacher interprets and answers
        {s'_g; e'_g} = D_g(m_h)                      the student decodes the answer
        L_interact  += d({s; e}, {s'_g; e'_g})
        s, e         = s'_g, upper_g(s'_g)           the student interprets the answer
        s'_h, _      = D_h(E_g(s, e))                and sends a follow-up, which the teacher decodes

    The last follow-up is not computed. Rounds are scanned, so that a compiled conversation of ten rounds is
    as large as one of two.

    Args:
      student, teacher: the two Speakers.
      student_state: (s_g, e_g), [batch, ...] each.
      teacher_lower: s'_h = D_h(m_g)[0], [batch, ...].
      rounds: number of rounds; 0 gives zeros.
      reference: 'running' compares a round with the state that the round started from (Algorithm 1),
        'original' with `student_state`.
      scale, stop_target, part_weights: as in `distance`; the target is the state that a round is compared
        with, one of the student's.
      noise_std: standard deviation of Gaussian noise on s'_h before the teacher interprets it.
      remat_policy: what of a round is saved for the gradient, one of jax.checkpoint_policies. It changes
        memory and time, not the result.
      key: for dropout and noise; each round has its own. None for neither.

    Returns:
      [batch]

    Raises:
      ValueError: an unknown `reference` or `scale`, or states of unlike shapes.

    Reference:
      Zhao et al. 2023, arXiv 2310.03188, section 3.4 and Algorithm 1. Its line 13 encodes the answer with
      E_g; here the teacher does, with E_h, as the text says.
    """
    _check_option('reference', reference, ('running', 'original'))
    student_state = tuple(student_state)
    if rounds == 0:
        return jnp.zeros(teacher_lower.shape[0], jnp.float32)

    def split_key(key):
        return (None,) * 6 if key is None else jax.random.split(key, 6)

    def run_answer(state, teacher_lower, keys):
        """The first half of a round: -> (what the student decodes, loss [batch])."""
        noise_key, upper_key, encode_key, decode_key = keys
        if noise_std and key is not None:
            teacher_lower = teacher_lower + noise_std * jax.random.normal(
                noise_key, teacher_lower.shape, teacher_lower.dtype
            )
        interpreted = teacher.upper(teacher_lower, upper_key)
        message = teacher.encode(teacher_lower, interpreted, encode_key)
        decoded = student.decode(message, decode_key)
        target = state if reference == 'running' else student_state
        loss = distance(target, decoded, scale=scale, stop_target=stop_target, part_weights=part_weights)
        return decoded, loss

    def run_round(carry, round_key):
        state, teacher_lower = carry
        *answer_keys, upper_key, follow_key = split_key(round_key)
        (s, _), loss = run_answer(state, teacher_lower, answer_keys)
        e = student.upper(s, upper_key)
        encode_key, decode_key = (None, None) if key is None else jax.random.split(follow_key)
        teacher_lower, _ = teacher.decode(student.encode(s, e, encode_key), decode_key)
        return ((s, e), teacher_lower), loss

    round_keys = None if key is None else jax.random.split(key, rounds)
    first_keys, last_key = (None, None) if key is None else (round_keys[:-1], round_keys[-1])
    # A loop keeps the two passes apart by itself. One of a single turn is none once it is compiled, and the
    # compiler then keeps what it likes; to prevent that was slower and took more memory (docs/tpu.md).
    one_round = jax.checkpoint(run_round, policy=remat_policy, prevent_cse=False)
    (state, teacher_lower), round_losses = jax.lax.scan(
        one_round, (student_state, teacher_lower), first_keys, length=rounds - 1
    )
    _, last_loss = run_answer(state, teacher_lower, split_key(last_key)[:4])
    return round_losses.sum(axis=0) + last_loss


# --- One-way distillation of states ----------------------------------------------------------------


def feature_distillation(student_message: jax.Array, teacher_message: jax.Array) -> jax.Array:
    """Makes the encoded features of both models equal.

        L_FD = d(E_g(s_g, e_g), E_h(s_h, e_h))

    Args:
      student_message, teacher_message: the encoded features, [batch, ..., message].

    Returns:
      [batch]

    Reference:
      Heo et al. 2019, arXiv 1904.01866, as arXiv 2310.03188 compares it with learned encoders.
    """
    return distance((student_message,), (teacher_message,))


def fitnet(
    student_state: State,
    decoded_teacher_state: State,
    *,
    part_weights: tuple[jax.Array, ...] | None = None,
) -> jax.Array:
    """Makes the student's state agree with the teacher's, which a learned decoder maps to its shape.

        L_FitNet = d({s_g; e_g}, D_g({s_h; e_h}))

    Args:
      student_state: (s_g, e_g), or any tuple of arrays [batch, ...].
      decoded_teacher_state: D_g({s_h; e_h}), shaped as the student's state.
      part_weights: as in `distance`.

    Returns:
      [batch]

    Reference:
      Romero et al. 2015, arXiv 1412.6550, equation 3. There the student's state is mapped to the teacher's.
    """
    return distance(student_state, decoded_teacher_state, part_weights=part_weights)


# --- One-way distillation of predictions -----------------------------------------------------------


def label_l2(student_predictions: jax.Array, teacher_predictions: jax.Array) -> jax.Array:
    """The mean squared difference of predictions.

        L_LD = d(y_g, y_h)

    Args:
      student_predictions, teacher_predictions: [batch, outputs].

    Returns:
      [batch]

    Reference:
      Hinton et al. 2015, arXiv 1503.02531, section 2.1.
    """
    return distance((student_predictions,), (teacher_predictions,))


def label_kl(student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """The divergence of the student's class probabilities from the teacher's, at a temperature.

        L_LD = T^2 KL(softmax(y_h / T) || softmax(y_g / T))

    The factor keeps the gradient's size independent of the temperature.

    Args:
      student_logits, teacher_logits: [batch, classes].
      temperature: T > 0.

    Returns:
      [batch]

    Reference:
      Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    _check_same_shape(student_logits, teacher_logits)
    student_log_p = jax.nn.log_softmax(student_logits / temperature)
    teacher_log_p = jax.nn.log_softmax(teacher_logits / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student_log_p, teacher_log_p)


def dkd(
    student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, *, temperature: float = 4.0
) -> tuple[jax.Array, jax.Array]:
    """Decoupled knowledge distillation: the divergence of the label's class, and that among the others.

    With p = softmax(y / T), c the class of the label, and q_i = p_i / (1 - p_c) for the other classes,

        target = T^2 KL([p_c, 1 - p_c] of h || of g)
        others = T^2 KL(q of h || q of g)

    Hinton's divergence is target + (1 - p_c of h) others. The paper weights `target` by alpha (1) and
    `others` by beta (8). All is computed in logarithms, so that a class may have the probability 0 or 1.

    Args:
      student_logits, teacher_logits: [batch, classes], at least two classes. With two, `others` is 0.
      labels: [batch], integers.
      temperature: T > 0.

    Returns:
      (target, others), [batch] each

    Reference:
      Zhao et al. 2022, arXiv 2203.08679, equations 5 to 7.
    """
    _check_same_shape(student_logits, teacher_logits)
    is_label = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)

    def decouple(logits):
        y = _to_float32(logits) / temperature
        # A finite number, so that 0 times it is 0, gradient included.
        others = jnp.where(is_label, -1e9, y)
        label = jnp.sum(jnp.where(is_label, y, 0.0), axis=-1)
        two = jnp.stack([label, jax.nn.logsumexp(others, axis=-1)], axis=-1)
        return jax.nn.log_softmax(two), jax.nn.log_softmax(others)

    student_target, student_others = decouple(student_logits)
    teacher_target, teacher_others = decouple(teacher_logits)
    target = optax.losses.kl_divergence_with_log_targets(student_target, teacher_target)
    divergence_of_others = jnp.where(
        is_label, 0.0, jnp.exp(teacher_others) * (teacher_others - student_others)
    )
    return temperature**2 * target, temperature**2 * divergence_of_others.sum(axis=-1)


def dist(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """DIST: makes the class probabilities of both models correlate, within examples and within classes.

    With p = softmax(y / T) and `one_minus_correlation` r,

        inter = T^2 r(p_g, p_h) over the classes of each example
        intra = T^2 mean over the classes of r(p_g, p_h) over the batch, the same for every example

    The paper weights `inter` by beta and `intra` by gamma.

    Args:
      student_logits, teacher_logits: [batch, classes]. `inter` has a gradient from three classes on, `intra`
        from three examples on.
      temperature: T > 0.

    Returns:
      (inter, intra), [batch] each

    Reference:
      Huang et al. 2022, arXiv 2205.10536.
    """
    _check_same_shape(student_logits, teacher_logits)
    p_g, p_h = (
        jax.nn.softmax(_to_float32(logits) / temperature) for logits in (student_logits, teacher_logits)
    )
    inter = temperature**2 * one_minus_correlation(p_g, p_h, axis=-1)
    intra = temperature**2 * one_minus_correlation(p_g, p_h, axis=0).mean()
    return inter, jnp.full(len(p_g), intra)


def one_minus_correlation(a: jax.Array, b: jax.Array, *, axis: int) -> jax.Array:
    """One minus Pearson's correlation of two arrays along an axis; 1 where either is constant.

        1 - sum (a - mean a) (b - mean b) / (|a - mean a| |b - mean b|)

    Each sum of squares |x - mean x|^2 over n numbers is increased by 1e-4 n (mean x)^2, without a gradient.
    Class probabilities are constant where a head starts at zero; their gradient is then that of a row with a
    standard deviation of a hundredth of its mean. Two numbers correlate by 1 or -1, so there is no gradient.

    Args:
      a, b: arrays of one shape.
      axis: the axis that is reduced.

    Returns:
      an array of that shape without the axis
    """
    _check_same_shape(a, b)

    def normalise(x):
        mean = x.mean(axis=axis, keepdims=True)
        floor = jax.lax.stop_gradient(SMALLEST_VARIANCE * jnp.square(mean)) * x.shape[axis]
        squares = jnp.square(x - mean).sum(axis=axis, keepdims=True) + floor
        # 0 where all numbers are 0.
        return (x - mean) / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))

    result = 1.0 - jnp.sum(normalise(a) * normalise(b), axis=axis)
    # Of two numbers, the floor alone would have a gradient.
    return result if a.shape[axis] > 2 else jax.lax.stop_gradient(result)


# --- One-way distillation of relations within a batch ----------------------------------------------


def relational(student_features: jax.Array, teacher_features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Relational knowledge distillation: makes the batches of both models congruent figures, up to size.

        distance_i = mean over j of Huber(|x_i - x_j| / mu of g, of h)
        angle_j    = mean over i, k of Huber(cos of the angle i j k of g, of h)

    where mu is the mean distance of two examples, i, j and k are distinct, and Huber's threshold is 1.
    Examples at one point have the distance 0 and no angle. The paper's losses are the means over the batch.

    Args:
      student_features: [batch, student width], at least three examples.
      teacher_features: [batch, teacher width].

    Returns:
      (distance, angle), [batch] each

    Reference:
      Park et al. 2019, arXiv 1904.05068.
    """
    _check_same_batch(student_features, teacher_features)
    of_student, of_teacher = map(_compute_relations, (student_features, teacher_features))
    return _compare_distances(of_student[1], of_teacher[1]), _compare_angles(of_student, of_teacher)


def contrastive(
    student_projection: jax.Array, teacher_projection: jax.Array, *, temperature: float = 0.07
) -> jax.Array:
    """Contrastive representation distillation, with the other examples of the batch as negatives.

    With z the projections at unit length and T the temperature,

        L_i = -(log softmax_j(z_g,i z_h,j / T) at j = i + log softmax_j(z_h,i z_g,j / T) at j = i) / 2

    The paper takes thousands of negatives from a memory bank of earlier steps, for classification from other
    classes, and uses noise-contrastive estimation. Here an example has batch - 1 negatives, computed in this
    step, whatever their labels, and the loss is InfoNCE.

    Args:
      student_projection, teacher_projection: [batch, width], of any length.
      temperature: T > 0.

    Returns:
      [batch]

    Reference:
      Tian et al. 2020, arXiv 1910.10699; InfoNCE: van den Oord et al. 2018, arXiv 1807.03748, equation 4.
    """
    _check_same_shape(student_projection, teacher_projection)
    z_g, z_h = (_to_float32(x) for x in (student_projection, teacher_projection))
    z_g, z_h = (
        z / jnp.sqrt(jnp.square(z).sum(axis=-1, keepdims=True) + CONTRASTIVE_EPSILON) for z in (z_g, z_h)
    )
    similarity = jnp.matmul(z_g, z_h.T, precision=jax.lax.Precision.HIGHEST) / temperature
    log_p = jax.nn.log_softmax(similarity, axis=1) + jax.nn.log_softmax(similarity, axis=0)
    return -jnp.diagonal(log_p) / 2


def srd(projected_student: jax.Array, teacher_features: jax.Array, *, alpha: float = 4.0) -> jax.Array:
    """The LogSum distance of normalised features behind a linear projector.

        L = log sum over examples and features of |BN(P e_g) - BN(e_h)|^alpha

    BN subtracts each feature's batch mean and divides by its batch standard deviation; it has no parameters
    and keeps no statistics. L belongs to the batch and is the same for every example. It may be negative.

    Args:
      projected_student: P e_g, [batch, width], by a learned linear P.
      teacher_features: e_h, [batch, width].
      alpha: the power.

    Returns:
      [batch]

    Reference:
      Miles and Mikolajczyk 2024, arXiv 2303.11098.
    """
    _check_same_shape(projected_student, teacher_features)

    def normalise(x):
        variance = x.var(axis=0, keepdims=True)
        return (x - x.mean(axis=0, keepdims=True)) * jax.lax.rsqrt(variance + SRD_VARIANCE_EPSILON)

    projected_student, teacher_features = map(_to_float32, (projected_student, teacher_features))
    difference = jnp.abs(normalise(projected_student) - normalise(teacher_features))
    total = jnp.log(jnp.sum(difference**alpha) + SRD_EPSILON)
    return jnp.full(len(teacher_features), total)


# --- Helpers ---------------------------------------------------------------------------------------


def _compute_relations(x):
    """How the examples of a batch [batch, width] lie relative to each other.

    Returns:
      (inner products around the batch mean, distances with 0 for examples at one point), [batch, batch] each
    """
    x = _to_float32(x)
    x = x - x.mean(axis=0, keepdims=True)
    products = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    lengths = jnp.diagonal(products)
    both = lengths[:, None] + lengths[None, :]
    square = both - 2.0 * products
    # What is not finite stays so.
    apart = ~(square <= SAME_POINT * both) & ~jnp.eye(len(x), dtype=bool)
    # The root has no gradient at 0.
    return products, jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def _compare_distances(student_distances, teacher_distances):
    """The distance term of `relational`: [batch, batch] twice -> [batch]."""
    count = len(student_distances)

    def normalise(distances):
        mean = distances.sum() / (count * (count - 1))
        # Examples that are all at one point have no unit of length.
        return distances / jnp.where(mean > 0, mean, 1.0)

    difference = optax.losses.huber_loss(normalise(student_distances), normalise(teacher_distances))
    return difference.sum(axis=1) / (count - 1)


def _compare_angles(of_student, of_teacher):
    """The angle term of `relational`, from what `_compute_relations` returns for both: -> [batch].

    One vertex after the other, so that no array has a number for every three of the batch; what the gradient
    needs is computed again.
    """
    count = len(of_student[0])

    def compute_cosines(products, at_vertex):
        # (x_i - x_j) (x_k - x_j) of vertex j.
        row, distances, own = at_vertex
        inner = products - row[:, None] - row[None, :] + own
        lengths = distances[:, None] * distances[None, :]
        return jnp.where(lengths != 0, inner / jnp.where(lengths != 0, lengths, 1.0), 0.0)

    @jax.checkpoint
    def compare_at(vertex):
        difference = optax.losses.huber_loss(
            *(
                compute_cosines(products, at_vertex)
                for (products, _), at_vertex in zip((of_student, of_teacher), vertex, strict=True)
            )
        )
        # An example makes no angle with the vertex itself, where both cosines are 0, nor with itself.
        others = ~jnp.eye(count, dtype=bool)
        return jnp.sum(difference * others) / ((count - 1) * (count - 2))

    # What belongs to a vertex comes from the scan: taken by its index, of a batch that is cut over devices
    # and under vmap, it had a wrong gradient.
    vertices = tuple(
        (products, distances, jnp.diagonal(products)) for products, distances in (of_student, of_teacher)
    )
    return jax.lax.map(compare_at, vertices)


def _to_float32(x):
    """An array in float32, or as it is in float64."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _count_features(state):
    """The number of features of an example, over all arrays of a state."""
    return sum(math.prod(x.shape[1:]) for x in state)


def _check_option(name, value, choices):
    if value not in choices:
        raise ValueError(f'{name} is {value!r}; it must be {" or ".join(map(repr, choices))}.')


# Broadcasting would hide unlike shapes: (4,) - (4, 1) is (4, 4).
def _check_same_shape(student, teacher):
    if student.shape != teacher.shape:
        raise ValueError(f'Cannot compare arrays of shapes {student.shape} and {teacher.shape}.')


def _check_same_batch(student, teacher):
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(f'Cannot relate {student.shape} to {teacher.shape}; both must be [batch, width].')
