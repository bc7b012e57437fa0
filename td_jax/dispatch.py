"""Many steps of many seeds in one dispatch, on data that lives on the device.

Seeds run side by side under vmap; steps run in a while loop whose bounds are arguments, so that one
compiled program serves any number of steps and a run that was cut in other places computes the same
bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from td_jax import train_step
from td_jax.data import base as data
from td_jax.models import base


class Teacher(NamedTuple):
    """A frozen model and how the examples of its student are shown to it."""

    model: base.Model
    source: data.Source  # its `inputs` and `tables` read a student's examples
    params: Any


class Constants(NamedTuple):
    """Everything a step reads that training does not change, on the device."""

    train: dict[str, jax.Array]
    tables: Any
    teacher_tables: Any
    teacher_params: Any
    teacher_states: base.Activations | None  # of every training example, where they are computed once


class Dispatch(NamedTuple):
    """A run's compiled functions.

    constants: what they all read
    init(constants, keys [seeds]) -> TrainState of all seeds, stacked
    order(keys, step) -> [seeds, examples], the order of the examples in the epoch of a step
    run(state, order, constants, keys, stop)
      -> (state, order, {metric: [seeds]} summed over the steps, whether all were finite);
      trains from state.step until `stop`, or until a loss is not finite. `order` is that of state.step, and
      of its end again: sorting it anew for every dispatch takes as long as many steps. `state` and `order`
      are donated.
    """

    constants: Constants
    init: Any
    order: Any
    run: Any


def seed_keys(config) -> jax.Array:
    """One key a seed, [num_seeds]."""
    return jax.vmap(jax.random.key)(config.seed + jnp.arange(config.num_seeds))


def build(step: train_step.Step, source: data.Source, teacher: Teacher | None, config) -> Dispatch:
    """Compiles nothing yet; makes the functions of a run.

    Args:
      step: the functions of one seed.
      source: the student's data.
      teacher: None for a method without one.
      config: the run's config.
    """
    num_examples = len(source.train['labels'])
    steps_per_epoch = num_examples // config.batch_size
    clean_teacher = config.teacher.inputs == 'clean'

    def teacher_activations(constants, examples, key):
        inputs = teacher.source.inputs(constants.teacher_tables, examples, key)
        return base.activations(teacher.model, constants.teacher_params, inputs)

    constants = Constants(
        train=source.train,
        tables=source.tables,
        teacher_tables=teacher and teacher.source.tables,
        teacher_params=teacher and teacher.params,
        teacher_states=None,
    )
    constants = jax.tree.map(jnp.asarray, constants)
    if teacher and clean_teacher:
        states = jax.jit(teacher_activations)(constants, constants.train, None)
        constants = constants._replace(teacher_states=states)

    def make_batch(constants, rows, key):
        examples = data.take(constants.train, rows)
        heard = None
        if constants.teacher_states is not None:
            heard = jax.tree.map(lambda states: states[rows], constants.teacher_states)
        elif teacher:
            heard = teacher_activations(constants, examples, key)
        return train_step.Batch(
            student_inputs=source.inputs(constants.tables, examples, key),
            labels=examples['labels'],
            mask=jnp.ones(rows.shape, jnp.float32),
            teacher=heard,
        )

    def streams(key):
        """The random streams of a seed: initial parameters, order of examples, inputs, training."""
        return jax.random.split(key, 4)

    @jax.jit
    def init(constants, keys):
        rows = jnp.arange(1)
        return jax.vmap(lambda key: step.init(streams(key)[0], make_batch(constants, rows, None)))(keys)

    def one_step(constants, state, keys, order):
        _, _, input_key, training_key = keys
        rows = data.batch_rows(order, state.step, config.batch_size)
        batch = make_batch(constants, rows, jax.random.fold_in(input_key, state.step))

        def teacher_upper(s):
            return teacher.model.upper(constants.teacher_params, s)

        return step.update(state, training_key, teacher_upper, batch)

    def order_of(keys, step):
        order_keys = jax.vmap(streams)(keys)[:, 1]
        return jax.vmap(data.epoch_order, in_axes=(0, None, None))(
            order_keys, step // steps_per_epoch, num_examples
        )

    def run(state, order, constants, keys, stop):
        split_keys = jax.vmap(streams)(keys)  # [seeds, 4]
        all_seeds = jax.vmap(one_step, in_axes=(None, 0, 0, 0))

        def is_on(carry):
            state, _, _, finite = carry
            return (state.step[0] < stop) & finite

        def advance(carry):
            state, order, sums, _ = carry
            state, metrics = all_seeds(constants, state, split_keys, order)
            finite = jnp.all(jnp.isfinite(metrics['loss'] + metrics['gradient_norm']))
            step = state.step[0]  # the same for all seeds
            order = jax.lax.cond(step % steps_per_epoch == 0, lambda: order_of(keys, step), lambda: order)
            return state, order, jax.tree.map(jnp.add, sums, metrics), finite

        _, shapes = jax.eval_shape(all_seeds, constants, state, split_keys, order)
        sums = jax.tree.map(lambda metric: jnp.zeros(metric.shape, metric.dtype), shapes)
        return jax.lax.while_loop(is_on, advance, (state, order, sums, True))

    return Dispatch(constants, init, jax.jit(order_of), jax.jit(run, donate_argnums=(0, 1)))
