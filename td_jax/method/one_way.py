"""One-way methods that compare states: the teacher's message gets no answer."""

import flax.linen as nn
import jax.numpy as jnp

from td_jax import losses
from td_jax.method import logits
from td_jax.method.shared import (
    bind_decoder,
    bind_encoder,
    find_message_layout,
    make_decoder,
    make_encoder,
    part_weights,
    read_state,
    split_key,
    take_one_cell,
)
from td_jax.models import base
from td_jax.randomness import fold_name


def representations(student, teacher):
    """What the heads read of both Participants, in float32: [batch, width] each."""
    return tuple(
        base.read_by_head(participant.activations.upper).astype(jnp.float32)
        for participant in (student, teacher)
    )


# --- FD, FitNet, Hybrid ----------------------------------------------------------------------------


def init_fd(key, student, teacher, config, num_labels):
    """Encoders of both models."""
    encoder = make_encoder(config)
    return {
        name: encoder.init(fold_name(key, name), *map(take_one_cell, side[:2]))['params']
        for name, side in (('student_encoder', student), ('teacher_encoder', teacher))
    }


def messages(params, student, teacher, config, key):
    """The messages that the encoders of both Participants make of their states, (m_g, m_h)."""
    layout = find_message_layout(student, teacher, config)
    return tuple(
        bind_encoder(params[f'{name}_encoder'], side, layout, config)(*side.activations[:2], side_key)
        for name, side, side_key in zip(
            ('student', 'teacher'), (student, teacher), split_key(key, 2), strict=True
        )
    )


def fd_terms(params, student, teacher, labels, config, key):
    """Feature distillation (Heo et al. 2019), losses.feature_distillation of the messages."""
    return {'feature': losses.feature_distillation(*messages(params, student, teacher, config, key))}


def init_fitnet(key, student, teacher, config, num_labels):
    """The student's decoder, which reads the teacher's states themselves."""
    decoder = make_decoder(config, student)
    own_key = fold_name(key, 'student_decoder')
    return {'student_decoder': decoder.init(own_key, *map(take_one_cell, teacher[:2]))['params']}


def fitnet_terms(params, student, teacher, labels, config, key):
    """FitNet (Romero et al. 2015), losses.fitnet: the student decodes the teacher's states themselves."""
    layout = find_message_layout(student, teacher, config)
    decode = bind_decoder(params['student_decoder'], student, layout, config)
    decoded = decode(*read_state(teacher, *teacher.activations[:2], layout), key)
    return {
        'state': losses.fitnet(student.activations[:2], decoded, part_weights=part_weights(student)),
    }


def init_hybrid(key, student, teacher, config, num_labels):
    """The parameters of LD and FD."""
    return {
        **logits.init_bridge(key, student, teacher, config, num_labels),
        **init_fd(key, student, teacher, config, num_labels),
    }


def hybrid_terms(params, student, teacher, labels, config, key):
    """Hybrid (Zhu and Wang 2021): LD and FD together."""
    weights = config.hybrid.weights
    terms = {}
    if weights.logits:
        terms |= logits.ld_terms(params, student, teacher, labels, config, key)
    if weights.feature:
        terms |= fd_terms(params, student, teacher, labels, config, key)
    return terms


# --- Relational knowledge distillation -------------------------------------------------------------


def rkd_terms(params, student, teacher, labels, config, key):
    """Relational knowledge distillation (Park et al. 2019), losses.relational of what the heads read.

    It has no parameters of its own, and relates models of any two widths.
    """
    distance, angle = losses.relational(*representations(student, teacher))
    terms = {'distance': distance, 'angle': angle}
    return {name: term for name, term in terms.items() if config.rkd.weights[name]}


# --- Contrastive representation distillation -------------------------------------------------------


def init_crd(key, student, teacher, config, num_labels):
    """For each model a linear projection to the width of a message, of what its head reads."""
    project = nn.Dense(config.communication.message)
    return {
        name: project.init(fold_name(key, name), base.read_by_head(side.upper))['params']
        for name, side in (('student_projection', student), ('teacher_projection', teacher))
    }


def crd_terms(params, student, teacher, labels, config, key):
    """Contrastive representation distillation (Tian et al. 2020), losses.contrastive of the projections."""
    project = nn.Dense(config.communication.message)
    z_g, z_h = (
        project.apply({'params': params[f'{side}_projection']}, x)
        for side, x in zip(('student', 'teacher'), representations(student, teacher), strict=True)
    )
    return {'contrast': losses.contrastive(z_g, z_h, temperature=config.crd.temperature)}


# --- The role of the projector ---------------------------------------------------------------------


def init_srd(key, student, teacher, config, num_labels):
    """A linear projector from what the student's head reads to the width of what the teacher's reads."""
    projector = nn.Dense(base.read_by_head(teacher.upper).shape[-1])
    own_key = fold_name(key, 'projector')
    return {'projector': projector.init(own_key, base.read_by_head(student.upper))['params']}


def srd_terms(params, student, teacher, labels, config, key):
    """The projector and LogSum loss of Miles and Mikolajczyk (2024), losses.srd of what the heads read.

    Where the classes are the same the paper also uses the teacher's predictions; that is LD, and left out
    here.
    """
    e_g, e_h = representations(student, teacher)
    projected = nn.Dense(e_h.shape[-1]).apply({'params': params['projector']}, e_g)
    return {'projection': losses.srd(projected, e_h, alpha=config.srd.alpha)}
