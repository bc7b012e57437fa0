"""A lower bound on the memory of a run, before any of it is allocated."""

import contextlib
import math

import jax

from td_jax.data import base as data
from td_jax.data import images
from td_jax.devices import memory, sharding
from td_jax.errors import UserError
from td_jax.method import objectives
from td_jax.models import base
from td_jax.training import assembly, dispatch


def check_parameters(config, model_config, source: data.Source, num_seeds: int, mesh, name: str):
    """Refuses a model whose parameters alone do not fit on a device.

    Args:
      config: of the run.
      model_config: `config.model` or `config.teacher.model`.
      source: its data.
      num_seeds: number of copies side by side.
      mesh: the devices of the run.
      name: its name in messages.

    Raises:
      UserError: names the GB that it needs and those available.
    """
    shapes = assembly.parameter_shapes(config, model_config, source)
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_seeds, *x.shape), x.dtype), shapes)
    placed = sharding.abstract_arrays(stacked, sharding.parameter_shardings(mesh, stacked, first_axis=1))
    _compare(mesh, {f'parameters of the {name}': (sharding.bytes_on_device(placed), _suggest_sizes(name))})


def check(
    config, source: data.Source, teacher: dispatch.Teacher | None, abstract: dispatch.Abstract, name: str
):
    """Refuses a run that needs more memory than a device or this machine has.

    It counts what is in memory all the time; gradients and intermediate results of a step come on top.

    Args:
      config: of the run.
      source: the student's data.
      teacher: its parameters may be shapes; None for a run without one.
      abstract: the run's step, by assembly.abstract.
      name: the trained model's name in messages: 'student', or 'teacher' for a teacher's own run.

    Raises:
      UserError: names the GB of the largest parts, and those available.
    """
    state, constants = abstract.progress.state, abstract.constants
    mesh = jax.tree.leaves(state.step)[0].sharding.mesh
    # part -> (bytes, the remedy if it is the largest part).
    parts = {
        f'parameters of the {name}': (sharding.bytes_on_device(state.params), _suggest_sizes(name)),
        'optimizer state': (sharding.bytes_on_device(state.opt_state), _suggest_sizes(name)),
        'data': (
            sharding.bytes_on_device(
                (
                    *(constants.train, constants.rows, constants.unlabelled_rows),
                    *(constants.tables, constants.teacher_tables),
                )
            ),
            _suggest_smaller_data(config),
        ),
        'teacher': (sharding.bytes_on_device(constants.teacher_params), _suggest_sizes('teacher')),
    }
    if config.keep == 'best':
        parts['parameters of the best step'] = sharding.bytes_on_device(state.params), 'set keep to last'
    is_streamed = isinstance(source.train, data.TrainStream)
    if is_streamed:
        _check_machine(
            'the examples that are shuffled at once are',
            source.train.host_bytes,
            'lower dataset.shuffle_buffer',
        )
        # The batch being read, and those in flight.
        size = (1 + dispatch.IN_FLIGHT) * sharding.bytes_on_device(abstract.arguments[-1])
        parts['batches'] = size, 'lower batch_size, num_seeds or dataset.image_size'
    if teacher and objectives.reads_teacher(config):
        states = activations(config, config.teacher.model, teacher.source)
        if dispatch.keeps_states(config) and not is_streamed:
            views = dispatch.count_views(config, teacher)
            parts["teacher's states"] = (
                sharding.bytes_on_device((constants.teacher_states, constants.labelled_states)),
                'lower teacher.views or teacher.unlabelled_views'
                if views
                else 'set teacher.inputs to varied, which computes them in every step',
            )
        if objectives.has_probe(config):
            _check_probe(config, source, states)
        if config.method == 'td' and config.td.weights.interact:
            own = activations(config, config.model, source)
            batch_size = config.batch_size + dispatch.unlabelled_batch_size(source, config)
            rows = batch_size // (mesh.devices.size * config.micro_batches)
            # The backward pass of a round needs the states that the round started from.
            bytes_per_round = config.num_seeds * rows * _count_bytes((own.lower, own.upper, states.lower))
            parts['conversation'] = (
                max(config.td.rounds - 1, 0) * bytes_per_round,
                'lower td.rounds or num_seeds, or raise micro_batches',
            )
    _compare(mesh, parts)
    # A checkpoint is written from a copy in the machine's memory.
    best = state.params if config.keep == 'best' else ()
    _check_machine(
        'a checkpoint of this run is', _count_bytes((state._replace(step=None), best)), _suggest_sizes(name)
    )


@contextlib.contextmanager
def oom_as_user_error():
    """Turns JAX's out-of-memory error in the block into a UserError.

    Raises:
      UserError: a device is out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f'a device has too little memory for this run ({reason[:300]}): lower num_seeds, batch_size or '
            'eval_batch_size, or raise micro_batches.'
        ) from error


def activations(config, model_config, source: data.Source) -> base.Activations:
    """The shapes and types of a model's Activations on one example; computes nothing."""
    model = assembly.build_model(config, model_config, source)
    params = assembly.parameter_shapes(config, model_config, source)
    return jax.eval_shape(lambda params: base.activations(model, params, assembly.one_input(source)), params)


def _compare(mesh, parts):
    """Refuses parts {name: (bytes, remedy)} that together do not fit on a device; names the largest."""
    needed, available = sum(size for size, _ in parts.values()), memory.of_device(mesh.local_devices[0])
    if needed <= available:
        return
    largest = sorted(parts, key=lambda part: parts[part][0], reverse=True)
    largest_parts = ', '.join(f'{part} {_format_gigabytes(parts[part][0])}' for part in largest[:3])
    raise UserError(
        f'this run needs at least {_format_gigabytes(needed)} GB on a device that has '
        f'{_format_gigabytes(available)} GB ({largest_parts}): {parts[largest[0]][1]}.'
    )


def _check_probe(config, source, states):
    """Refuses a probe whose representations of all training examples exceed teacher.probe_gb."""
    count = data.count(source.train)
    needed = 4 * count * jax.eval_shape(base.read_by_head, states.upper).shape[-1]
    if needed > config.teacher.probe_gb * 1e9:
        raise UserError(
            f'teacher.labels is probe, which keeps what the teacher makes of {count} training examples '
            f'while it is fitted, {_format_gigabytes(needed)} GB, but teacher.probe_gb is '
            f'{config.teacher.probe_gb}: raise it, or set teacher.labels to auxiliary.'
        )


def _check_machine(what, needed, remedy):
    """Refuses data larger than the memory of this machine."""
    available = memory.of_machine()
    if needed > available:
        raise UserError(
            f'{what} {_format_gigabytes(needed)} GB, but this machine has {_format_gigabytes(available)} GB '
            f'of memory: {remedy}.'
        )


def _suggest_smaller_data(config):
    if config.dataset.name in images.MEMORY_OR_STREAM:
        return 'lower dataset.kept_gb, which streams images that take more'
    return 'take a smaller part of the data'


def _suggest_sizes(name):
    model = 'num_seeds or the sizes of model and communication'
    return f'lower {model if name == "student" else "the sizes of teacher.model"}, or raise mesh.fsdp'


def _count_bytes(tree) -> int:
    """Bytes of unsharded arrays or shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _format_gigabytes(size: int) -> str:
    return f'{size / 1e9:,.1f}'
