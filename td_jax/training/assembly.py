"""Builds the parts of a run from its config: data, models and step."""

import jax

from td_jax import config as config_lib
from td_jax import randomness
from td_jax.data import SOURCES, images, unlabelled
from td_jax.data import base as data
from td_jax.devices import precision
from td_jax.method import objectives
from td_jax.models import MODELS, base
from td_jax.training import dispatch, train_step

# Classes of ImageNet-21k, which the public checkpoints predict.
PUBLIC_LABELS = 21_843


def load_source(config, task) -> data.Source:
    """The data of `config.dataset`, cut for a task: `config.dataset` or `config.teacher.dataset`.

    Raises:
      UserError: the data are missing, or cannot be used for training or evaluation.
    """
    load, is_student = SOURCES[config.dataset.name], task == config.dataset
    dataset = _make_read_dataset(config) if is_student else config.dataset
    task = dataset if is_student else task
    # td_jax's own data sets prepare the teacher's images, too, if they differ.
    has_views = dataset.name in images.NAMES and is_student
    source = load(dataset, task, *((of_teacher(config),) if has_views else ()))
    if is_student and dataset.unlabelled:
        source = unlabelled.add(source, dataset, of_teacher(config) if has_views else None)
    else:
        source = source._replace(unlabelled=None)
    data.check(source)
    return source


def _make_read_dataset(config):
    """config.dataset, without the examples without labels if no term reads them."""
    if config_lib.has_unlabelled(config) or not config.dataset.unlabelled:
        return config.dataset
    dataset = config.dataset.copy_and_resolve_references()
    dataset.unlabelled = ''
    return dataset


def of_teacher(config) -> images.TeacherViews | None:
    """The preprocessing of a teacher's images; None without a teacher, or if it is the student's."""
    if not config_lib.has_teacher(config):
        return None
    return images.make_teacher_views(config.dataset, config.teacher.dataset, config.teacher.inputs == 'clean')


def build_model(config, model_config, source: data.Source) -> base.Model:
    """The model of `config.model` or `config.teacher.model` for some data, exact by devices.precision."""
    build = MODELS[model_config.name]
    model = build(model_config, source.vocabularies, len(source.label_names), config.compute_dtype)
    functions = {name: getattr(model, name) for name in ('init', 'lower', 'upper', 'head')}
    return model._replace(**{name: precision.exact(function) for name, function in functions.items()})


def one_input(source: data.Source) -> dict:
    """A model's inputs for one training example, {name: [1, ...]}."""
    return source.inputs(source.tables, data.one_example(source), None)


def parameter_shapes(config, model_config, source: data.Source):
    """The shapes and types of a model's parameters; computes nothing."""
    model = build_model(config, model_config, source)
    return jax.eval_shape(lambda key: model.init(key, one_input(source)), jax.random.key(0))


def same_labels(student_source: data.Source, teacher_source: data.Source) -> bool:
    """Whether two models predict the same labels in the same order."""
    return tuple(student_source.label_names) == tuple(teacher_source.label_names)


def untrained_teacher(config, source: data.Source) -> dispatch.Teacher:
    """A teacher with the parameters that its own run starts from: random by teacher.seed, or the model's."""
    model = build_model(config, config.teacher.model, source)
    return dispatch.Teacher(model, source, model.init(teacher_key(config), one_input(source)))


def teacher_key(config):
    """The key of a teacher's initial parameters, the same as in its own run."""
    initial = dispatch.split_key(dispatch.make_key(config.teacher.seed, 'teacher')).initial
    return randomness.fold_name(initial, train_step.STUDENT)


def abstract_teacher(config, source: data.Source) -> dispatch.Teacher:
    """A teacher whose parameters are shapes."""
    model = build_model(config, config.teacher.model, source)
    return dispatch.Teacher(model, source, parameter_shapes(config, config.teacher.model, source))


def assemble(
    config,
    source: data.Source,
    teacher: dispatch.Teacher | None,
    mesh,
    traced: dispatch.Abstract | None = None,
    keep=None,
) -> dispatch.Dispatch:
    """Assembles the functions of a run.

    Args:
      config: of the run.
      source: the student's data.
      teacher: the frozen model, or None.
      mesh: the devices, by sharding.make_mesh.
      traced: by `abstract`, of the same run or of one that compiles the same; None traces the step again,
        which takes a while.
      keep: by teacher_outputs.make_keep, of the same run; None keeps no teacher outputs.
    """
    step, *parts = _make_parts(config, source, teacher, mesh)
    return dispatch.make_dispatch(traced or dispatch.make_abstract(step, *parts), *parts, keep)


def abstract(config, source: data.Source, teacher: dispatch.Teacher | None, mesh) -> dispatch.Abstract:
    """Makes what `assemble` compiles; any array may be a shape, and the devices need not exist."""
    return dispatch.make_abstract(*_make_parts(config, source, teacher, mesh))


def _make_parts(config, source, teacher, mesh):
    student = build_model(config, config.model, source)
    copies_head = teacher is not None and same_labels(source, teacher.source)
    num_labels = len(source.label_names)
    registers = teacher.model.registers if teacher else 0
    step = train_step.make_step(
        student,
        source.task,
        num_labels,
        config,
        copies_head=copies_head,
        teacher_registers=registers,
    )
    # Only the start, and not the step, of a student may depend on its teacher.
    step_teacher = teacher if objectives.reads_teacher(config) else None
    start = teacher.params if config.model.initial == 'teacher' else None
    return step, source, step_teacher, config, mesh, start


def abstract_images(config, mesh) -> dispatch.Abstract:
    """Makes what a run on images compiles, without its data, its checkpoint and its devices.

    Args:
      config: of the run, checked.
      mesh: the devices, by sharding.make_mesh.

    Raises:
      UserError: data other than images, or models that do not fit it.
    """
    dataset = _make_read_dataset(config)
    source = images.abstract_source(dataset, dataset, of_teacher(config))
    if not config_lib.has_teacher(config):
        return abstract(config, source, None, mesh)
    if config.teacher.pretrained:
        label_names = tuple(map(str, range(PUBLIC_LABELS)))
    else:
        label_names = images.abstract_source(config.dataset, config.teacher.dataset).label_names
    inputs = source.inputs_for(config.teacher.dataset)
    teacher_source = source._replace(label_names=label_names, inputs=inputs)
    objectives.check_labels(config, source.label_names, teacher_source.label_names)
    return abstract(config, source, abstract_teacher(config, teacher_source), mesh)
