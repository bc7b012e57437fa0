"""What a run needs of memory at the least, before any of it is there."""

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
    """Refuses a model whose parameters alone are larger than a device.

    Args:
      config: of the run.
      model_config: `config.model` or `config.teacher.model`.
      source: its data.
      num_seeds: how many of it there are side by side.
      mesh: the devices of the run.
      name: what a person calls it.

    Raises:
      UserError: says how many GB it takes and how many there are.
    """
    shapes = assembly.parameter_shapes(config, model_config, source)
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_seeds, *x.shape), x.dtype), shapes)
    placed = sharding.abstract(stacked, sharding.of_parameters(mesh, stacked, first_axis=1))
    _compare(mesh, {f'parameters of the {name}': (sharding.bytes_on_device(placed), _sizes(name))})


def check(config, source: data.Source, teacher: dispatch.Teacher | None, found: dispatch.Abstract, name: str):
    """Refuses a run that needs more than a device or this machine has.

    Counted is what has to be there all the time; gradients and what a step computes on its way come on top.

    Args:
      config: of the run.
      source: the student's data.
      teacher: its parameters may be shapes; None for a run without one.
      found: the run's step, by assembly.abstract.
      name: what a person calls who is trained: 'student', or 'teacher' where that is a run of its own.

    Raises:
      UserError: says how many GB of what it takes and how many there are.
    """
    state, constants = found.progress.state, found.constants
    mesh = jax.tree.leaves(state.step)[0].sharding.mesh
    # What there is -> (bytes, what to change where it is most of all).
    parts = {
        f'parameters of the {name}': (sharding.bytes_on_device(state.params), _sizes(name)),
        'optimizer state': (sharding.bytes_on_device(state.opt_state), _sizes(name)),
        'data': (
            sharding.bytes_on_device(
                (constants.train, constants.rows, constants.tables, constants.teacher_tables)
            ),
            _smaller_data(config),
        ),
        'teacher': (sharding.bytes_on_device(constants.teacher_params), _sizes('teacher')),
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
        # The one that is read, and those on their way.
        size = (1 + dispatch.IN_FLIGHT) * sharding.bytes_on_device(found.arguments[-1])
        parts['batches'] = size, 'lower batch_size, num_seeds or dataset.image_size'
    if teacher and objectives.reads_teacher(config):
        states = activations(config, config.teacher.model, teacher.source)
        if config.teacher.inputs == 'clean' and not is_streamed:
            parts["teacher's states"] = (
                data.count(constants.train) * _bytes(states),
                'set teacher.inputs to varied, which computes them in every step',
            )
        if objectives.has_probe(config):
            _check_probe(config, source, states)
        if config.method == 'td' and config.td.weights.interact:
            own = activations(config, config.model, source)
            rows = config.batch_size // (mesh.devices.size * config.micro_batches)
            # The backward pass of a round starts from what the round started from.
            carried = config.num_seeds * rows * _bytes((own.lower, own.upper, states.lower))
            parts['conversation'] = (
                max(config.td.rounds - 1, 0) * carried,
                'lower td.rounds or num_seeds, or raise micro_batches',
            )
    _compare(mesh, parts)
    # A checkpoint is written from a copy on the machine, of the parameters whole.
    best = state.params if config.keep == 'best' else ()
    _check_machine('a checkpoint of this run is', _bytes((state._replace(step=None), best)), _sizes(name))


@contextlib.contextmanager
def told():
    """Makes one line of what JAX raises where a device is full after all.

    Raises:
      UserError: instead of it.
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
    """The shapes and types of what a model computes for one example, nothing computed."""
    model = assembly.build_model(config, model_config, source)
    params = assembly.parameter_shapes(config, model_config, source)
    return jax.eval_shape(lambda params: base.activations(model, params, assembly.one_input(source)), params)


def _compare(mesh, parts):
    """Refuses parts {name: (bytes, remedy)} that are more than a device has together, the largest first."""
    needed, there = sum(size for size, _ in parts.values()), memory.of_device(mesh.local_devices[0])
    if needed <= there:
        return
    largest = sorted(parts, key=lambda part: parts[part][0], reverse=True)
    shown = ', '.join(f'{part} {_gigabytes(parts[part][0])}' for part in largest[:3])
    raise UserError(
        f'this run needs at least {_gigabytes(needed)} GB on a device that has {_gigabytes(there)} GB '
        f'({shown}): {parts[largest[0]][1]}.'
    )


def _check_probe(config, source, states):
    """Refuses a probe whose representations of all training examples are too large to be kept."""
    count = data.count(source.train)
    needed = 4 * count * jax.eval_shape(base.read_by_head, states.upper).shape[-1]
    if needed > config.teacher.probe_gb * 1e9:
        raise UserError(
            f'teacher.labels is probe, which keeps what the teacher makes of {count} training examples '
            f'while it is fitted, {_gigabytes(needed)} GB, but teacher.probe_gb is '
            f'{config.teacher.probe_gb}: raise it, or set teacher.labels to auxiliary.'
        )


def _check_machine(what, needed, remedy):
    """Refuses what is larger than the memory of this machine."""
    there = memory.of_machine()
    if needed > there:
        raise UserError(
            f'{what} {_gigabytes(needed)} GB, but this machine has {_gigabytes(there)} GB of memory: '
            f'{remedy}.'
        )


def _smaller_data(config):
    if config.dataset.name in images.KEPT:
        return 'lower dataset.kept_gb, which streams images that take more'
    return 'take a smaller part of the data'


def _sizes(name):
    model = 'num_seeds or the sizes of model and communication'
    return f'lower {model if name == "student" else "the sizes of teacher.model"}, or raise mesh.fsdp'


def _bytes(tree) -> int:
    """Bytes of arrays or shapes, whole."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _gigabytes(size: int) -> str:
    return f'{size / 1e9:,.1f}'
