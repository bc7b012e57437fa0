"""The parts of a method: its type, the models in a step, and modules bound to their parameters."""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_collections

from td_jax.method import communication, grids
from td_jax.models import base

TASKS = ('regression', 'classification')
BRIDGES = ('shared', 'probe', 'auxiliary')


class Scales(NamedTuple):
    """What the parts of a model's state are divided by in communication: float32 scalars."""

    lower: jax.Array
    upper: jax.Array


class Participant(NamedTuple):
    """A model in a training step, its parameters bound."""

    activations: base.Activations  # on the batch
    upper: Callable[[jax.Array, Any], jax.Array]  # (s, key) -> e
    registers: int = 0  # among its tokens, base.Model.registers
    probe_logits: jax.Array | None = None  # a teacher's probe: [batch, the student's labels]
    scales: Scales | None = None  # by communication.state_scale; None leaves states as they are


class InitFunction(Protocol):
    """Objective.init: makes the parameters that a method learns in addition to the student's."""

    def __call__(
        self,
        key: jax.Array,
        student: base.Activations,
        teacher: base.Activations,
        config: ml_collections.ConfigDict,
        num_labels: int,
    ) -> dict[str, Any]:
        """Parameters for models with these Activations, of at least one example."""


class TermsFunction(Protocol):
    """Objective.terms: computes what a method adds to the task's loss."""

    def __call__(
        self,
        params: dict[str, Any],
        student: Participant,
        teacher: Participant,
        labels: jax.Array,
        config: ml_collections.ConfigDict,
        key: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """{name of the term: [batch]}.

        Labels are those of the first examples of the batch, [labelled]; the others have none
        (dataset.unlabelled). A key of None means no dropout and noise.
        """


class MessagesFunction(Protocol):
    """Objective.messages: computes the messages that the terms on 'states' compare."""

    def __call__(
        self,
        params: dict[str, Any],
        student: Participant,
        teacher: Participant,
        config: ml_collections.ConfigDict,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """(the student's message, the teacher's), [batch, ..., width] each."""


class Objective(NamedTuple):
    """A method: functions of its parameters and terms, and what they need.

    init: makes the parameters beyond the student's.
    terms: computes {name: [batch]}, only terms whose weight is not 0. A term that relates examples to each
      other relates all that it is given; in training no batch is padded. A term of the whole batch has the
      same value for every example.
    reads: what the terms read of the teacher, {part: names of the terms}; {} without a teacher. By this,
      models whose states or labels do not fit each other are refused. The parts are 'states', lower and
      higher, of all tokens; 'representations', what the head reads of the higher state; 'logits', the
      teacher's own, for which both models must predict the same labels; and 'bridged_logits', which
      teacher.labels makes comparable (td_jax.method.logits).
    tasks: the tasks it can be used for, among TASKS.
    bridges: the values of teacher.labels it allows, among BRIDGES.
    smallest_batch: the number of examples its terms need.
    fewest_classes: {term: the number of classes it needs}; with fewer the term is constant.
    messages: computes the messages that terms on 'states' compare; None for a method without messages.
    """

    init: InitFunction
    terms: TermsFunction
    reads: dict[str, tuple[str, ...]]
    tasks: tuple[str, ...] = TASKS
    bridges: tuple[str, ...] = BRIDGES
    smallest_batch: int = 1
    fewest_classes: Mapping[str, int] = types.MappingProxyType({})
    messages: MessagesFunction | None = None


def no_parameters(key, student, teacher, config, num_labels):
    """Objective.init of a method that learns nothing besides the student."""
    return {}


def make_encoder(config):
    """An Encoder by config.communication."""
    options = config.communication
    return communication.Encoder(options.hidden, options.message, options.dropout, config.compute_dtype)


def make_decoder(config, activations):
    """A Decoder by config.communication into the state space of a model with these Activations."""
    options = config.communication
    widths = activations.lower.shape[-1], activations.upper.shape[-1]
    return communication.Decoder(options.hidden, *widths, options.dropout, config.compute_dtype)


def find_layouts(participant):
    """The Layouts of the lower and the higher state of a Participant."""
    s, e, _ = participant.activations
    return tuple(grids.layout_of(state, participant.registers) for state in (s, e))


def find_message_layout(student, teacher, config):
    """The Layout of the messages of two Participants, by config.communication.grid."""
    return grids.layout_of_message(find_layouts(student), find_layouts(teacher), config.communication.grid)


def align_to_grid(participant, s, e, layout):
    """States (s, e) of a Participant, resized to the grid of a message."""
    lower, upper = find_layouts(participant)
    return grids.change_layout(s, lower, layout), grids.change_layout(e, upper, layout)


def read_state(participant, s, e, layout):
    """States (s, e) of a Participant as communication modules read them: on the grid, over its Scales."""
    state = align_to_grid(participant, s, e, layout)
    if participant.scales is None:
        return state
    return tuple((x / scale).astype(x.dtype) for x, scale in zip(state, participant.scales, strict=True))


def part_weights(participant):
    """The part_weights of losses.distance for states of a Participant: 1 / scale^2, None without Scales."""
    return participant.scales and tuple(1 / jnp.square(scale) for scale in participant.scales)


def bind_encoder(params, participant, layout, config):
    """The encoder E of a Participant: (s, e, key) -> a message of a Layout."""
    run = bind(make_encoder(config), params)

    def encode(s, e, key):
        return run(*read_state(participant, s, e, layout), key)

    return encode


def bind_decoder(params, participant, layout, config):
    """The decoder D of a Participant: (*parts of a message of a Layout, key) -> (s', e')."""
    run = bind(make_decoder(config, participant.activations), params)
    lower, upper = find_layouts(participant)

    def decode(*message_and_key):
        state = run(*message_and_key)
        if participant.scales is not None:
            scaled = zip(state, participant.scales, strict=True)
            state = tuple((x * scale).astype(x.dtype) for x, scale in scaled)
        s, e = state
        return grids.change_layout(s, layout, lower), grids.change_layout(e, layout, upper)

    return decode


def take_one_cell(state):
    """A state of one example and one cell, [1, width]: the shapes of parameters depend on nothing else."""
    return state.reshape(-1, state.shape[-1])[:1]


def bind(module, params):
    """A Linen communication module and its parameters -> f(*inputs, key)."""

    def run(*inputs_and_key):
        *inputs, key = inputs_and_key
        rngs = {} if key is None else {'dropout': key}
        return module.apply({'params': params}, *inputs, deterministic=key is None, rngs=rngs)

    return run


def split_key(key, count):
    """`count` keys from one, or `count` times None from None."""
    return (None,) * count if key is None else jax.random.split(key, count)
