"""Methods that compare predictions, and the bridge between models that predict different labels."""

import flax.linen as nn
import jax.numpy as jnp

from td_jax import losses
from td_jax.models import base
from td_jax.randomness import fold_name

# --- The bridge ------------------------------------------------------------------------------------


def init_bridge(key, student, teacher, config, num_labels):
    """Parameters of the student's auxiliary head for its teacher's labels; none without such a head."""
    if config.teacher.labels == 'auxiliary':
        head, own_key = nn.Dense(teacher.logits.shape[-1]), fold_name(key, 'auxiliary')
        return {'auxiliary': head.init(own_key, base.read_by_head(student.upper))['params']}
    return {}


def bridge_logits(params, student, teacher, config):
    """Comparable predictions of both models, by teacher.labels.

    Args:
      params: the parameters of the method, with those of `init_bridge`.
      student, teacher: Participants.
      config: of the run.

    Returns:
      (the student's, the teacher's), [batch, outputs] each
    """
    student_logits, teacher_logits = student.activations.logits, teacher.activations.logits
    if config.teacher.labels == 'probe':
        return student_logits, teacher.probe_logits
    if config.teacher.labels == 'auxiliary':
        head = nn.Dense(teacher_logits.shape[-1])
        features = base.read_by_head(student.activations.upper).astype(jnp.float32)
        student_logits = head.apply({'params': params['auxiliary']}, features)
    return student_logits, teacher_logits


# --- Label distillation ----------------------------------------------------------------------------


def compare_logits(student_logits, teacher_logits, config):
    """The distance d(y_g, y_h) by config.logits: [batch, outputs] twice -> [batch]."""
    if config.logits.distance == 'kl':
        return losses.label_kl(student_logits, teacher_logits, temperature=config.logits.temperature)
    return losses.label_l2(student_logits, teacher_logits)


def logits_terms(params, student, teacher, labels, config):
    """L_logit = d(y_g, y_h). -> {'logits': [batch]}."""
    return {'logits': compare_logits(*bridge_logits(params, student, teacher, config), config)}


def ld_terms(params, student, teacher, labels, config, key):
    """Label distillation (Hinton et al. 2015): losses.label_l2 or losses.label_kl."""
    return logits_terms(params, student, teacher, labels, config)


# --- Decoupled knowledge distillation --------------------------------------------------------------


def dkd_terms(params, student, teacher, labels, config, key):
    """Decoupled knowledge distillation (Zhao et al. 2022), losses.dkd; alpha and beta are the terms' weights.

    The label must be one of the compared classes. An auxiliary head predicts the teacher's own labels, which
    no example has, so it cannot be used here. For an example without a label, the class that the teacher
    finds most probable takes its place.
    """
    student_logits, teacher_logits = bridge_logits(params, student, teacher, config)
    if len(labels) < len(teacher_logits):
        predicted = jnp.argmax(teacher_logits[len(labels) :], axis=-1)
        labels = jnp.concatenate([labels, predicted.astype(labels.dtype)])
    temperature, weights = config.dkd.temperature, config.dkd.weights
    target, others = losses.dkd(student_logits, teacher_logits, labels, temperature=temperature)
    terms = {'target': target, 'others': others}
    return {name: term for name, term in terms.items() if weights[name]}


# --- Distillation from a stronger teacher ----------------------------------------------------------


def dist_terms(params, student, teacher, labels, config, key):
    """DIST (Huang et al. 2022), losses.dist; beta and gamma are the terms' weights."""
    student_logits, teacher_logits = bridge_logits(params, student, teacher, config)
    inter, intra = losses.dist(student_logits, teacher_logits, temperature=config.dist.temperature)
    terms = {'inter': inter, 'intra': intra}
    return {name: term for name, term in terms.items() if config.dist.weights[name]}
