"""Loads a teacher: from a finished run, from a public checkpoint, or untrained as a control."""

import contextlib
import math

import flax
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from td_jax import config as config_lib
from td_jax import pretrained, randomness
from td_jax.data import base as data
from td_jax.devices import fingerprint, processes, sharding
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.method import objectives
from td_jax.pretrained import architecture, fit, labels
from td_jax.training import (
    assembly,
    data_record,
    dispatch,
    evaluation,
    finished,
    provenance,
    train_step,
)


def pretrained_source(config, student_source: data.Source) -> data.Source:
    """The student's data with the labels and the inputs of a public checkpoint.

    If the checkpoint names the student's labels, in any order, the labels are the student's. If it names none
    but has as many, they are assumed to be the student's. A checkpoint without a head has no labels.

    Args:
      config: of the student's run.
      student_source: its data.

    Raises:
      UserError: there is no such checkpoint, or its architecture or preprocessing is not that of
        `config.teacher.model`, `config.teacher.dataset` and `config.dataset`.
    """
    checkpoint = pretrained.read(config.teacher.pretrained)
    architecture.check_teacher(checkpoint, config)
    names = labels.output_names(checkpoint, student_source.label_names)
    if student_source.inputs_for:
        inputs = student_source.inputs_for(config.teacher.dataset)
        return student_source._replace(label_names=names, inputs=inputs)
    # A caller's own data set makes the teacher's inputs itself.
    task = config.dataset.copy_and_resolve_references()
    own = {
        key: config.teacher.dataset[key] for key in ('image_mean', 'image_std', *config_lib.INHERITED_KEYS)
    }
    task.update({key: value for key, value in own.items() if value})
    inputs = assembly.load_source(config, task).inputs if task != config.dataset else student_source.inputs
    return student_source._replace(label_names=names, inputs=inputs)


def source_of(config, student_source: data.Source) -> data.Source:
    """The data of a config's teacher, with the labels that it was trained on."""
    if config.teacher.pretrained:
        return pretrained_source(config, student_source)
    return _adapt_source(config, student_source, own_source(config))


def _adapt_source(config, student_source, teacher_source):
    """The data of a trained teacher, with its inputs for the examples of its student."""
    if assembly.of_teacher(config) is None or student_source.inputs_for is None:
        return teacher_source
    # Examples hold the teacher's images in addition to the student's.
    inputs = student_source.inputs_for(config.teacher.dataset)
    return student_source._replace(
        name=teacher_source.name, label_names=teacher_source.label_names, inputs=inputs
    )


def own_source(config) -> data.Source:
    """The training data of a teacher that is trained by td_jax."""
    with prefix_errors('teacher.'):
        if assembly.of_teacher(config) is None:
            return assembly.load_source(config, config.teacher.dataset)
        run = config_lib.teacher_run(config)
        return assembly.load_source(run, run.dataset)


def _describe_unnamed_labels(checkpoint, source):
    """Describes the assumption about labels without names; '' if they have names, or there are none."""
    count = checkpoint.architecture.num_outputs
    if not count or checkpoint.label_names or source.label_names == labels.placeholder_names(count):
        return ''
    return f'its {count} labels have no names and are taken to be {objectives.preview(source.label_names)}'


@contextlib.contextmanager
def prefix_errors(prefix: str):
    """Puts a prefix, such as 'teacher.', in front of UserErrors of the block, which start with a key."""
    try:
        yield
    except UserError as error:
        raise type(error)(f'{prefix}{error}') from error


def folder_of(config, folder: epath.Path) -> epath.Path:
    """The workdir of a teacher: the one named by the config, or a folder in the student's."""
    if config.teacher.checkpoint:
        return workdir.resolve(config.teacher.checkpoint)
    return folder / finished.TEACHER


@randomness.same_everywhere()
def load(config, folder: epath.Path, source: data.Source, mesh: Mesh | None = None) -> dispatch.Teacher:
    """Loads a config's teacher: a finished run, a public checkpoint, or untrained parameters.

    Each process reads for itself, and a device only ever holds its shards of the parameters.

    Args:
      config: of the student's run.
      folder: workdir of the student's run.
      source: the teacher's data, by `source_of`.
      mesh: the devices to shard its parameters over; None for numpy arrays.

    Raises:
      UserError: it cannot be read, or it does not fit its model.
    """
    model = assembly.build_model(config, config.teacher.model, source)
    shapes = assembly.parameter_shapes(config, config.teacher.model, source)
    if config.teacher.pretrained:
        checkpoint = labels.reorder_head(pretrained.read(config.teacher.pretrained), source.label_names)
        params, report = fit.fit(checkpoint, shapes)
        messages = [fit.describe(report), checkpoint.assumed, _describe_unnamed_labels(checkpoint, source)]
        processes.say(f'{config.teacher.pretrained}: ' + '\n'.join(filter(None, messages)))
        params = _fill_initial(params, report.initialised, config, model, source)
        if mesh:
            params = sharding.place(params, sharding.parameter_shardings(mesh, params))
        return dispatch.Teacher(model, source, params)
    if config.teacher.control == 'untrained':
        placed = sharding.parameter_shardings(mesh, shapes) if mesh else None
        initial = jax.jit(lambda: assembly.untrained_teacher(config, source).params, out_shardings=placed)
        params = initial() if mesh else jax.tree.map(np.asarray, initial())
        return dispatch.Teacher(model, source, params)
    if config.teacher.num_steps == 0:
        # Not compiled: parameters that a model has would become constants of the program.
        params = assembly.untrained_teacher(config, source).params
        if mesh:
            params = sharding.place(params, sharding.parameter_shardings(mesh, params))
        _check_finite(params, 'teacher.model')
        return dispatch.Teacher(model, source, params)
    place = folder_of(config, folder)
    with prefix_errors('the teacher: '):
        # Of a run with several seeds, the first is the teacher.
        params = finished.read_parameters(place, 0, mesh, f'{train_step.STUDENT}/')
        finished.check_fit(place, params, shapes)
    _check_finite(params[train_step.STUDENT], f'the teacher in {place}')
    return dispatch.Teacher(model, source, params[train_step.STUDENT])


def _check_finite(params, place):
    """Refuses parameters that are not finite, as far as this process sees them."""
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        shards = [shard.data for shard in getattr(array, 'addressable_shards', ())] or [array]
        if not all(np.isfinite(np.asarray(shard)).all() for shard in shards):
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise UserError(f'{place} cannot teach: its parameter {name} is not finite.')


def _fill_initial(params, names, config, model, source):
    """Fills in the named parameters with those of a new model, and computes only these."""

    @jax.jit
    def compute_initial(key):
        initial_params = flax.traverse_util.flatten_dict(model.init(key, assembly.one_input(source)), sep='/')
        return {name: initial_params[name] for name in names}

    flat = flax.traverse_util.flatten_dict(params, sep='/')
    initial_params = jax.tree.map(np.asarray, compute_initial(assembly.teacher_key(config)))
    return flax.traverse_util.unflatten_dict({**flat, **initial_params}, sep='/')


def load_existing(config, folder: epath.Path, source: data.Source) -> dispatch.Teacher:
    """Loads the teacher of a run that was trained before, from the place in its config.

    Args:
      config: of the student's run.
      folder: workdir of the student's run.
      source: the teacher's data, by `source_of`.

    Raises:
      UserError: it is missing, not finished, or does not fit the config.
    """
    if config_lib.trains_teacher(config):
        check_run(config, folder_of(config, folder))
    return load(config, folder, source)


def is_same_teacher(teacher: dispatch.Teacher, result: dict) -> bool:
    """Whether a run's result has this teacher's fingerprint."""
    return fingerprint.of(teacher.params) == result['teacher_fingerprint']


def load_finished_with_teacher(
    folder: epath.Path, seed_index: int = 0, with_examples: bool = False
) -> finished.FinishedRun:
    """Loads a finished run together with its teacher.

    A teacher that is missing in its place is looked for under its name in the folder of the run, because runs
    may be moved together.

    Args:
      folder: its workdir.
      seed_index: which of its seeds, counted from 0.
      with_examples: whether to read the examples of both from the data set.

    Raises:
      UserError: what `finished.load` raises, or the teacher is missing or has changed.
    """
    run = finished.load(folder, seed_index, with_examples)
    if not config_lib.has_teacher(run.config):
        return run
    place = folder_of(run.config, folder)
    moved_place = folder.parent / place.name
    if config_lib.trains_teacher(run.config) and not place.exists() and moved_place.exists():
        run.config.teacher.checkpoint = str(moved_place)
    teacher = load_existing(run.config, folder, _load_teacher_source(run, folder, with_examples))
    if not is_same_teacher(teacher, finished.read_result(folder)):
        where = run.config.teacher.pretrained or folder_of(run.config, folder)
        raise UserError(
            f'the teacher in {where} is not the one that taught {folder}; put that one there again.'
        )
    return run._replace(teacher=teacher)


def _load_teacher_source(run, folder, with_examples):
    """The data of the teacher of a finished run."""
    if run.config.teacher.pretrained:
        return pretrained_source(run.config, run.source)
    own = finished.read_source(run.config, folder, data_record.TEACHER, with_examples)
    return _adapt_source(run.config, run.source, own)


def check_run(config, folder: epath.Path):
    """Refuses a folder that is not the finished run of a config's teacher.

    Raises:
      UserError: it holds no finished run, or the run has another architecture, data set or split.
    """
    expected = config_lib.teacher_run(config)
    stored, result = workdir.read_json(folder / workdir.CONFIG), finished.read_result(folder)
    if stored is None or result is None:
        raise UserError(
            f'teacher.checkpoint {folder} is not the workdir of a finished run: {workdir.CONFIG} or '
            f'{workdir.RESULT} is missing.'
        )
    provenance.check(expected, folder)
    steps = config_lib.complete(stored)['num_steps']
    if not finished.is_finished(result, steps):
        raise UserError(f'teacher.checkpoint {folder} is not finished: {result["steps"]} of {steps} steps.')
    parts = ('model.', 'dataset.', 'method')
    changed = {
        key: values
        for key, values in config_lib.differences(expected, stored).items()
        if key.startswith(parts)
    }
    if changed:
        raise UserError(
            f'teacher.checkpoint {folder} does not fit teacher.model, teacher.dataset and dataset: '
            f'{config_lib.describe(changed)}.'
        )


def describe(config, teacher: dispatch.Teacher | None, student_source: data.Source, mesh) -> dict:
    """Describes a teacher for results and checkpoints: {'fingerprint': ..., 'score': ...}.

    The score is its metric on the student's task, or None if it predicts other labels. Without a teacher,
    both are None.

    Raises:
      UserError: the score is not finite.
    """
    if teacher is None:
        return {'fingerprint': None, 'score': None}
    score = None
    if assembly.same_labels(student_source, teacher.source):
        evaluate = evaluation.make_evaluation(teacher.model, teacher.source, config.eval_batch_size, mesh)
        shapes = jax.eval_shape(_add_seed_axis, teacher.params)
        stacked_params = jax.jit(
            _add_seed_axis, out_shardings=sharding.parameter_shardings(mesh, shapes, first_axis=1)
        )
        score = float(evaluate(stacked_params(teacher.params), student_source.evaluation).metric[0])
        if not math.isfinite(score):
            raise UserError(
                f'the teacher cannot teach: its {evaluation.METRICS[teacher.source.task][0]} on '
                f'{student_source.name} is {score}. Choose another teacher.checkpoint or teacher.pretrained, '
                'or train one with a lower teacher.optimizer.learning_rate.'
            )
    return {'fingerprint': fingerprint.of(teacher.params), 'score': score}


def _add_seed_axis(params):
    """Parameters with an axis of one seed in front."""
    return jax.tree.map(lambda leaf: leaf[None], params)
