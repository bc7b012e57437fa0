"""Reads a finished run: its result, its config and its trained parameters.

It can be read on any machine, without the devices, the teacher and the data set of the run.
"""

from typing import NamedTuple

import flax
import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from td_jax import config as config_lib
from td_jax.data import base as data
from td_jax.data import description
from td_jax.devices import platform, sharding
from td_jax.errors import UserError
from td_jax.files import checkpoints, workdir
from td_jax.models import base
from td_jax.training import assembly, data_record, dispatch, provenance, train_step

# Folders in a workdir: its checkpoints, and the workdir of a teacher that was trained for it.
CHECKPOINTS, TEACHER = 'checkpoints', 'teacher'
# Key in a checkpoint: the parameters of the best validation, and its metadata.
BEST = 'best'
# Optional keys of a result.json: with config.keep 'best', the step whose parameters are kept; for a run that
# config.patience ended early, True; with a probe, the accuracy of each seed's probe.
KEPT_STEP, ENDED_EARLY, PROBE = 'kept_step', 'ended_early', 'probe'
# The keys of every result.json.
RESULT_KEYS = (
    'method',
    'dataset',
    'metric',
    'split',
    'values',
    'mean',
    'stderr',
    'steps',
    'seeds',
    'teacher',
    'teacher_fingerprint',
    'versions',
)


class Errors(NamedTuple):
    """The errors of a run on each evaluation example."""

    values: np.ndarray  # [seeds, examples] float32: the squared error, or 1 if it is correct, else 0
    units: np.ndarray  # [examples], the number of each example's unit, such as a user


class FinishedRun(NamedTuple):
    """A finished run, with the parameters of one of its seeds."""

    config: ml_collections.ConfigDict
    source: data.Source  # from the run's record, without examples, or from the data set if asked for
    student: base.Model
    params: dict  # {STUDENT: tree, COMMUNICATION: tree} of numpy arrays, as in train_step
    teacher: dispatch.Teacher | None = None  # by teachers.load_finished_with_teacher


def read_result(folder: epath.Path) -> dict | None:
    """The content of a run's result.json, or None if it does not exist.

    Raises:
      UserError: the file is damaged.
    """
    path = folder / workdir.RESULT
    result = workdir.read_json(path)
    missing = [key for key in RESULT_KEYS if key not in result] if result is not None else []
    if missing:
        raise UserError(
            f'{path} is damaged, {", ".join(missing)} missing; delete it, and the same command makes it.'
        )
    return result


def is_finished(result: dict, num_steps: int) -> bool:
    """Whether a result is that of a run of `num_steps` steps, or of one that ended early."""
    return result['steps'] == num_steps or bool(result.get(ENDED_EARLY))


def write_errors(folder: epath.Path, values: np.ndarray, units: np.ndarray | None, result: dict):
    """Writes a run's errors into its workdir, before its result.

    Args:
      folder: its workdir.
      values: [seeds, examples] float32, of evaluation.Scores.
      units: [examples], of data.Source.
      result: its steps and seeds are stored with the errors.
    """
    units = np.arange(values.shape[1]) if units is None else units
    arrays = {'values': values, 'units': units, 'steps': result['steps'], 'seeds': result['seeds']}
    workdir.write_arrays(folder / workdir.ERRORS, arrays)


def read_errors(folder: epath.Path) -> Errors | None:
    """The errors of a finished run; None for a run on a stream or of an older version, which has none.

    Raises:
      UserError: the file is damaged, or does not belong to the run's result.
    """
    path, result = folder / workdir.ERRORS, read_result(folder)
    arrays = workdir.read_arrays(path)
    if arrays is None or result is None:
        return None
    try:
        values, units = arrays['values'], arrays['units']
        seeds, steps = arrays['seeds'].tolist(), arrays['steps'].tolist()
        is_right = values.shape == (len(seeds), len(units)) and np.isfinite(values).all()
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right or (seeds, steps) != (result['seeds'], result['steps']):
        raise UserError(
            f'{path} is damaged or does not belong to the {workdir.RESULT} next to it; delete '
            f'{workdir.RESULT}, and the same command makes both.'
        )
    return Errors(values, units)


def load(folder: epath.Path, seed_index: int = 0, with_examples: bool = False) -> FinishedRun:
    """Reads a finished run back.

    Args:
      folder: its workdir.
      seed_index: which of its seeds, counted from 0.
      with_examples: whether to read its source from the data set.

    Raises:
      UserError: there is no finished run or no such seed; its files do not fit each other; `with_examples` is
        set and its data have changed; or there is no device.
    """
    platform.start()
    stored, result = workdir.read_json(folder / workdir.CONFIG), read_result(folder)
    if stored is None or result is None:
        best = folder / workdir.BEST
        is_compared = workdir.holds_comparison(folder) and workdir.is_there(best / workdir.RESULT)
        raise UserError(
            f'{folder} is not the workdir of a finished run: {workdir.CONFIG} or {workdir.RESULT} is missing.'
            + (f' It is one of td_jax.compare, whose best student is in {best}.' if is_compared else '')
        )
    config = config_lib.from_json(stored)
    provenance.check_available(folder)
    config_lib.check(config)
    provenance.check(config, folder)
    if not 0 <= seed_index < config.num_seeds:
        raise UserError(
            f'--seed_index is {seed_index}, but {folder} has {config.num_seeds} seeds, counted from 0.'
        )
    source = read_source(config, folder, data_record.STUDENT, with_examples)
    student = assembly.build_model(config, config.model, source)
    params = read_parameters(folder, seed_index)
    try:
        check_fit(folder, params, assembly.parameter_shapes(config, config.model, source))
    except UserError as error:
        if data_record.read(folder) is not None:
            raise
        raise UserError(f'{str(error).rstrip(".")}; its data set may have changed since.') from error
    return FinishedRun(config, source, student, params)


def keeps_source(config, folder: epath.Path) -> bool:
    """Whether a run's record suffices to make inputs for its student, without its data set.

    The inputs of a caller's own data set are made by a function that only the caller has.
    """
    return config.dataset.name in description.RESTORED and data_record.read(folder) is not None


def read_source(config, folder: epath.Path, who: str, with_examples: bool = False) -> data.Source:
    """The data of a finished run.

    Args:
      config: of the run.
      folder: its workdir.
      who: data_record.STUDENT or TEACHER.
      with_examples: whether to read the data set, and to compare it with the run's record. A run whose
        record does not suffice always reads it.

    Raises:
      UserError: the data set cannot be read, or it has changed.
    """
    task = config.dataset if who == data_record.STUDENT else config.teacher.dataset
    record = data_record.read(folder)
    if keeps_source(config, folder) and not with_examples:
        return data_record.source_of(folder, record, who, config.dataset, task)
    source = assembly.load_source(config, task)
    data_record.check(folder, record, data_record.describe({who: source}, [record]))
    return source


def read_parameters(folder: epath.Path, seed_index: int, mesh: Mesh | None = None, prefix: str = '') -> dict:
    """The trained parameters of one seed of a finished run, {STUDENT: tree, COMMUNICATION: tree}.

    They are those of the last step, or, with config.keep 'best', of the step with the best validation.

    Args:
      folder: its workdir.
      seed_index: which of its seeds, counted from 0.
      mesh: the devices to shard them over as they are read; None for numpy arrays.
      prefix: reads only parameters whose names start with it, such as `student/`.

    Raises:
      UserError: the checkpoint of the last step is missing or cannot be read.
    """
    result, saved = read_result(folder), folder / CHECKPOINTS
    steps = result['steps']
    group = 'params/' if result.get(KEPT_STEP, steps) == steps else f'{BEST}/'
    try:
        parameter_shapes = {
            name: shape
            for name, shape in checkpoints.read_shapes(saved, steps).items()
            if name.startswith(f'{group}{prefix}')
        }
        if mesh:
            parameter_shapes = sharding.abstract_arrays(
                parameter_shapes, sharding.parameter_shardings(mesh, parameter_shapes, first_axis=1)
            )
        arrays = checkpoints.read(saved, steps, parameter_shapes)
    except checkpoints.Unreadable as error:
        raise UserError(
            f'{folder} has no readable checkpoint of its last step, {steps} ({error}); delete its '
            f'{workdir.RESULT} and train it again.'
        ) from error
    arrays = {name.removeprefix(group): array for name, array in arrays.items()}
    if mesh is None:
        of_seed = {name: array[seed_index] for name, array in arrays.items()}
    else:
        shapes = {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in arrays.items()}
        take = jax.jit(
            lambda arrays: {name: array[seed_index] for name, array in arrays.items()},
            out_shardings=sharding.parameter_shardings(mesh, shapes),
        )
        of_seed = take(arrays)
    return {
        train_step.STUDENT: {},
        train_step.COMMUNICATION: {},
        **flax.traverse_util.unflatten_dict(of_seed, sep='/'),
    }


def check_fit(folder: epath.Path, params: dict, shapes):
    """Refuses a student's parameters that do not fit its model.

    Args:
      folder: their workdir, for the message.
      params: by `read_parameters`.
      shapes: a tree of the model's shapes.

    Raises:
      UserError: names the first parameter that is missing or has another shape.
    """
    misfit = base.describe_misfit(params[train_step.STUDENT], shapes)
    if misfit:
        raise UserError(f'the checkpoint in {folder} does not fit its model: {misfit}.')
