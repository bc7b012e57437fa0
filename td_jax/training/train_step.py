"""One training step and the gradients of its terms. No other module differentiates."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from td_jax import randomness
from td_jax.method import objectives, shared
from td_jax.models import base
from td_jax.training import optimizer, probe

# The two groups of trained parameters: the student's, and those of the method's own modules.
STUDENT, COMMUNICATION = 'student', 'communication'
TEACHER = 'teacher'


class Batch(NamedTuple):
    """The inputs of a step: a source's inputs for the student, the labels, and the teacher's activations."""

    student_inputs: dict[str, jax.Array]
    labels: jax.Array  # [labelled], of the first examples of the batch; others have none
    mask: jax.Array  # [batch], 1 for a real example, 0 for padding
    # The teacher's, on the batch; None for a method without a teacher.
    teacher: base.Activations | None
    # The predictions of its probe, [batch, labels]; None without a probe.
    probe_logits: jax.Array | None = None


class TrainState(NamedTuple):
    """Everything that changes while training; the teacher, which is frozen, is not part of it."""

    step: jax.Array  # int32
    params: dict[str, Any]  # {STUDENT: tree, COMMUNICATION: tree}
    opt_state: dict[str, Any]  # one optimizer state per group
    # A td_jax.training.probe on the teacher, which no step changes; None for a run without one.
    probe: dict[str, jax.Array] | None = None
    # {STUDENT or TEACHER: shared.Scales}, which no step changes; None without communication.state_scale.
    scales: dict[str, shared.Scales] | None = None


class Hyperparameters(NamedTuple):
    """The hyperparameters that a compiled step takes as arguments.

    Runs that differ in nothing else share one program, also in JAX_COMPILATION_CACHE_DIR. Whether a
    hyperparameter is 0 is part of the program, because a term with the weight 0 is not computed.
    """

    weights: dict[str, jax.Array]  # of the method's terms
    rates: optimizer.Rates


def read_hyperparameters(config) -> Hyperparameters:
    """The Hyperparameters of a config, as float32 scalars."""
    weights = {name: np.float32(weight) for name, weight in objectives.weights_of(config).items()}
    rates = config.optimizer.learning_rate, config.optimizer.weight_decay
    return Hyperparameters(weights, optimizer.Rates(*map(np.float32, rates)))


# teacher_upper(s) -> e: the teacher's `upper` with its parameters bound.
Upper = Callable[[jax.Array], jax.Array]


class InitFunction(Protocol):
    """Step.init: makes the first TrainState."""

    def __call__(self, key: jax.Array, batch: Batch, start: dict[str, Any] | None = None) -> TrainState:
        """The state for a batch of at least one example; its probe is zeros.

        `start` are parameters of the teacher that the student starts from, or None.
        """


class UpdateFunction(Protocol):
    """Step.update: takes one optimizer step."""

    def __call__(
        self,
        state: TrainState,
        key: jax.Array,
        teacher_upper: Upper | None,
        batch: Batch,
        hyperparameters: Hyperparameters,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """(the next state, {metric: scalar})."""


class SharesFunction(Protocol):
    """Step.shares: measures how much each term moves the student."""

    def __call__(
        self,
        state: TrainState,
        key: jax.Array,
        teacher_upper: Upper | None,
        batch: Batch,
        hyperparameters: Hyperparameters,
    ) -> dict[str, jax.Array]:
        """{term: scalar}, with the task as one of the terms.

        A share is the norm of the gradient of weight times term on the student's parameters, over the sum of
        these norms. It belongs to the update with the same arguments; of several micro batches, to the first.
        A term that a ramp-up stage leaves out has the share 0.
        """


class SignalsFunction(Protocol):
    """Step.signals: computes the states and messages of both models."""

    def __call__(
        self,
        params: dict[str, Any],
        batch: Batch,
        scales: dict[str, shared.Scales] | None = None,
    ) -> dict[str, jax.Array]:
        """{name: [batch, ..., width]}, of the first micro batch and without dropout.

        The names are student_lower, student_upper, teacher_lower and teacher_upper, and student_message and
        teacher_message for a method with messages whose terms read states.
        """


class Step(NamedTuple):
    """A run's functions, pure and for one seed; vmap them for many."""

    init: InitFunction
    update: UpdateFunction
    shares: SharesFunction
    signals: SignalsFunction
    compares_states: bool  # whether a term with a weight reads the states {s; e}


def make_step(
    student: base.Model,
    task: str,
    num_labels: int,
    config,
    copies_head: bool = False,
    teacher_registers: int = 0,
) -> Step:
    """Makes the Step of a run.

    Args:
      student: the model to train.
      task: a name of objectives.TASK_LOSSES.
      num_labels: outputs of the task.
      config: the run's config.
      copies_head: whether a student that starts from its teacher copies its head, too.
      teacher_registers: base.Model.registers of the teacher.
    """
    objective = objectives.objective_of(config)
    registers = student.registers, teacher_registers
    terms_of = _make_terms(student, objective, objectives.TASK_LOSSES[task], config, registers)

    def init(key, batch: Batch, start=None) -> TrainState:
        student_params = student.init(randomness.fold_name(key, STUDENT), batch.student_inputs)
        if start is not None:
            student_params = base.start_from_teacher(start, student_params, copies_head)
        activations = base.activations(student, student_params, batch.student_inputs)
        communication_key = randomness.fold_name(key, COMMUNICATION)
        communication = objective.init(communication_key, activations, batch.teacher, config, num_labels)
        params = {STUDENT: student_params, COMMUNICATION: communication}
        tx, _ = optimizer.make_optimizer(config.optimizer, config.num_steps)
        # Each group has its own: gradients of the method's modules must not scale the student's.
        opt_state = {group: tx.init(tree) for group, tree in params.items()}
        initial_probe = (
            probe.make_zeros(batch.teacher.upper, num_labels) if objectives.has_probe(config) else None
        )
        # Until they are measured.
        one = jnp.ones((), jnp.float32)
        ones = {side: shared.Scales(one, one) for side in (STUDENT, TEACHER)}
        scales = ones if has_scales(config) else None
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, initial_probe, scales)

    def loss_fn(params, *arguments):
        contributions, means = terms_of(params, *arguments)
        loss = functools.reduce(operator.add, contributions.values())
        return loss, {'loss': loss, **means}

    differentiate = jax.value_and_grad(loss_fn, has_aux=True)

    def update(state: TrainState, key, teacher_upper, batch: Batch, hyperparameters: Hyperparameters):
        tx, learning_rate = optimizer.make_optimizer(
            config.optimizer, config.num_steps, hyperparameters.rates
        )
        step_key = jax.random.fold_in(key, state.step)
        share = compute_weight_share(state.step, config)
        metrics, grads = accumulate(
            lambda key, part: differentiate(
                state.params, key, teacher_upper, part, hyperparameters.weights, share, state.scales
            ),
            step_key,
            batch,
            config.micro_batches,
        )
        metrics['gradient_norm'] = optax.tree.norm(grads)
        metrics['learning_rate'] = learning_rate(state.step)
        params, opt_state = {}, {}
        for group, old in state.params.items():
            directions, opt_state[group] = tx.update(grads[group], state.opt_state[group], old)
            updates = jax.tree.map(lambda d: -metrics['learning_rate'] * d, directions)
            params[group] = optax.apply_updates(old, updates)
        if has_ramp_up(config):
            new, old = (params, opt_state), (state.params, state.opt_state)
            params, opt_state = freeze(new, old, find_ramp_up_stage(state.step, config))
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    signals = _make_signals(student, objective, config, registers)
    compares_states = objectives.reads(config, 'states')
    return Step(init, update, _make_shares(terms_of, config), signals, compares_states)


def _make_terms(student, objective, task_loss, config, registers):
    """Makes the function that computes the summands of a step's loss, and the means that it logs."""
    # A method whose weights are all 0 trains the student alone, at the same cost.
    has_terms = bool(objectives.active_terms(config))

    def terms_of(params, key, teacher_upper, batch: Batch, weights, share, scales):
        """-> ({term: its contribution to the loss}, {term: mean over the batch})."""
        student_key, terms_key = (randomness.fold_name(key, name) for name in (STUDENT, COMMUNICATION))
        activations = base.activations(student, params[STUDENT], batch.student_inputs, student_key)

        def mean_of_real(term):
            # Means over real examples are taken here and nowhere else. The task's has labelled ones alone.
            mask = batch.mask[: len(term)]
            return jnp.sum(term * mask) / jnp.maximum(mask.sum(), 1.0)

        terms = {'task': task_loss(activations.logits[: len(batch.labels)], batch.labels)}
        if has_terms:
            uppers = (
                (lambda s, key: student.upper(params[STUDENT], s, key)),
                (lambda s, key: teacher_upper(s)),
            )
            student_participant, teacher_participant = _make_participants(
                (activations, batch.teacher), uppers, registers, scales
            )
            teacher_participant = teacher_participant._replace(probe_logits=batch.probe_logits)
            terms |= objective.terms(
                params[COMMUNICATION],
                student_participant,
                teacher_participant,
                batch.labels,
                config,
                terms_key,
            )
        means = {name: mean_of_real(term) for name, term in terms.items()}
        contributions = {
            name: mean if name == 'task' else share * weights[name] * mean for name, mean in means.items()
        }
        return contributions, means

    return terms_of


def _make_participants(activations, uppers, registers, scales):
    """The Participants of student and teacher, of a pair of each argument but the Scales."""
    participants = map(shared.Participant, activations, uppers, registers)
    if scales is None:
        return list(participants)
    sides = zip((STUDENT, TEACHER), participants, strict=True)
    return [participant._replace(scales=scales[side]) for side, participant in sides]


def _make_shares(terms_of, config):

    def shares(state: TrainState, key, teacher_upper, batch: Batch, hyperparameters: Hyperparameters):
        step_key = jax.random.fold_in(key, state.step)
        part_key, part = take_first_part(step_key, batch, config.micro_batches)
        share = compute_weight_share(state.step, config)

        def compute_contributions(student_params):
            params = {**state.params, STUDENT: student_params}
            contributions, _ = terms_of(
                params, part_key, teacher_upper, part, hyperparameters.weights, share, state.scales
            )
            return contributions

        contributions, pull_back = jax.vjp(compute_contributions, state.params[STUDENT])
        # One term after the other, so that only one gradient is in memory.
        ones = {
            name: jnp.asarray([name == other for other in contributions], x.dtype)
            for name, x in contributions.items()
        }
        norms = jax.lax.map(lambda one: optax.tree.norm(pull_back(one)), ones)
        total = norms.sum()
        return dict(zip(contributions, norms / jnp.where(total > 0, total, 1.0), strict=True))

    return shares


def _make_signals(student, objective, config, registers):
    has_messages = objective.messages and objectives.reads(config, 'states')

    def signals(params, batch: Batch, scales=None):
        _, part = take_first_part(jax.random.key(0), batch, config.micro_batches)
        activations = base.activations(student, params[STUDENT], part.student_inputs)
        arrays = {
            f'{side}_{name}': getattr(of_side, name)
            for side, of_side in (('student', activations), ('teacher', part.teacher))
            for name in ('lower', 'upper')
        }
        if has_messages:
            sides = _make_participants((activations, part.teacher), (None, None), registers, scales)
            messages = objective.messages(params[COMMUNICATION], *sides, config, None)
            arrays |= dict(zip(('student_message', 'teacher_message'), messages, strict=True))
        return arrays

    return signals


def accumulate(differentiate, key, batch: Batch, micro_batches: int):
    """Computes the metrics and the gradient of a batch, part by part.

    Args:
      differentiate: (key, Batch) -> ((loss, metrics), gradient), means over the batch.
      key: for dropout; every part has its own.
      batch: a whole batch.
      micro_batches: number of parts, a divisor of the batch size. A term that relates examples to each other
        relates those of one part. The number of labelled examples is a multiple, too.

    Returns:
      (metrics, gradient), means over the real examples of the batch.
    """
    if micro_batches == 1:
        (_, metrics), gradient = differentiate(key, batch)
        return metrics, gradient
    count = jnp.maximum(batch.mask.sum(), 1.0)
    keys, parts = cut_batch(key, batch, micro_batches)

    def add(total, part_and_key):
        part, part_key = part_and_key
        (_, metrics), gradient = differentiate(part_key, part)
        share = part.mask.sum() / count
        return jax.tree.map(lambda t, x: t + share * x, total, (metrics, gradient)), None

    (_, metrics), gradient = jax.eval_shape(differentiate, keys[0], jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (metrics, gradient))
    total, _ = jax.lax.scan(add, zeros, (parts, keys))
    return total


def cut_batch(key, batch: Batch, micro_batches: int):
    """Cuts a batch into parts: -> (keys [parts], Batch [parts, examples, ...])."""

    def cut(x):
        # A part takes examples from all over the batch, so that each device has equally many of them. The
        # size is written out, because a teacher without a head has logits of width 0.
        return x.reshape(len(x) // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    parts = jax.tree.map(cut, batch)
    return jax.random.split(key, micro_batches), parts


def take_first_part(key, batch: Batch, micro_batches: int):
    """(key, Batch) of the first part that `accumulate` computes."""
    if micro_batches == 1:
        return key, batch
    keys, parts = cut_batch(key, batch, micro_batches)
    return keys[0], jax.tree.map(lambda x: x[0], parts)


def has_scales(config) -> bool:
    """Whether communication divides the parts of states by Scales."""
    return config.communication.state_scale == 'data' and objectives.reads(config, 'states')


def has_ramp_up(config) -> bool:
    """Whether the run first trains the student and the communication modules separately."""
    return config.method == 'td' and any(config.td.ramp_up)


def find_ramp_up_stage(step, config):
    """0: the student alone; 1: the communication modules alone; 2: everything."""
    if not has_ramp_up(config):
        return 2
    student_steps, communication_steps = config.td.ramp_up
    return jnp.where(step < student_steps, 0, jnp.where(step < student_steps + communication_steps, 1, 2))


def compute_weight_share(step, config):
    """The factor on the weights of all terms but the task's in a step, a scalar from 0 to 1.

    It is 0 while the student trains alone. With td.warmup_steps n, it is then 1/n, 2/n, ... 1.
    """
    if config.method != 'td' or not (config.td.ramp_up[0] or config.td.warmup_steps):
        return 1.0
    passed = jnp.asarray(step - config.td.ramp_up[0] + 1, jnp.float32)
    return jnp.clip(passed / max(config.td.warmup_steps, 1), 0.0, 1.0)


def freeze(new, old, stage):
    """Keeps the old values of the group that a ramp-up stage does not train, moments included.

    Args:
      new, old: (params, opt_state), each a dict by group.
      stage: by find_ramp_up_stage.
    """
    frozen = {STUDENT: stage == 1, COMMUNICATION: stage == 0}
    return tuple(
        {
            group: jax.tree.map(lambda n, o, f=frozen[group]: jnp.where(f, o, n), tree, o_groups[group])
            for group, tree in n_groups.items()
        }
        for n_groups, o_groups in zip(new, old, strict=True)
    )
