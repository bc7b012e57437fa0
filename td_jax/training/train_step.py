"""One training step, and what its terms have to do with it. The only place that differentiates."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from td_jax import randomness
from td_jax.method import objectives, shared
from td_jax.models import base
from td_jax.training import optimizer, probe

# The two groups of trained parameters: the student, and what a method learns beside it.
STUDENT, COMMUNICATION = 'student', 'communication'


class Batch(NamedTuple):
    """What a step reads: a source's inputs for each model, and the labels."""

    student_inputs: dict[str, jax.Array]
    labels: jax.Array  # [batch]
    mask: jax.Array  # [batch], 1 for a real example, 0 for padding
    # The teacher's Activations on the batch, or None where the method has no teacher.
    teacher: base.Activations | None
    # What its probe says, [batch, labels], or None where there is none.
    probe_logits: jax.Array | None = None


class TrainState(NamedTuple):
    """Everything that changes while training, and nothing that does not: the teacher is elsewhere."""

    step: jax.Array  # int32
    params: dict[str, Any]  # {STUDENT: tree, COMMUNICATION: tree}
    opt_state: dict[str, Any]  # one optimizer state a group
    # Of the teacher, by td_jax.training.probe, which no step changes; None where a run has none.
    probe: dict[str, jax.Array] | None = None


class Numbers(NamedTuple):
    """The numbers of a config that a compiled step is given as arguments.

    Runs that differ in nothing else have the same program, which JAX_COMPILATION_CACHE_DIR then keeps for all
    of them. Whether a number is 0 belongs to the program: what a 0 switches off is not computed.
    """

    weights: dict[str, jax.Array]  # of the method's terms
    rates: optimizer.Rates


def numbers_of(config) -> Numbers:
    """The numbers of a config, float32 scalars."""
    weights = {name: np.float32(weight) for name, weight in objectives.weights_of(config).items()}
    rates = config.optimizer.learning_rate, config.optimizer.weight_decay
    return Numbers(weights, optimizer.Rates(*map(np.float32, rates)))


class Step(NamedTuple):
    """A run's functions, pure and for one seed; vmap them for many.

    init(key, Batch, start) -> TrainState, from a batch of at least one example; where `start` is not None,
      the student starts from these parameters of its teacher. A probe is zeros.
    update(state, key, teacher_upper, Batch, Numbers) -> (TrainState, {metric: scalar})
    shares(state, key, teacher_upper, Batch, Numbers) -> {term: scalar}, the task among them: the norm of the
      gradient of weight times term on the student's parameters, over the sum of all these norms. They are
      those of an update with the same arguments, of several micro batches in the first. A term that a ramp-up
      stage leaves out has 0.
    signals(params, Batch) -> {name: [batch, ..., width]}, of the first micro batch and without dropout: the
      states of both models (student_lower, student_upper, teacher_lower, teacher_upper), and where a method
      that speaks has a term on states, student_message and teacher_message
    """

    init: Any
    update: Any
    shares: Any
    signals: Any


def make_step(
    student: base.Model,
    task: str,
    num_labels: int,
    config,
    copies_head: bool = False,
    teacher_registers: int = 0,
) -> Step:
    """Makes the step of a run.

    Args:
      student: the model that is trained.
      task: a name of objectives.TASK_LOSSES.
      num_labels: outputs of the task.
      config: the run's config.
      copies_head: whether a student that starts from its teacher takes its head, too: they predict the same.
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
        # Each group by itself: what is learned beside the student never scales the student's gradient.
        opt_state = {group: tx.init(tree) for group, tree in params.items()}
        of_teacher = probe.shaped(batch.teacher.upper, num_labels) if objectives.has_probe(config) else None
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, of_teacher)

    def loss_fn(params, *arguments):
        added, means = terms_of(params, *arguments)
        loss = functools.reduce(operator.add, added.values())
        return loss, {'loss': loss, **means}

    differentiate = jax.value_and_grad(loss_fn, has_aux=True)

    def update(state: TrainState, key, teacher_upper, batch: Batch, numbers: Numbers):
        tx, learning_rate = optimizer.make_optimizer(config.optimizer, config.num_steps, numbers.rates)
        step_key = jax.random.fold_in(key, state.step)
        share = share_of_weights(state.step, config)
        metrics, grads = accumulated(
            lambda key, part: differentiate(state.params, key, teacher_upper, part, numbers.weights, share),
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
            params, opt_state = freeze(new, old, ramp_up_stage(state.step, config))
        return TrainState(state.step + 1, params, opt_state, state.probe), metrics

    signals = _make_signals(student, objective, config, registers)
    return Step(init, update, _make_shares(terms_of, config), signals)


def _make_terms(student, objective, task_loss, config, registers):
    """The function that gives what a step's loss is the sum of, and the means it logs."""
    # A method whose weights are all 0 is the student from scratch, and costs as much.
    is_taught = bool(objectives.active_terms(config))

    def terms_of(params, key, teacher_upper, batch: Batch, weights, share):
        """-> ({term: what it adds to the loss}, {term: mean over the batch})."""
        student_key, terms_key = (randomness.fold_name(key, name) for name in (STUDENT, COMMUNICATION))
        activations = base.activations(student, params[STUDENT], batch.student_inputs, student_key)
        terms = {'task': task_loss(activations.logits, batch.labels)}
        if is_taught:
            uppers = (
                (lambda s, key: student.upper(params[STUDENT], s, key)),
                (lambda s, key: teacher_upper(s)),
            )
            speaking, listening = map(shared.Participant, (activations, batch.teacher), uppers, registers)
            listening = listening._replace(probe_logits=batch.probe_logits)
            terms |= objective.terms(
                params[COMMUNICATION], speaking, listening, batch.labels, config, terms_key
            )
        # The mean over real examples is taken here and nowhere else.
        count = jnp.maximum(batch.mask.sum(), 1.0)
        means = {name: jnp.sum(term * batch.mask) / count for name, term in terms.items()}
        added = {
            name: mean if name == 'task' else share * weights[name] * mean for name, mean in means.items()
        }
        return added, means

    return terms_of


def _make_shares(terms_of, config):
    """Step.shares, of what `_make_terms` makes."""

    def shares(state: TrainState, key, teacher_upper, batch: Batch, numbers: Numbers):
        step_key = jax.random.fold_in(key, state.step)
        part_key, part = first_part(step_key, batch, config.micro_batches)
        share = share_of_weights(state.step, config)

        def added_by(student_params):
            params = {**state.params, STUDENT: student_params}
            added, _ = terms_of(params, part_key, teacher_upper, part, numbers.weights, share)
            return added

        added, pull_back = jax.vjp(added_by, state.params[STUDENT])
        # One term after the other, so that there is one gradient at a time.
        ones = {name: jnp.asarray([name == other for other in added], x.dtype) for name, x in added.items()}
        norms = jax.lax.map(lambda one: optax.tree.norm(pull_back(one)), ones)
        total = norms.sum()
        return dict(zip(added, norms / jnp.where(total > 0, total, 1.0), strict=True))

    return shares


def _make_signals(student, objective, config, registers):
    """Step.signals."""
    speaks = objective.messages and objectives.reads(config, 'states')

    def signals(params, batch: Batch):
        _, part = first_part(jax.random.key(0), batch, config.micro_batches)
        activations = base.activations(student, params[STUDENT], part.student_inputs)
        found = {
            f'{side}_{name}': getattr(of_side, name)
            for side, of_side in (('student', activations), ('teacher', part.teacher))
            for name in ('lower', 'upper')
        }
        if speaks:
            sides = map(shared.Participant, (activations, part.teacher), (None, None), registers)
            messages = objective.messages(params[COMMUNICATION], *sides, config, None)
            found |= dict(zip(('student_message', 'teacher_message'), messages, strict=True))
        return found

    return signals


def accumulated(differentiate, key, batch: Batch, micro_batches: int):
    """Metrics and gradient of a batch, computed part by part.

    Args:
      differentiate: (key, Batch) -> ((loss, metrics), gradient), means over the batch.
      key: for dropout; every part has its own.
      batch: a whole batch.
      micro_batches: number of parts, which divides the batch. A term that relates examples to each other
        relates those of a part.

    Returns:
      (metrics, gradient), means over the real examples of the batch.
    """
    if micro_batches == 1:
        (_, metrics), gradient = differentiate(key, batch)
        return metrics, gradient
    count = jnp.maximum(batch.mask.sum(), 1.0)
    keys, parts = cut(key, batch, micro_batches)

    def add(total, part_and_key):
        part, part_key = part_and_key
        (_, metrics), gradient = differentiate(part_key, part)
        share = part.mask.sum() / count
        return jax.tree.map(lambda t, x: t + share * x, total, (metrics, gradient)), None

    (_, metrics), gradient = jax.eval_shape(differentiate, keys[0], jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (metrics, gradient))
    total, _ = jax.lax.scan(add, zeros, (parts, keys))
    return total


def cut(key, batch: Batch, micro_batches: int):
    """Cuts a batch into parts: -> (their keys [parts], Batch [parts, examples, ...])."""
    # Every part takes examples from all over the batch, so that each device has as many of it.
    parts = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)
    return jax.random.split(key, micro_batches), parts


def first_part(key, batch: Batch, micro_batches: int):
    """(key, Batch) of the first of the parts that `accumulated` computes."""
    if micro_batches == 1:
        return key, batch
    keys, parts = cut(key, batch, micro_batches)
    return keys[0], jax.tree.map(lambda x: x[0], parts)


def has_ramp_up(config) -> bool:
    """Whether the run trains the student and the communication modules apart at first."""
    return config.method == 'td' and any(config.td.ramp_up)


def ramp_up_stage(step, config):
    """0: the student alone; 1: the communication modules alone; 2: everything."""
    if not has_ramp_up(config):
        return 2
    student_steps, communication_steps = config.td.ramp_up
    return jnp.where(step < student_steps, 0, jnp.where(step < student_steps + communication_steps, 1, 2))


def share_of_weights(step, config):
    """The share of its weight that each term beside the task's has in a step, a scalar from 0 to 1.

    While the student trains alone, nothing but the task counts; with td.warmup_steps n, the share is then
    1/n, 2/n, ... 1.
    """
    if config.method != 'td' or not (config.td.ramp_up[0] or config.td.warmup_steps):
        return 1.0
    passed = jnp.asarray(step - config.td.ramp_up[0] + 1, jnp.float32)
    return jnp.clip(passed / max(config.td.warmup_steps, 1), 0.0, 1.0)


def freeze(new, old, stage):
    """Keeps the old values of the group that a ramp-up stage does not train, moments included.

    Args:
      new, old: (params, opt_state), each a dict by group.
      stage: what ramp_up_stage gives.
    """
    frozen = {STUDENT: stage == 1, COMMUNICATION: stage == 0}
    return tuple(
        {
            group: jax.tree.map(lambda n, o, f=frozen[group]: jnp.where(f, o, n), tree, o_groups[group])
            for group, tree in n_groups.items()
        }
        for n_groups, o_groups in zip(new, old, strict=True)
    )
