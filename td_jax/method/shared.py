"""What the methods are made of: their type, the models in a step, and modules bound to their parameters."""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from td_jax.method import communication, grids
from td_jax.models import base

TASKS = ('regression', 'classification')
BRIDGES = ('shared', 'probe', 'auxiliary')


class Participant(NamedTuple):
    """A model in a training step, its parameters bound."""

    activations: base.Activations  # on the batch
    upper: Callable[[jax.Array, Any], jax.Array]  # (s, key) -> e
    registers: int = 0  # of its tokens, base.Model.registers
    probed: jax.Array | None = None  # of a teacher, what its probe says, [batch, the student's labels]


class Objective(NamedTuple):
    """A method.

    init(key, student, teacher, config, num_labels) -> parameters beyond the student's, from the
      Activations of both models on one example
    terms(params, student, teacher, labels, config, key) -> {name: [batch]}, from two Participants;
      labels are [batch]; a key of None leaves out dropout and noise. Only terms whose weight is not 0
      are computed. A term that relates examples to each other does so among those it is given, of which
      all are real: in training no batch is padded. What it says of the batch as a whole, it says of every
      example alike.
    reads: what of the teacher the terms read, {part: names of the terms}; {} without a teacher. The parts:
      'states', lower and higher, of all tokens; 'representations', what the head reads of the higher state;
      'logits', as they are, which only labels that are the student's allow; and 'bridged_logits', where
      teacher.labels says how (td_jax.method.logits). Models whose states or labels do not fit each other are
      refused by this.
    tasks: what it can be used for, of TASKS.
    bridges: what teacher.labels may be, of BRIDGES.
    smallest_batch: how many examples its terms need at once, at the least.
    fewest_classes: {term: how many classes it takes to say anything}; with fewer it is constant, whatever its
      weight.
    messages(params, student, teacher, config, key) -> (the student's message, the teacher's), [batch, ...,
      width] each, of what terms on 'states' compare; None where nobody speaks.
    """

    init: Callable[..., dict]
    terms: Callable[..., dict[str, jax.Array]]
    reads: dict[str, tuple[str, ...]]
    tasks: tuple[str, ...] = TASKS
    bridges: tuple[str, ...] = BRIDGES
    smallest_batch: int = 1
    fewest_classes: Mapping[str, int] = types.MappingProxyType({})
    messages: Callable[..., tuple[jax.Array, jax.Array]] | None = None


def no_parameters(key, student, teacher, config, num_labels):
    """Init of a method that learns nothing beside the student."""
    return {}


def encoder_of(config):
    """An Encoder by config.communication."""
    knobs = config.communication
    return communication.Encoder(knobs.hidden, knobs.message, knobs.dropout, config.compute_dtype)


def decoder_of(config, activations):
    """A Decoder by config.communication into the state space of a model with these Activations."""
    knobs = config.communication
    widths = activations.lower.shape[-1], activations.upper.shape[-1]
    return communication.Decoder(knobs.hidden, *widths, knobs.dropout, config.compute_dtype)


def layouts_of(participant):
    """How the lower and the higher state of a Participant are laid out."""
    s, e, _ = participant.activations
    return tuple(grids.layout_of(state, participant.registers) for state in (s, e))


def layout_of_message(student, teacher, config):
    """How the messages of two Participants are laid out, by config.communication.grid."""
    return grids.layout_of_message(layouts_of(student), layouts_of(teacher), config.communication.grid)


def laid_out(participant, s, e, layout):
    """States of a Participant on the grid of a message."""
    lower, upper = layouts_of(participant)
    return grids.fit(s, lower, layout), grids.fit(e, upper, layout)


def encode_with(params, participant, layout, config):
    """E of a Participant: (s, e, key) -> a message with a layout."""
    run = bind(encoder_of(config), params)

    def encode(s, e, key):
        return run(*laid_out(participant, s, e, layout), key)

    return encode


def decode_with(params, participant, layout, config):
    """D of a Participant: (a message with a layout, in one array or parts, and a key) -> (s', e')."""
    run = bind(decoder_of(config, participant.activations), params)
    lower, upper = layouts_of(participant)

    def decode(*message_and_key):
        s, e = run(*message_and_key)
        return grids.fit(s, layout, lower), grids.fit(e, layout, upper)

    return decode


def one_cell(state):
    """A state of one example and one cell, [1, width]: all that the shapes of parameters depend on."""
    return state.reshape(-1, state.shape[-1])[:1]


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
