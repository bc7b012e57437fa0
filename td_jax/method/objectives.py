"""What a student minimises: each method is (init, terms), in one plain table.

    loss = task + sum over terms of config.METHOD.weights[term] * mean over examples of the term

The equations are those of arXiv 2310.03188, sections 3.2 to 3.4. To add a method, write its `terms`
(and `init`, if it learns parameters of its own), add a line to METHODS and its weights to
configs/common.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from td_jax.devices.remat import POLICIES
from td_jax.errors import UserError
from td_jax.method import communication
from td_jax.models import base


class Participant(NamedTuple):
    """A model in a training step, its parameters bound."""

    activations: base.Activations  # on the batch
    upper: Callable[[jax.Array, Any], jax.Array]  # (s, key) -> e


class Objective(NamedTuple):
    """A method.

    init(key, student, teacher, config, num_labels) -> parameters beyond the student's, from the
      Activations of both models on one example
    terms(params, student, teacher, labels, config, key) -> {name: [batch]}, from two Participants;
      labels are [batch]; a key of None leaves out dropout and noise. Only terms whose weight is not 0
      are computed.
    reads: what of the teacher the terms read, {'states', 'logits' or 'bridged_logits': names of the terms};
      {} without a teacher. Logits are bridged by `logits_terms`, where teacher.labels says how; 'logits'
      are the teacher's as they are, which only labels that are the student's allow. Models whose states or
      labels do not fit each other are refused by this.
    """

    init: Callable[..., dict]
    terms: Callable[..., dict[str, jax.Array]]
    reads: dict[str, tuple[str, ...]]


# --- The task itself -------------------------------------------------------------------------------


def squared_error(predictions, labels):
    """(y - label)^2. predictions: [batch, 1], labels: [batch] -> [batch]."""
    if predictions.shape != (*labels.shape, 1):
        raise ValueError(f'Predictions {predictions.shape} do not fit labels {labels.shape}.')
    return jnp.square(predictions[:, 0] - labels)


# name -> f(predictions [batch, outputs], labels [batch]) -> [batch]
TASK_LOSSES = {
    'regression': squared_error,
    'classification': optax.softmax_cross_entropy_with_integer_labels,
}


# --- Terms -----------------------------------------------------------------------------------------


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


def init_logits(key, student, teacher, config, num_labels):
    """Parameters of the head that bridges two label spaces; none where they are shared."""
    if config.teacher.labels == 'probe':
        return {'probe': nn.Dense(num_labels).init(key, base.read_by_head(teacher.upper))['params']}
    if config.teacher.labels == 'auxiliary':
        num_teacher_labels = teacher.logits.shape[-1]
        return {
            'auxiliary': nn.Dense(num_teacher_labels).init(key, base.read_by_head(student.upper))['params']
        }
    return {}


def logits_terms(params, student, teacher, labels, config):
    """L_logit = d(y_g, y_h), and what its bridge learns from. -> {name: [batch]}."""
    student_logits, teacher_logits = student.activations.logits, teacher.activations.logits
    terms = {}
    if config.teacher.labels == 'probe':
        probe = nn.Dense(params['probe']['bias'].shape[0])
        read = base.read_by_head(teacher.activations.upper).astype(jnp.float32)
        teacher_logits = probe.apply({'params': params['probe']}, read)
        terms['probe'] = optax.softmax_cross_entropy_with_integer_labels(teacher_logits, labels)
        # The student imitates the probe; the probe learns from the labels alone.
        teacher_logits = jax.lax.stop_gradient(teacher_logits)
    elif config.teacher.labels == 'auxiliary':
        head = nn.Dense(teacher_logits.shape[-1])
        read = base.read_by_head(student.activations.upper).astype(jnp.float32)
        student_logits = head.apply({'params': params['auxiliary']}, read)
    terms['logits'] = logits_distance(student_logits, teacher_logits, config)
    return terms


def encoder_of(config):
    """An Encoder by config.communication."""
    knobs = config.communication
    return communication.Encoder(knobs.hidden, knobs.message, knobs.dropout, config.compute_dtype)


def decoder_of(config, activations):
    """A Decoder by config.communication into the state space of a model with these Activations."""
    knobs = config.communication
    widths = activations.lower.shape[-1], activations.upper.shape[-1]
    return communication.Decoder(knobs.hidden, *widths, knobs.dropout, config.compute_dtype)


def bind(module, params):
    """A Linen communication module and its parameters -> f(*inputs, key)."""

    def run(*inputs_and_key):
        *inputs, key = inputs_and_key
        rngs = {} if key is None else {'dropout': key}
        return module.apply({'params': params}, *inputs, deterministic=key is None, rngs=rngs)

    return run


def split(key, count):
    """`count` keys of one, or as many None of None."""
    return (None,) * count if key is None else jax.random.split(key, count)


# --- Methods ---------------------------------------------------------------------------------------


def no_parameters(key, student, teacher, config, num_labels):
    """Init of a method that learns nothing beside the student."""
    return {}


def supervised_terms(params, student, teacher, labels, config, key):
    """The student alone: the task loss and nothing else."""
    return {}


def ld_terms(params, student, teacher, labels, config, key):
    """Label distillation (Hinton et al. 2015): d(y_g, y_h)."""
    return logits_terms(params, student, teacher, labels, config)


def init_fd(key, student, teacher, config, num_labels):
    """Encoders of both models."""
    keys = jax.random.split(key)
    encoder = encoder_of(config)
    return {
        'student_encoder': encoder.init(keys[0], student.lower, student.upper)['params'],
        'teacher_encoder': encoder.init(keys[1], teacher.lower, teacher.upper)['params'],
    }


def fd_terms(params, student, teacher, labels, config, key):
    """Feature distillation (Heo et al. 2019): d(E_g(s_g, e_g), E_h(s_h, e_h))."""
    student_key, teacher_key = split(key, 2)
    encoder = encoder_of(config)
    s, e, _ = student.activations
    student_message = bind(encoder, params['student_encoder'])(s, e, student_key)
    s, e, _ = teacher.activations
    teacher_message = bind(encoder, params['teacher_encoder'])(s, e, teacher_key)
    return {'feature': communication.distance((student_message,), (teacher_message,))}


def init_fitnet(key, student, teacher, config, num_labels):
    """The student's decoder, which reads the teacher's states as they are."""
    decoder = decoder_of(config, student)
    return {'student_decoder': decoder.init(key, teacher.lower, teacher.upper)['params']}


def fitnet_terms(params, student, teacher, labels, config, key):
    """FitNet (Romero et al. 2014): d({s_g; e_g}, D_g({s_h; e_h}))."""
    s, e, _ = student.activations
    decode = bind(decoder_of(config, student.activations), params['student_decoder'])
    return {'state': communication.distance((s, e), decode(*teacher.activations[:2], key))}


def init_hybrid(key, student, teacher, config, num_labels):
    """What both LD and FD learn."""
    logits_key, fd_key = jax.random.split(key)
    return {
        **init_logits(logits_key, student, teacher, config, num_labels),
        **init_fd(fd_key, student, teacher, config, num_labels),
    }


def hybrid_terms(params, student, teacher, labels, config, key):
    """Hybrid (Zhu and Wang 2021): LD and FD together."""
    weights = config.hybrid.weights
    terms = {}
    if weights.logits:
        terms |= ld_terms(params, student, teacher, labels, config, key)
    if weights.feature:
        terms |= fd_terms(params, student, teacher, labels, config, key)
    return terms


def init_td(key, student, teacher, config, num_labels):
    """Encoder and decoder of both models, and the bridge of an optional logits term."""
    keys = jax.random.split(key, 4)
    message = jnp.zeros((*student.lower.shape[:-1], config.communication.message), jnp.float32)
    params = {
        **init_fd(keys[0], student, teacher, config, num_labels),
        'student_decoder': decoder_of(config, student).init(keys[1], message)['params'],
        'teacher_decoder': decoder_of(config, teacher).init(keys[2], message)['params'],
    }
    if config.td.weights.logits:
        params |= init_logits(keys[3], student, teacher, config, num_labels)
    return params


def td_terms(params, student, teacher, labels, config, key):
    """Talking-model Distillation: L_interact, L_MC, L_SC, and optionally LD's term.

    L_MC = d(m_g, m_h)
    L_SC = d({s_g; e_g}, D_g(m_h)) + d({s_h; e_h}, D_h(m_g))

    D_h(m_g) serves both L_SC and the first round of the conversation.
    """
    weights, encoder = config.td.weights, encoder_of(config)
    sides = {
        name: communication.Speaker(
            participant.upper,
            bind(encoder, params[f'{name}_encoder']),
            bind(decoder_of(config, participant.activations), params[f'{name}_decoder']),
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
        terms['message'] = communication.distance((student_message,), (teacher_message,))
    if weights.state:
        decoded_by_student = sides['student'].decode(teacher_message, keys[3])
        terms['state'] = communication.distance(student_state, decoded_by_student) + communication.distance(
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
            noise_std=config.td.noise_std,
            remat_policy=POLICIES[config.td.remat_policy],
            key=keys[4],
        )
    if weights.logits:
        terms |= logits_terms(params, student, teacher, labels, config)
    return terms


METHODS = {
    'supervised': Objective(no_parameters, supervised_terms, {}),
    'ld': Objective(init_logits, ld_terms, {'bridged_logits': ('logits',)}),
    'fd': Objective(init_fd, fd_terms, {'states': ('feature',)}),
    'fitnet': Objective(init_fitnet, fitnet_terms, {'states': ('state',)}),
    'hybrid': Objective(init_hybrid, hybrid_terms, {'states': ('feature',), 'bridged_logits': ('logits',)}),
    'td': Objective(
        init_td, td_terms, {'states': ('interact', 'message', 'state'), 'bridged_logits': ('logits',)}
    ),
}


def weights_of(config) -> dict[str, float]:
    """{term: weight} of the configured method; the probe's own loss always counts once."""
    if config.method == 'supervised':
        return {}
    return {**config[config.method].weights.to_dict(), 'probe': 1.0}


def reads_teacher(config) -> bool:
    """Whether the configured method has a teacher at all."""
    return bool(METHODS[config.method].reads)


def reads(config, part: str) -> bool:
    """Whether a term of the configured method with a weight reads a part of the teacher."""
    return bool(_weighted(config, part))


def _weighted(config, part):
    """The terms of the configured method with a weight that read a part of the teacher."""
    weights = weights_of(config)
    return [term for term in METHODS[config.method].reads.get(part, ()) if weights[term]]


def check_labels(config, student_labels, teacher_labels):
    """Refuses a logits term between models that predict different things.

    Args:
      student_labels, teacher_labels: names of what each output predicts.

    Raises:
      UserError: names both counts, the first labels and the modes that bridge the two; or a teacher without
        a head, and what does without.
    """
    plain, bridged = _weighted(config, 'logits'), _weighted(config, 'bridged_logits')
    probed = bridged and config.teacher.labels == 'probe'
    if not plain and (probed or not bridged):
        return
    if not teacher_labels:
        weights = ', '.join(f'{config.method}.weights.{term}' for term in (*plain, *bridged))
        others = ' or '.join(name for name, method in METHODS.items() if method.reads.keys() == {'states'})
        probe = '' if plain else 'teacher.labels to probe, or '
        raise UserError(
            f'method {config.method} compares predictions, but the teacher has no head to make any: set '
            f'{probe}{weights} to 0, or compare states with method {others}.'
        )
    if tuple(student_labels) == tuple(teacher_labels) or (not plain and config.teacher.labels != 'shared'):
        return
    cure = 'set teacher.labels to probe or auxiliary'
    if plain:
        cure = (
            f'the term {", ".join(plain)} reads them as they are, whatever teacher.labels says; give both '
            'models the same labels, or let the term compare what objectives.logits_terms bridges'
        )
    raise UserError(
        f'method {config.method} compares predictions, but the teacher predicts {len(teacher_labels)} labels '
        f'({preview(teacher_labels)}) and the student {len(student_labels)} ({preview(student_labels)}): '
        f'{cure}.'
    )


def preview(labels) -> str:
    """The first few of some labels, for a person."""
    shown = ', '.join(map(str, labels[:3]))
    return f'{shown}, ...' if len(labels) > 3 else shown
