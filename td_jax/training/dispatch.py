"""Many steps of many seeds, on data that lives on the device or streams to it.

Seeds run side by side under vmap. With data on the device, steps run in a while loop whose bounds are
arguments, so that one compiled program serves any number of steps and an interrupted run computes the same
bits. With a stream, each step is a dispatch of its own, and nothing waits for it.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from td_jax import randomness
from td_jax.config import effect
from td_jax.data import base as data
from td_jax.devices import compiler, processes, sharding
from td_jax.models import base
from td_jax.training import diagnostics, evaluation, probe, train_step

# Steps of a stream that may be on their way to the device at once; each holds a batch.
IN_FLIGHT = 2
# Examples at once where the teacher's states are computed for all of them.
TEACHER_BATCH = 1024
# Training examples, the first ones of a seed, by which the scales of states are measured; of a stream at most
# IN_FLIGHT batches.
SCALE_EXAMPLES = 1024
# Field of an example in a step: its number by content and that of its view, for a run with fixed views.
VIEW = 'view'


class Teacher(NamedTuple):
    """A frozen model, and how it reads the examples of its student."""

    model: base.Model
    source: data.Source  # its `inputs` and `tables` read a student's examples
    params: Any


class Constants(NamedTuple):
    """Everything a step reads that training does not change, on the device."""

    train: dict[str, jax.Array] | None  # None where examples stream
    rows: jax.Array | None  # [seeds, examples] rows of `train`; None where all seeds share all examples
    # [seeds or 1, examples], the rows of `train` whose labels are not read; None where there are none.
    unlabelled_rows: jax.Array | None
    tables: Any
    teacher_tables: Any
    teacher_params: Any
    # On all of `train`, where they are computed once; with fixed views [views, examples, ...].
    teacher_states: base.Activations | None
    # On the labelled examples, where they have other views than the rest: [views, seeds or 1, examples, ...].
    labelled_states: base.Activations | None
    content_numbers: jax.Array | None  # [examples] of `train`, for a run with fixed views
    hyperparameters: train_step.Hyperparameters


class Progress(NamedTuple):
    """The progress of training since `Dispatch.begin`."""

    state: train_step.TrainState  # of all seeds, stacked
    sums: dict[str, jax.Array]  # {metric: [seeds]}, summed over the steps
    finite: jax.Array  # whether every loss was finite; state.step stays where one was not


class Orders(NamedTuple):
    """The order of the examples in the epoch of a step; those without labels have epochs of their own."""

    labelled: jax.Array  # [seeds, examples]
    unlabelled: jax.Array | None  # [seeds, examples]; None where there are none


class Dispatch(NamedTuple):
    """A run's functions.

    constants: what a step reads, on the device
    init(keys [seeds]) -> TrainState of all seeds, stacked; its probe is zeros
    fit_probe() -> the probe.Fit of each seed, fitted once
    add_probe(state) -> the state with its fitted probe, where the run has one
    represent(examples) -> (representations that a probe reads [n, width], labels [n]), numpy arrays, from
      examples in memory or an EvaluationStream. Every process must call it, and gets all of them.
    add_scales(state, feed, keys) -> the state at step 0 with its measured scales, where the run has some. The
      batches stay in the feed.
    begin(state) -> a Progress with empty sums
    feed(keys, step) -> the source of the examples from `step` on: their Orders, or an iterator over a stream
    run(progress, feed, keys, step, stop) -> (progress, feed)
      Trains from `step`, the step of progress.state, until `stop` or until a loss is not finite. It takes the
      feed of `step` and returns that of `stop`. A progress and an order are donated. It does not wait for the
      result.
    diagnose(state, feed, keys) -> {name: [seeds]}
      diagnostics.diagnose of the next step. The batch stays in the feed, and nothing is donated.
    jitted: the jitted function behind `run`
    """

    constants: Constants
    init: Callable[..., train_step.TrainState]
    fit_probe: Callable[[], list[probe.Fit]]
    add_probe: Callable[[train_step.TrainState], train_step.TrainState]
    add_scales: Callable[..., train_step.TrainState]
    represent: Callable[..., tuple[np.ndarray, np.ndarray]]
    begin: Callable[[train_step.TrainState], Progress]
    feed: Callable[..., Any]
    run: Callable[..., tuple[Progress, Any]]
    diagnose: Callable[..., dict[str, jax.Array]]
    jitted: Callable[..., Any]


def seed_keys(config) -> jax.Array:
    """One key per seed, [num_seeds]; a student's differ from those of a teacher of the same seed."""
    return jax.vmap(lambda seed: make_key(seed, config.role))(jnp.asarray(seeds(config), jnp.int32))


def make_key(seed, role: str) -> jax.Array:
    """The key of all random numbers of a student or a teacher; `role` is a value of config.role."""
    return randomness.fold_name(jax.random.key(seed), role)


def data_seeds(config) -> list[int]:
    """The seeds of generators outside of JAX, one per seed, by which examples are drawn.

    They differ between a student and a teacher.
    """
    return [randomness.derive_seed(config.role, seed) for seed in seeds(config)]


def seeds(config) -> list[int]:
    """The seed of each student of a run."""
    return [config.seed + i * config.seed_step for i in range(config.num_seeds)]


class Streams(NamedTuple):
    """The random keys of a seed, by what they are for."""

    initial: jax.Array  # the first parameters
    order: jax.Array  # the order of the examples
    inputs: jax.Array  # how examples are varied
    training: jax.Array  # dropout and noise


def split_key(key) -> Streams:
    """The random Streams of a key by `make_key`."""
    return Streams(*(randomness.fold_name(key, name) for name in Streams._fields))


def make_dispatch(
    abstract: 'Abstract',
    source: data.Source,
    teacher: Teacher | None,
    config,
    mesh,
    start=None,
    keep: Callable[..., Any] | None = None,
) -> Dispatch:
    """Makes the functions of a run; compiles nothing yet.

    Args:
      abstract: by make_abstract, of the same run or of one that compiles the same.
      source: the student's data.
      teacher: None for a method without one.
      config: the run's config.
      mesh: the devices, by sharding.make_mesh.
      start: the teacher's parameters, for a student that starts from them, else None.
      keep: by teacher_outputs.make_keep; reads the teacher's states from disk or calls what computes them.
    """
    jitted, whole = abstract.jitted, sharding.replicated_sharding(mesh)
    constants = _place_constants(source, teacher, config, mesh, sharding.place)
    if abstract.constants.teacher_states is not None:
        selection = select_examples(source, config)
        views, like = count_unlabelled_views(config, source, teacher), abstract.constants.teacher_states
        states = _compute_states(jitted, constants, selection.examples, views, like, keep)
        labelled_states = abstract.constants.labelled_states
        if labelled_states is not None:
            views, like = count_views(config, teacher), jax.tree.map(_merge_seeds, labelled_states)
            flat = _compute_states(jitted, constants, _select_labelled(selection, source), views, like, keep)
            labelled_states = jax.tree.map(lambda x, y: x.reshape(y.shape), flat, labelled_states)
        constants = constants._replace(teacher_states=states, labelled_states=labelled_states)
    if start is not None:
        # On all devices; a run that reads its teacher, too, uses the same arrays.
        shardings = sharding.parameter_shardings(mesh, start)
        start = constants.teacher_params if teacher else sharding.place(start, shardings)

    def represent(examples):
        inputs = jitted.represent, constants, examples, config.batch_size, mesh
        return _represent_kept(*inputs, keep) if keep and isinstance(examples, dict) else _represent(*inputs)

    @functools.cache
    def fit_probe():
        return _fit_probe(represent, source, config)

    def init(keys):
        return jitted.init(constants, sharding.place(keys, whole), start)

    def add_probe(state):
        if state.probe is None:
            return state
        params = jax.tree.map(lambda *leaves: np.stack(leaves), *(fit.params for fit in fit_probe()))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state.probe)
        return state._replace(probe=sharding.place(params, shardings))

    def begin(state):
        sums = {name: np.zeros(sum_.shape, sum_.dtype) for name, sum_ in abstract.progress.sums.items()}
        return Progress(state, *sharding.place((sums, np.array(True)), whole))

    is_streamed = isinstance(source.train, data.TrainStream)
    if is_streamed:
        feed, run = _make_stream_functions(jitted.run, constants, source, config, mesh)
    else:

        def feed(keys, step):
            return jitted.order(sharding.place(keys, whole), step)

        def run(progress, order, keys, step, stop):
            return jitted.run(progress, order, constants, sharding.place(keys, whole), stop)

    def diagnose(state, feed, keys):
        examples = (feed.peek(), None) if is_streamed else (feed,)
        return jitted.diagnose(constants, state, sharding.place(keys, whole), *examples)

    def add_scales(state, feed, keys):
        if state.scales is None:
            return state
        part_size = (config.batch_size + unlabelled_batch_size(source, config)) // config.micro_batches
        num_batches = min(data.count(source.train) // config.batch_size, -(-SCALE_EXAMPLES // part_size))
        moments = []
        for i in range(min(num_batches, IN_FLIGHT) if is_streamed else num_batches):
            examples = (feed.peek(i), None) if is_streamed else (feed, i)
            moments.append(jitted.measure(constants, state, sharding.place(keys, whole), *examples))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state.scales)
        return state._replace(scales=sharding.place(diagnostics.compute_scales(moments), shardings))

    return Dispatch(
        constants=constants,
        init=init,
        fit_probe=fit_probe,
        add_probe=add_probe,
        add_scales=add_scales,
        represent=represent,
        begin=begin,
        feed=feed,
        run=run,
        diagnose=diagnose,
        jitted=jitted.run,
    )


class Jitted(NamedTuple):
    """The compiled functions of a run, each traced when it is first called.

    All data are arguments; of the run's data they contain only the shapes, from one example.

    init(constants, keys, start) -> TrainState of all seeds
    run: the function that trains; _Parts.run_steps, or _Parts.run_streamed_step where examples stream
    diagnose: _Parts.diagnose_in_order, or _Parts.diagnose where examples stream
    measure: _Parts.measure_in_order, or _Parts.measure where examples stream
    order(keys, step): _Parts.draw_order
    states(constants, batches, count, views): _Parts.compute_states
    represent(constants, examples, mask): _Parts.represent
    """

    init: Callable[..., Any]
    run: Callable[..., Any]
    diagnose: Callable[..., Any]
    measure: Callable[..., Any]
    order: Callable[..., Any]
    states: Callable[..., Any]
    represent: Callable[..., Any]


class Abstract(NamedTuple):
    """A run's step before anything is placed or computed: the input of the compiler.

    jitted: the functions of `make_dispatch`
    arguments: the shapes, types and shardings of the arguments of jitted.run
    progress, constants: the arguments that hold parameters
    """

    jitted: Jitted
    arguments: tuple
    progress: Progress
    constants: Constants


def make_abstract(
    step: train_step.Step, source: data.Source, teacher: Teacher | None, config, mesh, start=None
) -> Abstract:
    """Makes what `make_dispatch` compiles, from the same arguments; any array may be a ShapeDtypeStruct.

    The devices of the mesh need not exist. Teacher states that are computed once are shapes, too.
    """
    whole = sharding.replicated_sharding(mesh)
    parts = _Parts(step, source, teacher, config, mesh)
    constants = _place_constants(source, teacher, config, mesh, sharding.abstract_arrays)
    # Where they never change, they are computed once.
    if teacher and keeps_states(config) and not parts.is_streamed:
        states = jax.eval_shape(parts.compute_teacher_activations, constants, constants.train, None)

        def with_axes(*axes, skip=0):
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*axes, *x.shape[skip:]), x.dtype), states)
            return sharding.abstract_arrays(shapes, whole)

        axes = (parts.num_unlabelled_views,) if parts.num_views else ()
        constants = constants._replace(teacher_states=with_axes(*axes))
        if parts.has_labelled_states:
            num_draws = 1 if constants.rows is None else config.num_seeds
            axes = parts.num_views, num_draws, parts.num_examples
            constants = constants._replace(labelled_states=with_axes(*axes, skip=1))
    keys = sharding.abstract_arrays(jax.eval_shape(lambda: seed_keys(config)), whole)
    shapes = parts.progress_shapes(constants, start)
    progress = sharding.abstract_arrays(shapes, parts.shardings(shapes))
    jitted = parts.compile_functions(parts.shardings(shapes))
    if not parts.is_streamed:
        order = sharding.abstract_arrays(jax.eval_shape(parts.draw_order, keys, 0), whole)
        return Abstract(jitted, (progress, order, constants, keys, 1), progress, constants)
    examples = sharding.abstract_arrays(parts.example_shapes(), sharding.batch_sharding(mesh, axis=1))
    return Abstract(jitted, (progress, constants, keys, examples), progress, constants)


class _Parts:
    """The pure functions that `make_dispatch` compiles; of the data they keep one example."""

    def __init__(self, step, source, teacher, config, mesh):
        self.step, self.config, self.mesh = step, config, mesh
        self.inputs, self.example = source.inputs, data.one_example(source)
        self.is_streamed = isinstance(source.train, data.TrainStream)
        self.teacher = teacher and (teacher.model, teacher.source.inputs)
        self.num_views = 0 if self.is_streamed else count_views(config, teacher)
        self.num_unlabelled_views = 0 if self.is_streamed else count_unlabelled_views(config, source, teacher)
        self.has_labelled_states = self.num_unlabelled_views != self.num_views
        self.num_examples = data.count(source.train)
        self.steps_per_epoch = self.num_examples // config.batch_size
        self.num_unlabelled = source.unlabelled.count if source.unlabelled else 0
        self.unlabelled_batch_size = unlabelled_batch_size(source, config)
        self.unlabelled_steps_per_epoch = self.num_unlabelled // max(self.unlabelled_batch_size, 1)
        # A step is traced once, by whoever asks first: the checks before a run, or its loop.
        self.all_seeds = jax.jit(self.update_all_seeds)

    def example_shapes(self):
        """{name: [seeds, batch, ...]} of a step; the labels are those of the labelled examples alone."""
        shapes = self.batch_shapes(self.example)
        shapes['labels'] = self.batch_shapes(self.example['labels'], self.config.batch_size)
        if self.num_views:
            shapes[VIEW] = self.batch_shapes(jax.ShapeDtypeStruct((1, 2), np.uint32))
        return shapes

    def batch_shapes(self, examples, batch_size=None):
        """A tree of [examples, ...] -> the shapes of a step's, [seeds, batch, ...]."""
        batch_size = batch_size or self.config.batch_size + self.unlabelled_batch_size
        shape = self.config.num_seeds, batch_size
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype), examples)

    def progress_shapes(self, constants, start) -> Progress:
        """The shapes and types of a Progress."""
        keys = jax.eval_shape(lambda: seed_keys(self.config))
        state = jax.eval_shape(self.init, constants, keys, start)
        states = constants.teacher_states
        if self.num_views:
            states = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), states)
        states = None if states is None else self.batch_shapes(states)
        # On the mesh, except for the keys, as in the loop: the step is then traced for both.
        whole = sharding.replicated_sharding(self.mesh)
        placed, *batch = sharding.abstract_arrays((state, self.example_shapes(), states), whole)
        _, sums, finite = jax.eval_shape(self.all_seeds, constants, placed, keys, *batch)
        return Progress(state, sums, finite)

    def shardings(self, shapes: Progress) -> Progress:
        """The shardings of a Progress."""
        whole = sharding.replicated_sharding(self.mesh)
        state = sharding.parameter_shardings(self.mesh, shapes.state, first_axis=1)
        return Progress(state, jax.tree.map(lambda _: whole, shapes.sums), whole)

    def compile_functions(self, progress: Progress) -> Jitted:
        """The Jitted functions, for the shardings of a Progress."""
        whole = sharding.replicated_sharding(self.mesh)
        options = compiler.options_of_one_call(self.mesh)
        if self.is_streamed:
            run = jax.jit(self.run_streamed_step, donate_argnums=0, out_shardings=progress)
            diagnose, measure = self.diagnose, self.measure
        else:
            run = jax.jit(self.run_steps, donate_argnums=(0, 1), out_shardings=(progress, whole))
            diagnose, measure = self.diagnose_in_order, self.measure_in_order
        return Jitted(
            init=jax.jit(self.init, out_shardings=progress.state, compiler_options=options),
            run=run,
            diagnose=jax.jit(diagnose, out_shardings=whole),
            measure=jax.jit(measure, out_shardings=whole),
            order=jax.jit(self.draw_order, out_shardings=whole),
            states=jax.jit(self.compute_states, static_argnums=(2, 3)),
            represent=jax.jit(self.represent, out_shardings=whole),
        )

    def init(self, constants, keys, start):
        """Every seed's first TrainState; `start` are parameters that the student starts from, or None."""
        batch = self.make_batch(constants, self.example, None, None)
        return jax.vmap(lambda key: self.step.init(split_key(key).initial, batch, start))(keys)

    def compute_teacher_activations(self, constants, examples, key) -> base.Activations:
        """The teacher's Activations on some examples; a key is as of `make_inputs`."""
        model, inputs = self.teacher
        teacher_inputs = self.make_inputs(inputs, constants.teacher_tables, examples, key)
        return base.activations(model, constants.teacher_params, teacher_inputs)

    def compute_states(self, constants, batches, count, views) -> base.Activations:
        """The teacher's Activations on `count` examples, from padded {name: [batches, batch, ...]}.

        [views, examples, ...], or [examples, ...] where `views` is 0.
        """

        def of_batches(view):
            def of_batch(examples):
                key = None if view is None else self.make_view_keys(examples[VIEW], view)
                return self.compute_teacher_activations(constants, examples, key)

            states = jax.lax.map(of_batch, batches)
            # [batches, batch, ...] -> [examples, ...]; logits without a head have the width 0.
            return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:count], states)

        return jax.lax.map(of_batches, jnp.arange(views)) if views else of_batches(None)

    def make_view_keys(self, content_numbers, views):
        """The keys of the views of examples; they depend on an example's content and the view alone."""
        key = randomness.fold_name(jax.random.key(0), 'views')
        views = jnp.broadcast_to(views, content_numbers.shape)
        return jax.vmap(lambda number, view: jax.random.fold_in(jax.random.fold_in(key, number), view))(
            content_numbers, views
        )

    def represent(self, constants, examples, mask):
        """(representations of a batch that a probe reads, labels, mask)"""
        upper = self.compute_teacher_activations(constants, examples, None).upper
        return probe.representations(upper), examples['labels'], mask

    def hide_labels(self, examples):
        """The examples without their labels, in a run where some have none."""
        if not self.num_unlabelled:
            return examples
        return {name: array for name, array in examples.items() if name != 'labels'}

    def make_inputs(self, inputs, tables, examples, key):
        """A model's inputs for some examples; a key varies all of them, keys [examples] each by itself."""
        examples = self.hide_labels(examples)
        if key is None or not key.ndim:
            return inputs(tables, examples, key)

        def of_one(example, key):
            example = {name: array[None] for name, array in example.items() if name != VIEW}
            return jax.tree.map(lambda x: x[0], inputs(tables, example, key))

        return jax.vmap(of_one)(examples, key)

    def make_batch(self, constants, examples, teacher_activations, key):
        """The Batch of some examples; teacher_activations of None are computed here."""
        if teacher_activations is None and self.teacher:
            teacher_activations = self.compute_teacher_activations(constants, examples, key)
        student_inputs = self.make_inputs(self.inputs, constants.tables, examples, key)
        return train_step.Batch(
            student_inputs=student_inputs,
            labels=jnp.asarray(examples['labels']),
            mask=jnp.ones(len(jax.tree.leaves(student_inputs)[0]), jnp.float32),
            teacher=teacher_activations,
        )

    def make_arguments(self, constants, state, keys, examples, teacher_activations):
        """The arguments of a step of one seed."""
        key = jax.random.fold_in(keys.inputs, state.step)
        if self.num_views:
            key = self.make_view_keys(examples[VIEW][:, 0], examples[VIEW][:, 1])
        batch = self.make_batch(constants, examples, teacher_activations, key)
        if state.probe is not None:
            batch = batch._replace(probe_logits=probe.predictions(state.probe, batch.teacher.upper))
        if self.teacher and self.config.teacher.control.startswith('shuffled'):
            # The teacher's activations on the next example; an epoch's order is random.
            own = batch.teacher.logits, batch.probe_logits
            shuffled = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), (batch.teacher, *own))
            activations, logits, probe_logits = shuffled
            if self.config.teacher.control == 'shuffled_states':
                logits, probe_logits = own
            batch = batch._replace(teacher=activations._replace(logits=logits), probe_logits=probe_logits)

        def teacher_upper(s):
            model, _ = self.teacher
            return model.upper(constants.teacher_params, s)

        return state, keys.training, teacher_upper, batch, constants.hyperparameters

    def map_over_seeds(self, function, constants, state, keys, examples, teacher_activations):
        """Maps a function of a step's arguments over the seeds.

        Examples and teacher_activations have a leading axis of seeds.
        """
        examples, teacher_activations = jax.lax.with_sharding_constraint(
            (examples, teacher_activations), sharding.batch_sharding(self.mesh, axis=1)
        )
        run = jax.vmap(lambda *inputs: function(*self.make_arguments(*inputs)), in_axes=(None, 0, 0, 0, 0))
        return run(constants, state, jax.vmap(split_key)(keys), examples, teacher_activations)

    def update_all_seeds(self, *inputs):
        """A step of every seed, with the arguments of `map_over_seeds`."""
        state, metrics = self.map_over_seeds(self.step.update, *inputs)
        finite = jnp.all(jnp.isfinite(metrics['loss'] + metrics['gradient_norm']))
        return state, metrics, finite

    def diagnose(self, *inputs):
        """The diagnostics of every seed, with the arguments of `map_over_seeds`."""
        return self.map_over_seeds(functools.partial(diagnostics.diagnose, self.step), *inputs)

    def diagnose_in_order(self, constants, state, keys, order):
        """The diagnostics of every seed on data that is on the device."""
        return self.diagnose(constants, state, keys, *self.draw_batch(constants, order, keys, state.step[0]))

    def measure(self, *inputs):
        """The Moments of the parts of states, with the arguments of `map_over_seeds`."""
        return self.map_over_seeds(functools.partial(diagnostics.measure_parts, self.step), *inputs)

    def measure_in_order(self, constants, state, keys, order, step):
        """`measure` of the batch of a step, on data that is on the device."""
        state = state._replace(step=jnp.full_like(state.step, step))
        return self.measure(constants, state, keys, *self.draw_batch(constants, order, keys, step))

    def draw_order(self, keys, step):
        """The Orders of a step."""
        return Orders(self.draw_labelled(keys, step), self.draw_unlabelled(keys, step))

    def draw_labelled(self, keys, step):
        """Orders.labelled of a step."""
        order_keys = jax.vmap(split_key)(keys).order
        return _draw_epoch(order_keys, step // self.steps_per_epoch, self.num_examples)

    def draw_unlabelled(self, keys, step):
        """Orders.unlabelled of a step."""
        if not self.num_unlabelled:
            return None
        order_keys = jax.vmap(lambda key: randomness.fold_name(split_key(key).order, 'unlabelled'))(keys)
        return _draw_epoch(order_keys, step // self.unlabelled_steps_per_epoch, self.num_unlabelled)

    def advance_order(self, order, keys, step):
        """The Orders of a step from those of the step before."""
        is_new = step % self.steps_per_epoch == 0
        labelled = jax.lax.cond(is_new, lambda: self.draw_labelled(keys, step), lambda: order.labelled)
        if not self.num_unlabelled:
            return Orders(labelled, None)
        is_new = step % self.unlabelled_steps_per_epoch == 0
        unlabelled = jax.lax.cond(is_new, lambda: self.draw_unlabelled(keys, step), lambda: order.unlabelled)
        return Orders(labelled, unlabelled)

    def draw_views(self, keys, step):
        """The number of a view for each example of a step, labelled ones first, [seeds, examples]."""
        counts = [self.num_views] * self.config.batch_size
        counts += [self.num_unlabelled_views] * self.unlabelled_batch_size
        return jax.vmap(
            lambda key: jax.random.randint(
                jax.random.fold_in(split_key(key).inputs, step), (len(counts),), 0, jnp.asarray(counts)
            )
        )(keys)

    def draw_batch(self, constants, order, keys, step):
        """(examples, teacher_activations) of a step on data that is on the device."""
        take_rows = jax.vmap(data.batch_rows, in_axes=(0, None, None))
        numbers = rows = take_rows(order.labelled, step, self.config.batch_size)
        if constants.rows is not None:
            rows = jnp.take_along_axis(constants.rows, rows, axis=1)
        labels = constants.train['labels'][rows]
        if self.num_unlabelled:
            others = take_rows(order.unlabelled, step, self.unlabelled_batch_size)
            others = jnp.take_along_axis(constants.unlabelled_rows, others, axis=1)
            rows = jnp.concatenate([rows, others], axis=1)
        examples = {name: array[rows] for name, array in constants.train.items() if name != 'labels'}
        examples['labels'] = labels
        if constants.teacher_states is None:
            return examples, None
        if self.num_views:
            views = self.draw_views(keys, step)
            examples[VIEW] = jnp.stack([constants.content_numbers[rows], views.astype(jnp.uint32)], axis=-1)
            if not self.has_labelled_states:
                return examples, jax.tree.map(lambda states: states[views, rows], constants.teacher_states)
            draws = jnp.arange(len(rows) if constants.rows is not None else 1)[:, None]
            size = self.config.batch_size
            parts = (
                jax.tree.map(lambda x: x[views[:, :size], draws, numbers], constants.labelled_states),
                jax.tree.map(lambda x: x[views[:, size:], rows[:, size:]], constants.teacher_states),
            )
            return examples, jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
        return examples, jax.tree.map(lambda states: states[rows], constants.teacher_states)

    def run_steps(self, progress, order, constants, keys, stop):
        """Steps until `stop` on data that is on the device."""

        def advance(carry):
            (state, sums, _), order = carry
            batch = self.draw_batch(constants, order, keys, state.step[0])
            state, metrics, finite = self.all_seeds(constants, state, keys, *batch)
            step = state.step[0]  # the same for all seeds
            order = self.advance_order(order, keys, step)
            return Progress(state, jax.tree.map(jnp.add, sums, metrics), finite), order

        def continues(carry):
            progress, _ = carry
            return (progress.state.step[0] < stop) & progress.finite

        return jax.lax.while_loop(continues, advance, (progress, order))

    def run_streamed_step(self, progress, constants, keys, examples):
        """One step on examples that came from a stream."""
        state, sums, finite = progress
        new, metrics, now_finite = self.all_seeds(constants, state, keys, examples, None)
        # After a loss that is not finite, the step stays, so that it tells where that was.
        step = jnp.where(finite, new.step, state.step)
        return Progress(new._replace(step=step), jax.tree.map(jnp.add, sums, metrics), finite & now_finite)


_draw_epoch = jax.vmap(data.epoch_order, in_axes=(0, None, None))


class _Feed:
    """An iterator over batches whose next batches can be read without taking them."""

    def __init__(self, batches):
        self._batches, self._seen = batches, collections.deque()

    def __next__(self):
        return self._seen.popleft() if self._seen else next(self._batches)

    def peek(self, index=0):
        """Returns the next batch, or the one `index` batches after it, without taking it."""
        while len(self._seen) <= index:
            self._seen.append(next(self._batches))
        return self._seen[index]

    def close(self):
        """Closes the iterator of the batches."""
        self._batches.close()


def _make_stream_functions(jitted, constants, source, config, mesh):
    """Makes Dispatch.feed and Dispatch.run for a stream."""
    rows = sharding.local_rows(mesh, config.batch_size)
    whole = sharding.replicated_sharding(mesh)
    in_flight = collections.deque()

    def batches(step):
        # One iterator per seed: each has its own order of examples.
        iterators = [
            source.train.open(data_seed, step, config.batch_size, rows) for data_seed in data_seeds(config)
        ]
        for batches in zip(*iterators, strict=True):
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
            yield sharding.place_rows(stacked, mesh, config.batch_size, axis=1)

    def feed(keys, step):
        return _Feed(batches(step))

    def run(progress, feed, keys, step, stop):
        keys = sharding.place(keys, whole)
        for _ in range(step, stop):
            progress = jitted(progress, constants, keys, next(feed))
            # The progress is donated to the next step; this copy is there to wait for.
            in_flight.append(progress.finite | False)
            if len(in_flight) > IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
        return progress, feed

    return feed, run


def keeps_states(config) -> bool:
    """Whether the teacher's states of all training examples in memory are computed once."""
    return config.teacher.inputs == 'clean' or _has_views(config)


def count_views(config, teacher) -> int:
    """The number of fixed views of each labelled example.

    0 without a teacher, and where they would be equal.
    """
    return config.teacher.views if teacher and _has_views(config) else 0


def count_unlabelled_views(config, source: data.Source, teacher) -> int:
    """The number of fixed views of each example without a label; `count_views` where there are none."""
    views = count_views(config, teacher)
    return (config.teacher.unlabelled_views or views) if views and source.unlabelled else views


def _has_views(config):
    inputs, views = config.teacher.inputs, config.teacher.views
    return inputs == 'varied' and views > 0 and effect.has_variation(config)


class Selection(NamedTuple):
    """The training examples in memory that the seeds of a run need; all None for a stream."""

    examples: dict[str, np.ndarray] | None
    # [seeds, examples of a seed], which of them have labels; None where the first ones do, for every seed.
    rows: np.ndarray | None
    unlabelled_rows: np.ndarray | None  # the same of those without, [seeds or 1, examples of a seed]


def unlabelled_batch_size(source: data.Source, config) -> int:
    """The number of examples without labels per step; 0 where a run has none."""
    return (config.unlabelled_batch_size or config.batch_size) if source.unlabelled else 0


def select_examples(source: data.Source, config) -> Selection:
    """Selects the training examples in memory that the seeds of a run need.

    The labels of examples that no seed has labelled are part of a LabelledPool, and are read nowhere.
    """
    train, unlabelled = source.train, source.unlabelled
    if isinstance(train, data.TrainStream):
        return Selection(None, None, None)
    examples, rows, unlabelled_rows = train, None, None
    if isinstance(train, data.LabelledPool):
        draws = [train.rows, *([unlabelled.rows] if unlabelled and unlabelled.rows else [])]
        drawn = [np.stack([draw(data_seed) for data_seed in data_seeds(config)]) for draw in draws]
        drawn_rows = np.unique(np.concatenate([rows.ravel() for rows in drawn]))
        # Padded to the same size for all seeds, so that their runs share a program; no seed reads the
        # padding.
        size = min(sum(rows.size for rows in drawn), data.count(train.examples))
        padded_rows = np.concatenate([drawn_rows, np.full(size - len(drawn_rows), drawn_rows[0])])
        examples = data.take(train.examples, padded_rows)
        rows, *others = (np.searchsorted(drawn_rows, rows).astype(np.int32) for rows in drawn)
        unlabelled_rows = others[0] if others else None
    if unlabelled and unlabelled.examples is not None:
        start, added = data.count(examples), unlabelled.examples
        labels = np.zeros((unlabelled.count, *examples['labels'].shape[1:]), examples['labels'].dtype)
        examples = {
            name: np.concatenate([array, labels if name == 'labels' else added[name]])
            for name, array in examples.items()
        }
        unlabelled_rows = (start + np.arange(unlabelled.count, dtype=np.int32))[None]
    return Selection(examples, rows, unlabelled_rows)


def _select_labelled(selection, source):
    """The labelled examples of each seed, one seed's after the other's, or those that all seeds share."""
    rows = np.arange(data.count(source.train)) if selection.rows is None else selection.rows.ravel()
    return data.take(selection.examples, rows)


def _merge_seeds(x):
    """The shape of [views, seeds, examples, ...] as [views, examples of all seeds, ...]."""
    views, seeds, examples, *shape = x.shape
    return jax.ShapeDtypeStruct((views, seeds * examples, *shape), x.dtype, sharding=x.sharding)


def _compute_states(jitted, constants, examples, views, like, keep):
    """_Parts.compute_states of examples in NumPy, from what `keep` of make_dispatch finds on disk."""
    numbered, count, whole = examples, data.count(examples), jax.tree.leaves(like)[0].sharding
    if constants.content_numbers is not None:
        numbered = {**examples, VIEW: np.asarray(data.number_by_content(examples))}
    batches, _ = data.padded_batches(numbered, min(TEACHER_BATCH, count))
    shapes = sharding.abstract_arrays(batches, whole)

    def compute():
        return jitted.states(constants, sharding.place(batches, whole), count, views)

    def describe_program():
        return jitted.states.lower(constants, shapes, count, views).as_text()

    return keep(like, describe_program, examples, compute) if keep else compute()


def _represent(represent, constants, examples, batch_size, mesh):
    """Dispatch.represent, by a compiled _Parts.represent."""
    parts = []
    for rows in evaluation.iterate_batches(examples, batch_size, mesh):
        placed = sharding.place_rows(rows, mesh, batch_size)
        x, labels, mask = map(np.asarray, represent(constants, *placed))
        parts.append((x[mask > 0], labels[mask > 0]))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _represent_kept(represent, constants, examples, batch_size, mesh, keep):
    """`_represent` of examples in memory, from what `keep` of make_dispatch finds on disk."""
    whole, by_rows = sharding.replicated_sharding(mesh), sharding.batch_sharding(mesh)
    batch = sharding.abstract_arrays(next(evaluation.iterate_batches(examples, batch_size, mesh)), by_rows)
    of_batch, _, _ = jax.eval_shape(represent, constants, *batch)
    like = jax.ShapeDtypeStruct((data.count(examples), of_batch.shape[1]), of_batch.dtype, sharding=whole)

    def compute():
        x, _ = _represent(represent, constants, examples, batch_size, mesh)
        return {'representations': x}

    def describe_program():
        return represent.lower(constants, *batch).as_text()

    outputs = keep({'representations': like}, describe_program, examples, compute)
    return np.asarray(outputs['representations']), examples['labels']


def _fit_probe(represent, source, config):
    """Dispatch.fit_probe."""
    train, num_labels = source.train, len(source.label_names)
    if isinstance(train, data.TrainStream):
        # Shared examples are read once.
        of_each = map(represent, map(train.pass_over, data_seeds(config)[: None if train.is_drawn else 1]))
    else:
        # The labelled examples alone, as in a run without others.
        examples, rows, _ = select_examples(source._replace(unlabelled=None), config)
        x, labels = represent(examples)
        of_each = ((x[own], labels[own]) for own in ([slice(None)] if rows is None else rows))
    fits = [processes.broadcast(probe.fit(*own, num_labels)) for own in of_each]
    for fit in fits:
        if not fit.gradient <= probe.GRADIENT:
            processes.say(
                f'warning: the probe has not converged: the largest number of its gradient is '
                f'{fit.gradient:.2g}'
            )
    return fits if len(fits) == config.num_seeds else fits * config.num_seeds


def _place_constants(source, teacher, config, mesh, place):
    """Puts the Constants of a run on the devices, still without the teacher's states."""
    whole = sharding.replicated_sharding(mesh)
    train, rows, unlabelled_rows = select_examples(source, config)
    return Constants(
        train=train and place(train, whole),
        rows=None if rows is None else place(rows, whole),
        unlabelled_rows=None if unlabelled_rows is None else place(unlabelled_rows, whole),
        tables=place(source.tables, whole),
        teacher_tables=teacher and place(teacher.source.tables, whole),
        teacher_params=teacher and place(teacher.params, sharding.parameter_shardings(mesh, teacher.params)),
        teacher_states=None,
        labelled_states=None,
        content_numbers=(
            place(data.number_by_content(train), whole) if train and count_views(config, teacher) else None
        ),
        hyperparameters=place(train_step.read_hyperparameters(config), whole),
    )
