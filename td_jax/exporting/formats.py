"""The formats that a student can be exported to."""

import os
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from td_jax.data import resizing
from td_jax.errors import UserError
from td_jax.exporting import comparison, onnx_model, saved_model, signature, stablehlo
from td_jax.files import workdir
from td_jax.models import resnet, vit
from td_jax.predicting import program
from td_jax.pretrained import bit, google, hugging_face, kinds, preprocessing
from td_jax.pretrained.architecture import Architecture, Preprocessing, ResNetArchitecture
from td_jax.training import assembly, teachers, train_step


def architecture_of(config, num_outputs: int) -> Architecture | ResNetArchitecture:
    """The architecture of config.model, a ResNet, or a ViT for images of config.dataset.image_size."""
    if config.model.name == 'resnet':
        return ResNetArchitecture(resnet.sizes_of(config.model), num_outputs)
    sizes, patch = vit.sizes_of(config.model)
    return Architecture(
        sizes,
        patch,
        config.dataset.image_size,
        num_outputs,
        config.model.activation,
        config.model.epsilon,
        config.model.pre_logits,
        config.model.registers,
        config.model.pooling,
    )


def check_format(name: str, config):
    """Refuses a format that cannot hold the student of a config.

    Raises:
      UserError: names the reason and the formats that can.
    """
    reasons = {key: format_.misfit(config) for key, format_ in FORMATS.items()}
    if reasons[name]:
        alternatives = ' or '.join(f'--format={key}' for key, reason in reasons.items() if not reason)
        raise UserError(f'--format={name} {reasons[name]}; use {alternatives}.')


def _explain_npz_misfit(config):
    model = config.model
    if model.name not in ('vit', 'resnet'):
        return f'is for a ViT or a ResNet, and this student is of model.name {model.name}'
    if model.name == 'resnet' and not resnet.sizes_of(model).bottleneck:
        return f'is for the ResNets of BiT, and this student is of model.variant {model.variant}'
    fixed_options = {
        'activation': google.ACTIVATION,
        'epsilon': google.EPSILON,
        'registers': 0,
        'pooling': 'class',
    }
    for key, value in fixed_options.items() if model.name == 'vit' else ():
        if model[key] != value:
            return f'means model.{key} {value}, and that of this student is {model[key]}'
    for key, value in google.PREPROCESSING.task_options().items():
        if config.dataset[key] != value:
            return f'means dataset.{key} {value}, and that of this student is {config.dataset[key]}'
    return None


def _explain_safetensors_misfit(config):
    model = config.model
    if model.name != 'vit':
        return f'is for a ViT, and this student is of model.name {model.name}'
    return kinds.kind_of(architecture_of(config, 1))[1] or None


class Format(NamedTuple):
    """A format of an exported student.

    default: name in the run's folder if there is no --output
    misfit(config) -> the reason why it cannot hold such a student, or None
    write(path, FinishedRun): writes the file or folder
    note(config) -> a remark for the user of the file, or None
    """

    default: str
    misfit: Callable
    write: Callable
    note: Callable = lambda config: None


def _write_npz(path, finished):
    module = bit if finished.config.model.name == 'resnet' else google
    module.write(path, _architecture(finished), _student_params(finished))


def _student_params(finished):
    return finished.params[train_step.STUDENT]


def _architecture(finished):
    return architecture_of(finished.config, len(finished.source.label_names))


def _preprocessing(finished):
    return Preprocessing(*(finished.config.dataset[key] for key in Preprocessing._fields))


def _make_safetensors_note(config):
    dataset = config.dataset
    if resizing.RESIZES[dataset.resize].is_pillow:
        return None
    return (
        f'{preprocessing.FILE} leaves resizing out: with dataset.resize={dataset.resize} this student was '
        'shown images that were resized without antialiasing, which Hugging Face does not do. Give it images '
        f'of {dataset.image_size} x {dataset.image_size} pixels, made by tf.image.resize.'
    )


def _make_onnx_note(config):
    if config.compute_dtype == 'float32':
        return None
    return f'The model computes in float32; in td_jax, this student computes in {config.compute_dtype}.'


def _with_signature(write, dtype=None):
    """Makes a Format.write that writes a folder with the program and its signature.

    Args:
      write: (folder, Program), writes only the program.
      dtype: of the computations; None for config.compute_dtype.
    """

    def write_all(folder, finished):
        config, source = finished.config, finished.source
        model, dtype_name = finished.student, dtype or config.compute_dtype
        if dtype_name != config.compute_dtype:
            config = config.copy_and_resolve_references()
            config.compute_dtype = dtype_name
            model = assembly.build_model(config, config.model, source)
        student_program = program.make_program(model, _student_params(finished), source)
        folder.mkdir()
        write(folder, student_program)
        student = f'{config.method} on {source.name}'
        properties = {
            'student': student,
            'computes_in': dtype_name,
            'batch': 'any number of examples from 1 on',
        }
        signature.write(folder, student_program, properties)

    return write_all


FORMATS = {
    'npz': Format('student.npz', _explain_npz_misfit, _write_npz),
    'safetensors': Format(
        'student_safetensors',
        _explain_safetensors_misfit,
        lambda path, run: hugging_face.write(
            path, _architecture(run), _preprocessing(run), _student_params(run), run.source.label_names
        ),
        _make_safetensors_note,
    ),
    'stablehlo': Format('student_stablehlo', lambda config: None, _with_signature(stablehlo.write)),
    'onnx': Format(
        'student_onnx', lambda config: None, _with_signature(onnx_model.write, 'float32'), _make_onnx_note
    ),
    'saved_model': Format('student_saved_model', lambda config: None, _with_signature(saved_model.write)),
}


def export(folder: epath.Path, name: str, output: epath.Path | None = None, seed_index: int = 0) -> str:
    """Writes the student of a run; never replaces an existing file or folder.

    Args:
      folder: workdir of the finished run.
      name: of FORMATS.
      output: file for npz, else folder; None for the default name in the run's folder.
      seed_index: which of the run's seeds, counted from 0.

    Returns:
      several lines: the path, a remark if there is one, and size and speed of student and teacher

    Raises:
      UserError: no finished run, a format that cannot hold its model, or an output that exists or cannot be
        written; nothing is written then.
    """
    path = output or folder / FORMATS[name].default
    if workdir.is_there(path) or os.path.islink(path):
        raise UserError(f'{path} is there already; delete it or choose another --output.')
    # A bucket has no real folders.
    if output and not workdir.is_in_bucket(path) and not path.parent.is_dir():
        raise UserError(f'--output {path} cannot be written: its folder is missing.')
    finished = teachers.load_finished_with_teacher(folder, seed_index)
    check_format(name, finished.config)
    size_table = comparison.render_table(finished)
    with workdir.atomic_write(path) as temporary:
        FORMATS[name].write(temporary, finished)
    messages = '\n'.join(filter(None, [str(path), FORMATS[name].note(finished.config)]))
    return f'{messages}\n\n{size_table}'
