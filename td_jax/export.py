"""Writes the student of a finished run alone, in a format that others read.

    python -m td_jax.export --workdir=RUN --format=npz|safetensors|stablehlo

npz: the names of google-research/vision_transformer, for a ViT whose activation and LayerNorm epsilon are
those of that code, which has no place to say others.

safetensors: the folder of a Hugging Face ViTForImageClassification, for a ViT without pre-logits.

stablehlo: a program with its parameters in it, for any model. `jax.export.deserialize(bytes).call(images)`
gives the logits [batch, outputs] of any number of images [batch, height, width, 3]. They are what the model
is shown in an evaluation: float32, resized to dataset.image_size and normalised, from -1 to 1 for a ViT. The
images of an MLP are [batch, pixels]. A model with several inputs takes them as {name: [batch, ...]}.
"""

import contextlib
import json
import os
import pathlib
import tempfile
import time
from typing import NamedTuple

import flax
import jax
import jax.export
import numpy as np
from absl import flags

from td_jax import command_line, pretrained
from td_jax.data import base as data
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.models import base, vit
from td_jax.training import finished as finished_runs
from td_jax.training import teachers, train_step

# Where a StableHLO program runs.
PLATFORMS = ('cpu', 'cuda', 'tpu')
# Our activations in the words of Hugging Face.
HF_ACTIVATIONS = {'gelu': 'gelu', 'gelu_tanh': 'gelu_pytorch_tanh'}
# What reads google-research/vision_transformer's files takes for granted.
GOOGLE_ACTIVATION, GOOGLE_EPSILON = 'gelu_tanh', 1e-6
# Images at once, as they are timed; the best of so many repeats, or of what fits into so many seconds.
BATCHES = (1, 32)
REPEATS, SECONDS = 50, 2.0


# --- The formats -----------------------------------------------------------------------------------


def architecture_of(config, num_outputs: int) -> pretrained.Architecture:
    """What config.model says of a ViT for images of config.dataset.image_size."""
    sizes, patch = vit.sizes_of(config.model)
    return pretrained.Architecture(
        sizes,
        patch,
        config.dataset.image_size,
        num_outputs,
        config.model.activation,
        config.model.epsilon,
        config.model.pre_logits,
    )


def check_format(name: str, config):
    """Refuses a format that cannot hold the student of a config.

    Raises:
      UserError: what does not fit and the formats that do.
    """
    reasons = {key: format_.misfit(config.model) for key, format_ in FORMATS.items()}
    if reasons[name]:
        others = ' or '.join(f'--format={key}' for key, reason in reasons.items() if not reason)
        raise UserError(f'--format={name} {reasons[name]}; use {others}.')


def _npz_misfit(model):
    if model.name != 'vit':
        return f'is for a ViT, and this student is of model.name {model.name}'
    for key, value in (('activation', GOOGLE_ACTIVATION), ('epsilon', GOOGLE_EPSILON)):
        if model[key] != value:
            return f'means model.{key} {value}, and that of this student is {model[key]}'
    return None


def _safetensors_misfit(model):
    if model.name != 'vit':
        return f'is for a ViT, and this student is of model.name {model.name}'
    if model.pre_logits:
        return 'has no place for the pre-logits of this student between the class token and its head'
    return None


def write_npz(path: pathlib.Path, architecture: pretrained.Architecture, params):
    """Writes parameters of a vit.ViT to a file as google-research/vision_transformer names them."""
    with open(path, 'wb') as file:
        np.savez(file, **_in_file(params, pretrained.google_sources(architecture)))


def write_hugging_face(path: pathlib.Path, architecture: pretrained.Architecture, params, label_names):
    """Writes parameters of a vit.ViT to a new folder as a Hugging Face ViTForImageClassification.

    Beside the two files of the model, the folder has the one that says how images are normalised.
    """
    # Only those who write such a file need it.
    from safetensors import numpy as safetensors_numpy

    sizes, side = architecture.sizes, architecture.image_size
    config = {
        'architectures': ['ViTForImageClassification'],
        'model_type': 'vit',
        'hidden_size': sizes.width,
        'num_hidden_layers': sizes.layers,
        'num_attention_heads': sizes.heads,
        'intermediate_size': sizes.mlp,
        'hidden_act': HF_ACTIVATIONS[architecture.activation],
        'layer_norm_eps': architecture.epsilon,
        'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0,
        'qkv_bias': True,
        'image_size': side,
        'patch_size': architecture.patch,
        'num_channels': 3,
        'num_labels': len(label_names),
        'id2label': {str(i): str(name) for i, name in enumerate(label_names)},
        'label2id': {str(name): i for i, name in enumerate(label_names)},
        'dtype': 'float32',
    }
    shown = {
        'image_processor_type': 'ViTImageProcessor',
        'do_resize': True,
        'size': {'height': side, 'width': side},
        'resample': 2,  # bilinear
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': [0.5] * 3,
        'image_std': [0.5] * 3,
    }
    tensors = _in_file(params, pretrained.hugging_face_sources(architecture, 'vit.', without_bias=False))
    path.mkdir()
    for name, content in ((pretrained.CONFIG, config), ('preprocessor_config.json', shown)):
        (path / name).write_text(json.dumps(content, indent=2) + '\n')
    # transformers refuses a file that does not say so, whoever wrote it.
    (path / pretrained.WEIGHTS).write_bytes(safetensors_numpy.save(tensors, metadata={'format': 'pt'}))


def _in_file(params, sources):
    """Our parameters under the names and in the shapes that they have in a file, the reverse of reading."""
    arrays = {}
    for name, value in flax.traverse_util.flatten_dict(params, sep='/').items():
        source = sources[name]
        array = np.asarray(value, np.float32)
        shape = source.shape or array.shape
        order = source.order or tuple(range(len(shape)))
        array = array.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
        arrays[source.key] = np.ascontiguousarray(array)
    return arrays


def stablehlo(model: base.Model, params, source: data.Source) -> bytes:
    """A program of images -> logits with the parameters in it, for any batch size and all PLATFORMS.

    Args:
      model: what computes.
      params: its parameters.
      source: shows what the inputs are.

    Returns:
      What jax.export.deserialize reads.
    """
    example = jax.eval_shape(lambda: source.inputs(source.tables, data.one_example(source), None))
    (batch,) = jax.export.symbolic_shape('batch')
    inputs = {
        name: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype) for name, leaf in example.items()
    }
    constants = jax.tree.map(np.asarray, params)

    def logits(inputs):
        return base.activations(model, constants, inputs).logits

    if inputs.keys() == {'image'}:
        run, argument = jax.jit(lambda images: logits({'image': images})), inputs['image']
    else:
        run, argument = jax.jit(logits), inputs
    return bytes(jax.export.export(run, platforms=PLATFORMS)(argument).serialize())


class Format(NamedTuple):
    """What a student is written as.

    default: name in the run's folder where no --output is given
    misfit(config.model) -> why it cannot hold such a model, or None
    write(path, Finished): makes the file or folder
    """

    default: str
    misfit: object
    write: object


def _student(finished):
    return finished.params[train_step.STUDENT]


def _architecture(finished):
    return architecture_of(finished.config, len(finished.source.label_names))


FORMATS = {
    'npz': Format(
        'student.npz', _npz_misfit, lambda path, run: write_npz(path, _architecture(run), _student(run))
    ),
    'safetensors': Format(
        'student_safetensors',
        _safetensors_misfit,
        lambda path, run: write_hugging_face(path, _architecture(run), _student(run), run.source.label_names),
    ),
    'stablehlo': Format(
        'student.stablehlo',
        lambda model: None,
        lambda path, run: path.write_bytes(stablehlo(run.student, _student(run), run.source)),
    ),
}


# --- How large and how fast ------------------------------------------------------------------------


def examples_of(source: data.Source, count: int) -> dict[str, np.ndarray]:
    """The first evaluation examples, {name: [count, ...]}; repeated where there are fewer."""
    if isinstance(source.evaluation, dict):
        return data.take(source.evaluation, np.arange(count) % data.count(source.evaluation))
    with contextlib.closing(source.evaluation.open(count, 0, 1)) as batches:
        examples, _ = next(batches)
    return examples


def milliseconds(model: base.Model, params, inputs) -> float:
    """The time of one example on the way from inputs to logits, jitted, the best of some repeats."""
    run = jax.jit(lambda params, inputs: base.activations(model, params, inputs).logits)
    params, inputs = jax.device_put((params, inputs))
    logits = jax.block_until_ready(run(params, inputs))
    best, end = float('inf'), time.perf_counter() + SECONDS
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run(params, inputs))
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            break
    return 1000 * best / len(logits)


def comparison(finished: finished_runs.Finished) -> str:
    """The size and the speed of a student beside its teacher's, one line each under a header."""
    models = {'student': (finished.student, finished.source, _student(finished))}
    if finished.teacher:
        models['teacher'] = finished.teacher.model, finished.teacher.source, finished.teacher.params
    examples = [examples_of(finished.source, batch) for batch in BATCHES]
    unit = 'image' if 'image' in examples[0] else 'example'
    rows = [('', 'parameters', *(f'ms an {unit}, {batch} at once' for batch in BATCHES))]
    for name, (model, source, params) in models.items():
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        times = [milliseconds(model, params, source.inputs(source.tables, x, None)) for x in examples]
        rows.append((name, f'{size:,}', *(f'{value:.4f}' for value in times)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]).rstrip() for row in rows
    ]
    device = jax.devices()[0]
    return '\n'.join([*lines, f'(on {device.device_kind}, {finished.config.compute_dtype}, jitted)'])


# --- The command -----------------------------------------------------------------------------------


def export(folder: pathlib.Path, name: str, output: pathlib.Path | None = None, seed_index: int = 0) -> str:
    """Writes the student of a run; what is there already is never replaced.

    Args:
      folder: workdir of the finished run.
      name: of FORMATS.
      output: file, or folder for safetensors; None is student.npz and the like in the run's folder.
      seed_index: which of the run's seeds, counted from 0.

    Returns:
      Several lines: what was written, and the student's size and speed beside the teacher's.

    Raises:
      UserError: no finished run, a format that cannot hold its model, or an output that is there already or
        cannot be written; nothing is written then.
    """
    path = output or folder / FORMATS[name].default
    if path.exists() or path.is_symlink():
        raise UserError(f'{path} is there already; delete it or choose another --output.')
    if output and not path.parent.is_dir():
        raise UserError(f'--output {path} cannot be written: its folder is missing.')
    finished = teachers.finished_with_teacher(folder, seed_index)
    check_format(name, finished.config)
    compared = comparison(finished)
    try:
        # A name of its own until it is whole.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix='.') as temporary:
            made = pathlib.Path(temporary) / path.name
            FORMATS[name].write(made, finished)
            _flush(made)
            os.rename(made, path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}.') from error
    return f'{path}\n\n{compared}'


def _flush(path):
    """Waits until a file, or all files of a folder, are on the disk."""
    for part in path.iterdir() if path.is_dir() else (path,):
        with open(part, 'rb') as file:
            os.fsync(file.fileno())


def main():
    folder = flags.DEFINE_string('workdir', None, 'Folder of a finished run.')
    name = flags.DEFINE_enum('format', None, list(FORMATS), 'What the student is written as.')
    output = flags.DEFINE_string(
        'output', None, 'File, or folder for safetensors, that is made; by default one in the workdir.'
    )
    seed_index = flags.DEFINE_integer('seed_index', 0, "Which of the run's seeds, counted from 0.")

    def command():
        target = workdir.resolve(output.value) if output.value else None
        print(export(workdir.resolve(folder.value), name.value, target, seed_index.value))

    command_line.run(command, required=('workdir', 'format'))


if __name__ == '__main__':
    main()
