"""A student as a function of raw inputs: ids, or images of any size.

The function contains everything up to the prediction: tables of features of ids, resizing and normalisation
of images, and the parameters. It needs neither td_jax nor the data set.
"""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.data import base as data
from td_jax.data import decoding, resizing
from td_jax.models import base

# Names of axes of any size: examples, and height and width of images.
BATCH, HEIGHT, WIDTH = 'batch', 'height', 'width'
IMAGE = 'image'
# The number of an unknown id.
UNKNOWN = -1


class Port(NamedTuple):
    """An input or an output of a program."""

    dtype: str
    shape: tuple[int | str, ...]  # a name for an axis of any size
    meaning: str  # a description


class Program(NamedTuple):
    """A student with its parameters.

    run({name: array} by inputs) -> {name: array} by outputs; pure
    of_pixels([batch, side, side, 3] float32, after the view of `picture`) -> the same; None without images
    """

    inputs: dict[str, Port]
    outputs: dict[str, Port]
    labels: tuple[str, ...]
    run: Callable[[dict], dict]
    # {name of an input: its ids, in order of their numbers}
    vocabularies: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})
    picture: data.Picture | None = None
    of_pixels: Callable[[jax.Array], dict] | None = None


def make_program(model: base.Model, params, source: data.Source) -> Program:
    """Makes the program of a student.

    Args:
      model: the student.
      params: its parameters.
      source: its data, which describes ids or images. If it has neither, the program takes the inputs of the
        model.
    """
    constants = jax.tree.map(np.asarray, params)
    tables = jax.tree.map(np.asarray, source.tables)
    outputs, predict = _describe_outputs(source)

    def run_inputs(inputs):
        return predict(base.activations(model, constants, inputs).logits)

    def run_examples(examples):
        return run_inputs(source.inputs(tables, examples, None))

    labels = tuple(map(str, source.label_names))
    if source.ids:
        ports, run, vocabularies = _make_id_program(source, run_examples)
        return Program(ports, outputs, labels, run, vocabularies)
    picture = source.picture
    if picture is None:
        shapes = jax.eval_shape(lambda: source.inputs(tables, data.one_example(source), None))
        ports = {
            name: Port(str(leaf.dtype), (BATCH, *leaf.shape[1:]), 'what the model is given in an evaluation')
            for name, leaf in shapes.items()
        }
        return Program(ports, outputs, labels, run_inputs)

    def of_pixels(pixels):
        return run_inputs(picture.inputs(pixels))

    def run_images(inputs):
        return of_pixels(resize_images(inputs[IMAGE], picture))

    port = Port(
        'uint8',
        (BATCH, HEIGHT, WIDTH, 3),
        f'red, green and blue of images of any size, each from 0 to 255; of a file {decoding.RULE}; '
        f'inside, {picture.view.describe()}',
    )
    return Program({IMAGE: port}, outputs, labels, run_images, picture=picture, of_pixels=of_pixels)


def look_up_ids(ids: data.Ids, raw) -> np.ndarray:
    """Looks up the numbers of raw ids, int32; UNKNOWN for an id without one."""
    numbers = {text: number for number, text in enumerate(ids.raw.tolist())}
    return np.array([numbers.get(text, UNKNOWN) for text in raw], np.int32)


def _make_id_program(source, run_examples):
    """Makes (ports, run, vocabularies) of a Program for numbers of ids."""

    def run(inputs):
        examples = {}
        for field, ids in source.ids.items():
            number, count = inputs[ids.column], len(ids.raw)
            examples[field] = jnp.where((number >= 0) & (number < count), number, count)
        return run_examples(examples)

    ports = {
        ids.column: Port(
            'int32',
            (BATCH,),
            f'numbers that vocabulary.json has for each {ids.column}; {UNKNOWN} for any other',
        )
        for ids in source.ids.values()
    }
    return ports, run, {ids.column: tuple(ids.raw.tolist()) for ids in source.ids.values()}


def resize_images(pixels, picture: data.Picture):
    """Resizes images [batch, height, width, 3] to [batch, side, side, 3], float32 from 0 to 255."""
    pixels = resizing.resize_on_device(pixels, picture.view).astype(jnp.float32)
    return jnp.floor(pixels + 0.5) if picture.is_rounded else pixels


def _describe_outputs(source):
    """({name: Port} of the outputs, the function that computes them from logits [batch, outputs])."""
    count = len(source.label_names)
    if source.task == 'regression':
        (name,) = source.label_names
        port = Port('float32', (BATCH,), f'{name}, in the unit that {source.name} has it in; not clipped')
        return {name: port}, lambda logits: {name: logits[:, 0]}
    outputs = {
        'logits': Port('float32', (BATCH, count), 'one for each of labels, in their order'),
        'probabilities': Port('float32', (BATCH, count), 'the softmax of logits; adds up to 1'),
    }
    return outputs, lambda logits: {'logits': logits, 'probabilities': jax.nn.softmax(logits)}
