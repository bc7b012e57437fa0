"""Methods that compare predictions, and what bridges models that predict different labels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from td_jax.method import communication
from td_jax.models import base
from td_jax.randomness import fold_name

# The variance of what is correlated is at least this share of its squared mean: a correlation with what is
# constant is 0, and one with what is almost constant would have a gradient without bound.
SMALLEST_VARIANCE = 1e-4


# --- The bridge ------------------------------------------------------------------------------------


def init_bridge(key, student, teacher, config, num_labels):
    """Parameters of the head of a student for its teacher's labels; none where there is no such head."""
    if config.teacher.labels == 'auxiliary':
        head, own_key = nn.Dense(teacher.logits.shape[-1]), fold_name(key, 'auxiliary')
        return {'auxiliary': head.init(own_key, base.read_by_head(student.upper))['params']}
    return {}


def bridged(params, student, teacher, config):
    """Predictions of both models that can be compared, by teacher.labels.

    Args:
      params: what `init_bridge` made, among others.
      student, teacher: Participants.
      config: of the run.

    Returns:
      (the student's, the teacher's), [batch, outputs] each
    """
    student_logits, teacher_logits = student.activations.logits, teacher.activations.logits
    if config.teacher.labels == 'probe':
        return student_logits, teacher.probed
    if config.teacher.labels == 'auxiliary':
        head = nn.Dense(teacher_logits.shape[-1])
        read = base.read_by_head(student.activations.upper).astype(jnp.float32)
        student_logits = head.apply({'params': params['auxiliary']}, read)
    return student_logits, teacher_logits


# --- Label distillation ----------------------------------------------------------------------------


def kl_divergence(student_logits, teacher_logits, temperature):
    """T^2 KL(softmax(y_h / T) || softmax(y_g / T)), Hinton et al. 2015.

    The factor keeps the gradient's size independent of the temperature.

    Args:
      student_logits, teacher_logits: [batch, classes].
      temperature: T > 0.

    Returns:
      [batch]
    """
    student_log = jax.nn.log_softmax(student_logits / temperature)
    teacher_log = jax.nn.log_softmax(teacher_logits / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student_log, teacher_log)


def logits_distance(student_logits, teacher_logits, config):
    """d(y_g, y_h) by config.logits: [batch, outputs] twice -> [batch]."""
    if config.logits.distance == 'kl':
        return kl_divergence(student_logits, teacher_logits, config.logits.temperature)
    return communication.distance((student_logits,), (teacher_logits,))


def logits_terms(params, student, teacher, labels, config):
    """L_logit = d(y_g, y_h). -> {'logits': [batch]}."""
    return {'logits': logits_distance(*bridged(params, student, teacher, config), config)}


def ld_terms(params, student, teacher, labels, config, key):
    """Label distillation (Hinton et al. 2015): d(y_g, y_h)."""
    return logits_terms(params, student, teacher, labels, config)


# --- Decoupled knowledge distillation --------------------------------------------------------------


def decoupled(student_logits, teacher_logits, labels, temperature):
    """KL of the label against all others, and KL among the others (Zhao et al. 2022, equation 6).

    With p = softmax(y / T), the label's class c and q_i = p_i / (1 - p_c) of the others, the divergence of
    Hinton et al. is KL([p_c, 1 - p_c]) + (1 - p_c of the teacher) KL(q); here the two stand by themselves.
    All in logarithms, so that a class of probability 0 or 1 is no trouble.

    Args:
      student_logits, teacher_logits: [batch, classes], at least two classes.
      labels: [batch].
      temperature: T > 0.

    Returns:
      (T^2 KL(teacher's [p_c, 1 - p_c] || student's), T^2 KL(teacher's q || student's)), [batch] each
    """
    is_label = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)

    def parts(logits):
        y = logits.astype(jnp.float32) / temperature
        # A finite number, so that 0 times it is 0, gradient included.
        others = jnp.where(is_label, -1e9, y)
        label = jnp.sum(jnp.where(is_label, y, 0.0), axis=-1)
        two = jnp.stack([label, jax.nn.logsumexp(others, axis=-1)], axis=-1)
        return jax.nn.log_softmax(two), jax.nn.log_softmax(others)

    student_target, student_others = parts(student_logits)
    teacher_target, teacher_others = parts(teacher_logits)
    target = optax.losses.kl_divergence_with_log_targets(student_target, teacher_target)
    among = jnp.where(is_label, 0.0, jnp.exp(teacher_others) * (teacher_others - student_others))
    return temperature**2 * target, temperature**2 * among.sum(axis=-1)


def dkd_terms(params, student, teacher, labels, config, key):
    """Decoupled knowledge distillation (Zhao et al. 2022): alpha and beta are the terms' weights.

    It asks which of the compared classes the label is, so an auxiliary head for the teacher's own labels,
    which no example has, does not do.
    """
    student_logits, teacher_logits = bridged(params, student, teacher, config)
    target, others = decoupled(student_logits, teacher_logits, labels, config.dkd.temperature)
    found = {'target': target, 'others': others}
    return {name: term for name, term in found.items() if config.dkd.weights[name]}


# --- Distillation from a stronger teacher ----------------------------------------------------------


def one_minus_correlation(a, b, axis):
    """1 - Pearson's correlation of a and b along an axis, 1 where either is constant.

        1 - sum (a - mean a) (b - mean b) / (|a - mean a| |b - mean b|)

    Each sum of squares |x - mean x|^2 of n numbers gets n SMALLEST_VARIANCE (mean x)^2 more, without a
    gradient. Rows of probabilities are constant where a head starts at zero, and the gradient is then that of
    a row with a standard deviation of a hundredth of its mean. Of two numbers there is no gradient.

    Args:
      a, b: of one shape.
      axis: is reduced.
    """

    def normalise(x):
        mean = x.mean(axis=axis, keepdims=True)
        floor = jax.lax.stop_gradient(SMALLEST_VARIANCE * jnp.square(mean)) * x.shape[axis]
        squares = jnp.square(x - mean).sum(axis=axis, keepdims=True) + floor
        # All are 0.
        return (x - mean) / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))

    found = 1.0 - jnp.sum(normalise(a) * normalise(b), axis=axis)
    # Two numbers correlate by 1 or -1; without this, the floor alone would have a gradient.
    return found if a.shape[axis] > 2 else jax.lax.stop_gradient(found)


def dist_terms(params, student, teacher, labels, config, key):
    """DIST (Huang et al. 2022): probabilities that correlate, of an example and of a class.

    With p = softmax(y / T), 'inter' is T^2 (1 - correlation over the classes of p_g and p_h) of each example,
    and 'intra' T^2 times the mean over the classes of 1 - their correlation over the batch, the same for
    every example. Beta and gamma are the terms' weights.
    """
    temperature, weights = config.dist.temperature, config.dist.weights
    p_g, p_h = (
        jax.nn.softmax(logits.astype(jnp.float32) / temperature)
        for logits in bridged(params, student, teacher, config)
    )
    terms = {}
    if weights.inter:
        terms |= {'inter': temperature**2 * one_minus_correlation(p_g, p_h, axis=-1)}
    if weights.intra:
        intra = temperature**2 * one_minus_correlation(p_g, p_h, axis=0).mean()
        terms |= {'intra': jnp.full(len(p_g), intra)}
    return terms
