"""Talking-model Distillation: the terms of a conversation (arXiv 2310.03188, sections 3.2 to 3.4)."""

import functools

import jax
import jax.numpy as jnp

from td_jax.devices.remat import POLICIES
from td_jax.method import communication, logits
from td_jax.method.one_way import init_fd
from td_jax.method.shared import decode_with, decoder_of, encode_with, layout_of_message, split
from td_jax.randomness import fold_name

# Added to the variance of a target that a distance is divided by.
VARIANCE_EPSILON = 1e-6


def init_td(key, student, teacher, config, num_labels):
    """Encoder and decoder of both models, and the bridge of an optional logits term."""
    message = jnp.zeros((1, config.communication.message), jnp.float32)
    params = init_fd(key, student, teacher, config, num_labels)
    for name, side in (('student_decoder', student), ('teacher_decoder', teacher)):
        params[name] = decoder_of(config, side).init(fold_name(key, name), message)['params']
    if config.td.weights.logits:
        params |= logits.init_bridge(key, student, teacher, config, num_labels)
    return params


def variance(state: communication.State) -> jax.Array:
    """Mean over all features of their variance over the batch, in float32; of all arrays joined, a scalar."""
    total = sum(x.astype(jnp.float32).var(axis=0).sum() for x in state)
    return total / sum(x[0].size for x in state)


def measure(target: communication.State, found: communication.State, *, scale: str, stop_target: bool):
    """d(target, found), as td.scale and td.stop_target have it.

    Args:
      target: what the distance is to: of L_MC the teacher's message, of L_SC the student's states and the
        teacher's, of L_interact the state that is compared, by td.reference.
      found: what should be like it.
      scale: 'none', or 'variance', which divides by the variance of the target over the batch. No gradient
        flows through the divisor.
      stop_target: whether the target counts as given: what it depends on does not move towards `found`.

    Returns:
      [batch]
    """
    if stop_target:
        target = jax.lax.stop_gradient(target)
    distance = communication.distance(target, found)
    if scale == 'none':
        return distance
    return distance / (jax.lax.stop_gradient(variance(target)) + VARIANCE_EPSILON)


def td_terms(params, student, teacher, labels, config, key):
    """Talking-model Distillation: L_interact, L_MC, L_SC, and optionally LD's term.

    L_MC = d(m_h, m_g)
    L_SC = d({s_g; e_g}, D_g(m_h)) + d({s_h; e_h}, D_h(m_g))

    The first argument of a distance is its target. D_h(m_g) serves both L_SC and the first round of the
    conversation.
    """
    weights, layout = config.td.weights, layout_of_message(student, teacher, config)
    distance = functools.partial(measure, scale=config.td.scale, stop_target=config.td.stop_target)
    sides = {
        name: communication.Speaker(
            participant.upper,
            encode_with(params[f'{name}_encoder'], participant, layout, config),
            decode_with(params[f'{name}_decoder'], participant, layout, config),
        )
        for name, participant in (('student', student), ('teacher', teacher))
    }
    keys = split(key, 5)
    student_state, teacher_state = student.activations[:2], teacher.activations[:2]
    student_message = sides['student'].encode(*student_state, keys[0])
    teacher_message = sides['teacher'].encode(*teacher_state, keys[1])
    decoded_by_teacher = sides['teacher'].decode(student_message, keys[2])

    terms = {}
    if weights.message:
        terms['message'] = distance((teacher_message,), (student_message,))
    if weights.state:
        decoded_by_student = sides['student'].decode(teacher_message, keys[3])
        terms['state'] = distance(student_state, decoded_by_student) + distance(
            teacher_state, decoded_by_teacher
        )
    if weights.interact and config.td.rounds:
        terms['interact'] = communication.communicate(
            sides['student'],
            sides['teacher'],
            student_state,
            decoded_by_teacher[0],
            rounds=config.td.rounds,
            reference=config.td.reference,
            measure=distance,
            noise_std=config.td.noise_std,
            remat_policy=POLICIES[config.td.remat_policy],
            key=keys[4],
        )
    if weights.logits:
        terms |= logits.logits_terms(params, student, teacher, labels, config)
    return terms
