"""Talking-model Distillation: the terms of a conversation (arXiv 2310.03188, sections 3.2 to 3.4)."""

import jax.numpy as jnp

from td_jax import losses
from td_jax.devices.remat import POLICIES
from td_jax.method import logits
from td_jax.method.one_way import init_fd
from td_jax.method.shared import (
    bind_decoder,
    bind_encoder,
    find_message_layout,
    make_decoder,
    part_weights,
    split_key,
)
from td_jax.randomness import fold_name


def init_td(key, student, teacher, config, num_labels):
    """Encoder and decoder of both models, and the bridge of an optional logits term."""
    message = jnp.zeros((1, config.communication.message), jnp.float32)
    params = init_fd(key, student, teacher, config, num_labels)
    for name, side in (('student_decoder', student), ('teacher_decoder', teacher)):
        params[name] = make_decoder(config, side).init(fold_name(key, name), message)['params']
    if config.td.weights.logits:
        params |= logits.init_bridge(key, student, teacher, config, num_labels)
    return params


def td_terms(params, student, teacher, labels, config, key):
    """Talking-model Distillation: L_interact, L_MC, L_SC of td_jax.losses, and optionally LD's term.

    D_h(m_g) is computed once, for L_SC and the first round of the conversation.
    """
    weights, layout = config.td.weights, find_message_layout(student, teacher, config)
    options = {'scale': config.td.scale, 'stop_target': config.td.stop_target}
    speakers = {
        name: losses.Speaker(
            participant.upper,
            bind_encoder(params[f'{name}_encoder'], participant, layout, config),
            bind_decoder(params[f'{name}_decoder'], participant, layout, config),
        )
        for name, participant in (('student', student), ('teacher', teacher))
    }
    keys = split_key(key, 5)
    student_state, teacher_state = student.activations[:2], teacher.activations[:2]
    student_message = speakers['student'].encode(*student_state, keys[0])
    teacher_message = speakers['teacher'].encode(*teacher_state, keys[1])
    decoded_by_teacher = speakers['teacher'].decode(student_message, keys[2])

    terms = {}
    if weights.message:
        terms['message'] = losses.message_consistency(student_message, teacher_message, **options)
    if weights.state:
        decoded_by_student = speakers['student'].decode(teacher_message, keys[3])
        terms['state'] = losses.state_consistency(
            student_state,
            teacher_state,
            decoded_by_student,
            decoded_by_teacher,
            student_weights=part_weights(student),
            teacher_weights=part_weights(teacher),
            **options,
        )
    if weights.interact and config.td.rounds:
        terms['interact'] = losses.interaction(
            speakers['student'],
            speakers['teacher'],
            student_state,
            decoded_by_teacher[0],
            rounds=config.td.rounds,
            reference=config.td.reference,
            part_weights=part_weights(student),
            noise_std=config.td.noise_std,
            remat_policy=POLICIES[config.td.remat_policy],
            key=keys[4],
            **options,
        )
    if weights.logits:
        terms |= logits.logits_terms(params, student, teacher, labels, config)
    return terms
