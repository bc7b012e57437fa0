"""All checks of a run, before anything is written or trained."""

import os
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from td_jax import config as config_lib
from td_jax.data import base as data
from td_jax.data import images
from td_jax.devices import processes, sharding
from td_jax.errors import Missing, UserError
from td_jax.files import checkpoints, trackers, workdir
from td_jax.method import objectives
from td_jax.models import base, vit
from td_jax.training import (
    assembly,
    data_record,
    dispatch,
    evaluation,
    finished,
    memory,
    provenance,
    teachers,
)
from td_jax.training.programs import Programs


class Plan(NamedTuple):
    """The parts of a checked run."""

    mesh: Mesh
    source: data.Source
    teacher_source: data.Source | None  # None where there is no teacher
    compiled: 'Compiled'  # the programs of its loop
    teacher: dispatch.Teacher | None = None  # None without a teacher, or if it has to be trained first
    # Its training data, and their record by data_record.describe.
    sources: Mapping[str, data.Source] = types.MappingProxyType({})
    record: Mapping[str, dict] = types.MappingProxyType({})


class Compiled(NamedTuple):
    """The programs of a loop."""

    step: dispatch.Abstract
    values: Callable[..., jax.Array]  # by evaluation.make_values, of the student


def check(config, folder: epath.Path, programs: Programs) -> Plan:
    """Checks a run in all processes together; writes nothing.

    Args:
      config: every option, checked by td_jax.config.check.
      folder: its workdir.
      programs: the cache of earlier runs, to which this run is added.

    Raises:
      UserError: the run cannot work; the message says what to change.
    """
    mesh = sharding.make_mesh(config)
    processes.call_on_main(lambda: trackers.check(config.tracking))
    # No process waits for others inside: one that sees another disk would block them.
    plan = processes.check_together(lambda: _check_alone(config, folder, mesh, programs))
    sources = _select_sources(config, plan.source, plan.teacher_source)
    record = _describe_data(config, folder, sources)
    processes.call_on_main(lambda: check_workdir(config, folder, record))
    data_record.say_unknown(sources)
    plan = plan._replace(sources=sources, record=record)
    if not plan.teacher_source:
        return plan
    is_run = config_lib.trains_teacher(config)
    if is_run and not config.teacher.checkpoint:
        expected, teacher_record = (
            config_lib.teacher_run(config),
            {data_record.STUDENT: record[data_record.TEACHER]},
        )
        processes.call_on_main(lambda: check_workdir(expected, folder / finished.TEACHER, teacher_record))
        return plan
    if is_run:
        processes.call_on_main(lambda: _check_data_of_teacher(config, folder, record))
    # Only now: if the data have changed, parameters that do not fit them are not damaged.
    teacher = processes.check_together(lambda: teachers.load(config, folder, plan.teacher_source, mesh))
    return plan._replace(teacher=teacher)


def _check_alone(config, folder, mesh, programs) -> Plan:
    source = assembly.load_source(config, config.dataset)
    check_batch(config, source)
    _check_unlabelled(config, source, mesh)
    _check_task(config, source)
    assembly.build_model(config, config.model, source)
    if not config_lib.has_teacher(config):
        return Plan(mesh, source, None, _check_step(config, source, None, mesh, 'student', programs))
    teacher_source = _check_teacher(config, folder, source)
    compiled = _check_step(config, source, teacher_source, mesh, 'student', programs)
    if config_lib.trains_teacher(config) and not config.teacher.checkpoint:
        own = _own_source(config, teacher_source)
        _check_step(config_lib.teacher_run(config), own, None, mesh, 'teacher', programs)
    return Plan(mesh, source, teacher_source, compiled)


def _select_sources(config, source, teacher_source):
    """The training data of a run, of which it keeps a record; those of a public checkpoint are unknown."""
    if teacher_source is None or config.teacher.pretrained:
        return {data_record.STUDENT: source}
    return {data_record.STUDENT: source, data_record.TEACHER: _own_source(config, teacher_source)}


def _describe_data(config, folder, sources):
    """Describes data in process 0; refuses a process that sees other data."""
    places = [folder, *([teachers.folder_of(config, folder)] if data_record.TEACHER in sources else [])]
    record = processes.call_on_main(
        lambda: data_record.describe(sources, [data_record.read(place) for place in places])
    )
    if jax.process_count() > 1:
        # Not every process reads files that look the same.
        own = processes.check_together(lambda: data_record.describe(sources, [record]))
        processes.check_together(lambda: data_record.check_same(record, own))
    return record


def _check_data_of_teacher(config, folder, record):
    place = teachers.folder_of(config, folder)
    data_record.check_teacher(place, data_record.read(place), record[data_record.TEACHER])


def check_workdir(config, folder: epath.Path, record: Mapping[str, dict] | None = None) -> dict | None:
    """Compares a run with the one in its workdir; -> the result if the run is finished, else None.

    Args:
      config: of the run.
      folder: its workdir.
      record: of its data, by data_record.describe. With None, the data of a finished run are read and
        compared, with a message if they are missing; those of an unfinished run are compared later.

    Raises:
      UserError: the folder holds a run of another config or on other data, or cannot be written; or the
        config has another protocol.
    """
    if config.protocol != config_lib.PROTOCOL:
        raise UserError(
            f'protocol is {config.protocol}, but this version of td_jax trains by protocol '
            f'{config_lib.PROTOCOL} alone; leave it out.'
        )
    saved = folder / finished.CHECKPOINTS
    is_local = not workdir.is_in_bucket(saved)
    if is_local and saved.exists() and not os.access(saved, os.W_OK):
        raise UserError(f'{saved} cannot be written; make it so, or choose another --workdir.')
    provenance.check(config, folder)
    stored = workdir.read_json(folder / workdir.CONFIG)
    if stored is None:
        if checkpoints.holds_any(saved):
            raise UserError(
                f'{folder} holds {finished.CHECKPOINTS} but no {workdir.CONFIG} to say of what; '
                'choose another --workdir.'
            )
        if workdir.holds_comparison(folder):
            raise UserError(f'{folder} is a workdir of td_jax.compare; choose another --workdir.')
        return None
    before = config_lib.complete(stored)
    if before['protocol'] != config.protocol:
        raise UserError(
            f'{folder} holds a run by another protocol ({before["protocol"]} there, {config.protocol} here): '
            'that version of td_jax draws other random numbers. Choose another --workdir.'
        )
    changed, old_steps = config_lib.differences(config, stored), before['num_steps']
    if isinstance(old_steps, int):
        changed.pop('num_steps', None)
    if changed:
        raise UserError(
            f'{folder} holds a run with another config: {config_lib.describe(changed)}. '
            'Choose another --workdir, or set these back.'
        )
    if old_steps > config.num_steps:
        raise UserError(
            f'{folder} holds a run of {old_steps} steps, which is more than num_steps={config.num_steps}; '
            'choose another --workdir.'
        )
    beyond = [step for step in checkpoints.steps(saved) if step > config.num_steps]
    if beyond:
        raise UserError(
            f'{saved} has a checkpoint of step {beyond[-1]}, which is beyond num_steps={config.num_steps}; '
            'delete it, or choose another --workdir.'
        )
    result = finished.read_result(folder)
    if not result or not finished.is_finished(result, config.num_steps):
        if record:
            data_record.check(folder, data_record.read(folder), record)
        return None
    _check_data_of_result(config, folder, record)
    _check_teacher_of_result(config, folder, stored, result)
    return result


def _check_data_of_result(config, folder, record):
    """Refuses the result of a run whose data have changed; reports if they are missing."""
    before = data_record.read(folder)
    if before is None:
        data_record.say_old(folder)
        return
    try:
        record = record or _describe_current_data(config, before)
    except Missing as error:
        processes.say(f'{folder} is finished; whether its data have changed is not known: {error}')
        return
    data_record.check(folder, before, record)


def _describe_current_data(config, known):
    source, teacher_source = assembly.load_source(config, config.dataset), None
    if config_lib.has_teacher(config) and not config.teacher.pretrained:
        teacher_source = teachers.source_of(config, source)
    return data_record.describe(_select_sources(config, source, teacher_source), [known])


def _check_teacher_of_result(config, folder, stored, result):
    """Refuses the result of a run that had another teacher than the config.

    A teacher in the same place counts as the same; one whose parameters its model brings has no place.
    """
    places = ('teacher.checkpoint', 'teacher.pretrained')
    before, now = config_lib.complete(stored), config_lib.flatten(config)
    changed_places = {place: (before[place], now[place]) for place in places if before[place] != now[place]}
    if not config_lib.has_teacher(config) or not (changed_places or config.teacher.num_steps == 0):
        return
    is_there = not config_lib.trains_teacher(config) or config.teacher.checkpoint
    if is_there or teachers.folder_of(config, folder).exists():
        source = teachers.source_of(config, assembly.load_source(config, config.dataset))
        teacher = teachers.load_existing(config, folder, source)
        if teachers.is_same_teacher(teacher, result):
            return
    other = config_lib.describe(changed_places) if changed_places else 'teacher.model brings other parameters'
    raise UserError(
        f'{folder} holds a run with another teacher: {other}. '
        'Choose another --workdir, or name the teacher that it had.'
    )


def check_batch(config, source: data.Source):
    """Refuses a batch that is larger than the training data of a run.

    Raises:
      UserError: it is.
    """
    count = data.count(source.train)
    if config.batch_size > count:
        raise UserError(
            f'batch_size is {config.batch_size}, but {source.name} has {count} training examples; '
            'lower batch_size.'
        )


def _check_unlabelled(config, source, mesh):
    """Refuses a batch of examples without labels that is too large, or that cannot be cut."""
    size = dispatch.unlabelled_batch_size(source, config)
    if not size:
        return
    what = f'unlabelled_batch_size is {size}' if config.unlabelled_batch_size else f'batch_size is {size}'
    if size > source.unlabelled.count:
        raise UserError(
            f'{what}, but there are {source.unlabelled.count} examples without labels; set '
            'unlabelled_batch_size to at most as many.'
        )
    devices = mesh.devices.size
    parts = devices * config.micro_batches
    if size % parts:
        raise UserError(
            f'{what}, which {devices} device{"s" if devices > 1 else ""} times micro_batches='
            f'{config.micro_batches} do not divide; choose a multiple of {parts}.'
        )


def _check_task(config, source):
    """Refuses a method, or a comparison of predictions, that does not fit the student's task."""
    tasks = objectives.METHODS[config.method].tasks
    if source.task not in tasks:
        raise UserError(
            f'method {config.method} compares probabilities of classes, but {source.name} is {source.task}; '
            'use a method for every task, such as ld.'
        )
    if source.task == 'classification' and len(source.label_names) < 2:
        raise UserError(
            f'{source.name} has one class, so there is nothing to learn; name two or more in dataset.classes.'
        )
    compares = objectives.reads(config, 'bridged_logits') and source.task != 'classification'
    if compares and config.logits.distance == 'kl':
        raise UserError(
            f'logits.distance kl compares distributions over classes, but {source.name} is '
            f'{source.task}; set logits.distance to l2.'
        )
    if compares and config.teacher.labels == 'probe':
        raise UserError(
            f'teacher.labels probe learns classes, but {source.name} is {source.task}; '
            'set teacher.labels to shared or auxiliary.'
        )


def _check_teacher(config, folder, student_source) -> data.Source:
    """Refuses a teacher that cannot be used; -> its data."""
    source = teachers.source_of(config, student_source)
    with teachers.prefix_errors('teacher.'):
        assembly.build_model(config, config.teacher.model, source)
    objectives.check_labels(config, student_source.label_names, source.label_names)
    if dispatch.keeps_states(config) and isinstance(student_source.train, data.TrainStream):
        is_clean = config.teacher.inputs == 'clean'
        option, way_out = (
            ('teacher.inputs is clean', 'teacher.inputs to varied')
            if is_clean
            else (f'teacher.views is {config.teacher.views}', 'teacher.views to 0')
        )
        raise UserError(
            f"{option}, which keeps the teacher's states of all examples, but "
            f'{student_source.name} streams from disk; set {way_out}.'
        )
    streams = isinstance(student_source.train, data.TrainStream)
    if objectives.has_probe(config) and streams and not student_source.train.pass_over:
        raise UserError(
            'teacher.labels is probe, which is fitted to a pass over the training examples, but the stream '
            f'of {student_source.name} has no pass_over; set teacher.labels to shared or auxiliary.'
        )
    if config.teacher.checkpoint:
        place = teachers.folder_of(config, folder)
        teachers.check_run(config, place)
        _warn_of_same_start(config, place)
    elif config_lib.trains_teacher(config):
        check_batch(config_lib.teacher_run(config), _own_source(config, source))
    if config.model.initial == 'teacher':
        _check_start(config, student_source, source)
    return source


def _warn_of_same_start(config, folder):
    """Warns of a teacher that starts from the random numbers of one of its students."""
    stored = config_lib.complete(workdir.read_json(folder / workdir.CONFIG))
    seed, is_alike = stored['seed'], all(stored[key] == config[key] for key in ('protocol', 'role'))
    if is_alike and seed in dispatch.seeds(config):
        processes.say(
            f'warning: the student of seed {seed} starts from the same random numbers as its teacher '
            f'{folder}, a run of role {config.role}; train a teacher with role=teacher.'
        )


def _own_source(config, teacher_source):
    """The training data of a teacher, which differ if its images are preprocessed differently."""
    return teacher_source if assembly.of_teacher(config) is None else teachers.own_source(config)


def _check_start(config, student_source, teacher_source):
    """Refuses a student that cannot start from its teacher."""
    start = assembly.parameter_shapes(config, config.teacher.model, teacher_source)
    initial = assembly.parameter_shapes(config, config.model, student_source)
    base.start_from_teacher(start, initial, copies_head=assembly.same_labels(student_source, teacher_source))
    # Options that change what the same parameters compute.
    keys = []
    if config.model.name == 'vit':
        keys += ['model.activation', 'model.epsilon']
    if config.dataset.name in images.NAMES:
        keys += ['dataset.image_mean', 'dataset.image_std']
    flat = config_lib.flatten(config)
    changed = {key: (flat[f'teacher.{key}'], flat[key]) for key in keys}
    changed = {key: values for key, values in changed.items() if values[0] != values[1]}
    if changed:
        different = ', '.join(
            f'{key} is {own} and teacher.{key} {teacher_value}'
            for key, (teacher_value, own) in changed.items()
        )
        settings = ' '.join(
            f'{key}={str(teacher_value).replace(" ", "")}' for key, (teacher_value, _) in changed.items()
        )
        raise UserError(
            f'model.initial is teacher, but {different}, with which the same parameters compute something '
            f'else; set {settings}, or model.initial=random.'
        )
    _warn_of_more_blocks(config)


def _warn_of_more_blocks(config):
    """Warns of a ViT that starts from one with fewer blocks."""
    if config.model.name == config.teacher.model.name == 'vit':
        own, count = (vit.sizes_of(model)[0].layers for model in (config.model, config.teacher.model))
        if own > count:
            processes.say(
                f'warning: the student has {own} blocks and the teacher that it starts from {count}. The '
                'others start from random parameters; lower model.layers or set model.initial to random.'
            )


def _check_step(config, source, teacher_source, mesh, name, programs) -> Compiled:
    """Refuses a step that cannot be computed or does not fit in memory: traces it, computes nothing.

    A step that compiles like that of an earlier run has passed already.
    """

    def make():
        try:
            step = _trace_step(config, source, teacher_source, mesh, name)
        # JAX raises these where shapes do not fit each other, or sizes overflow.
        except (TypeError, ValueError, OverflowError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f'method {config.method} cannot be computed for the models as they are: {reason[:300]}'
            ) from error
        student = assembly.build_model(config, config.model, source)
        return Compiled(step, evaluation.make_values(student, source, mesh))

    return programs.get_or_make(config, source, teacher_source, mesh, make)


def _trace_step(config, source, teacher_source, mesh, name):
    _check_trainable(config, source, name)
    memory.check_parameters(config, config.model, source, num_seeds=config.num_seeds, mesh=mesh, name=name)
    teacher = None
    if teacher_source:
        memory.check_parameters(
            config, config.teacher.model, teacher_source, num_seeds=1, mesh=mesh, name='teacher'
        )
        teacher = assembly.abstract_teacher(config, teacher_source)
        _check_outputs(config, config.teacher.model, teacher_source, 'teacher.model.name')
    abstract = assembly.abstract(config, source, teacher, mesh)
    memory.check(config, source, teacher, abstract, name)
    return abstract


def _check_trainable(config, source, name):
    """Refuses a model that a caller brings and that cannot be trained, as a student or as a teacher."""
    prefix = 'teacher.' if name == 'teacher' else ''
    key = f'{prefix}model.name'
    model = assembly.build_model(config, config.model, source)
    if not base.is_trainable(model, assembly.parameter_shapes(config, config.model, source)):
        way_out = (
            'set teacher.num_steps=0, and it teaches as it is.'
            if prefix
            else 'for a student take a model with GroupNorm or LayerNorm.'
        )
        raise UserError(
            f'{key} is {config.model.name}, which has state that training would have to update, such as the '
            f'statistics of BatchNorm, or comes from Keras, and can only teach: {way_out}'
        )
    _check_outputs(config, config.model, source, key)


def _check_outputs(config, model_config, source, key):
    """Refuses a model that a caller brings and that predicts something else than the labels of its data."""
    if model_config.name in config_lib.MODEL_OPTIONS:
        return
    model = assembly.build_model(config, model_config, source)
    shapes, inputs = assembly.parameter_shapes(config, model_config, source), assembly.one_input(source)
    logits = jax.eval_shape(lambda params: base.activations(model, params, inputs).logits, shapes)
    expected = 1, len(source.label_names)
    if logits.shape != expected:
        raise UserError(
            f'{key} is {model_config.name}, which predicts {list(logits.shape)} of one example, but '
            f'{source.name} takes {list(expected)}: make its head of num_outputs.'
        )
