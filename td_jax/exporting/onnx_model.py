"""A student as an ONNX model, which onnxruntime and many others run.

jax2onnx converts the student; it computes in float32. Images of any size are resized before, by operations of
ONNX that are written down here: its own Resize smooths otherwise than JAX where an image becomes smaller.
"""

import pathlib

import jax
import jax.export
import numpy as np

from td_jax.data import images
from td_jax.errors import UserError
from td_jax.exporting import onnx_batch, optional
from td_jax.predicting.program import BATCH, HEIGHT, IMAGE, WIDTH, Port, Program

NAME = 'student.onnx'
# Version of ONNX's operations.
OPSET = 21
# Between the resizing and the student.
PIXELS = 'pixels'
# Formats that hold any student.
OTHERS = '--format=stablehlo or --format=saved_model'
# Of predictions that are the same but for rounding, relative to the largest.
TOLERANCE = 1e-3
# Type -> what inputs are drawn below, to compare predictions.
DRAWN = {'uint8': 256, 'float32': 1}


def write(folder: pathlib.Path, program: Program):
    """Writes an ONNX model into a folder.

    Args:
      folder: it gets a file NAME.
      program: of a student that computes in float32.

    Raises:
      UserError: a library is missing, or what it makes of the student is none or another one.
    """
    onnx = optional.module('onnx', 'onnx')
    outputs = list(program.outputs)
    ports, run = program.inputs, _by_place(program)
    if program.picture:
        size = program.picture.size
        ports, run = {PIXELS: Port('float32', (BATCH, size, size, 3), '')}, program.of_pixels
    # One for all inputs: axes of the same name in other scopes are other axes.
    (rows,) = jax.export.symbolic_shape(onnx_batch.ROWS)
    specs = [jax.ShapeDtypeStruct((rows, *port.shape[1:]), np.dtype(port.dtype)) for port in ports.values()]
    model = onnx_batch.accept_none(_converted(run, specs, ports, outputs), ports, program.outputs)
    if program.picture:
        resizing = onnx.parser.parse_model(_resizing(program.picture, model.ir_version))
        model = onnx.compose.merge_models(resizing, model, io_map=[(PIXELS, PIXELS)])
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    _check(content, program)
    (folder / NAME).write_bytes(content)


def _by_place(program):
    """program.run of its inputs in their order."""
    return lambda *arrays: program.run(dict(zip(program.inputs, arrays, strict=True)))


def _converted(run, specs, inputs, outputs):
    """The ONNX model of a function that gives {name: array}; names are those of onnx_batch.inner_name."""
    jax2onnx = optional.module('jax2onnx', 'onnx')

    def ordered(*arrays):
        given = run(*arrays)
        return tuple(given[name] for name in outputs)

    with optional.silent():
        try:
            return jax2onnx.to_onnx(
                ordered,
                specs,
                model_name='student',
                opset=OPSET,
                input_names=list(map(onnx_batch.inner_name, inputs)),
                output_names=list(map(onnx_batch.inner_name, outputs)),
            )
        # It has an own way to convert each operation, and fails in as many.
        except Exception as error:
            reason = ' '.join(str(error).split('\n\n')[0].split())[:200]
            raise UserError(
                f'--format=onnx: jax2onnx cannot convert this student ({reason}); use {OTHERS}.'
            ) from error


def _check(content, program):
    """Refuses a model that does not predict what the program does, for examples that are drawn at random."""
    onnxruntime = optional.module('onnxruntime', 'onnx')
    rng = np.random.default_rng(0)
    sizes = {BATCH: 3, HEIGHT: 41, WIDTH: 29}
    inputs = {}
    for name, port in program.inputs.items():
        shape = [sizes.get(axis, axis) for axis in port.shape]
        inputs[name] = rng.uniform(0, DRAWN.get(port.dtype, 2), shape).astype(port.dtype)
    expected = program.run(inputs)
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    for name, found in zip(expected, session.run(list(expected), inputs), strict=True):
        ours = np.asarray(expected[name])
        nearly = TOLERANCE * np.abs(ours).max()
        if found.shape != ours.shape or not np.allclose(found, ours, TOLERANCE, nearly):
            raise UserError(
                f'--format=onnx: the {name} of what jax2onnx makes of this student are others than its own; '
                f'use {OTHERS}.'
            )


def _resizing(picture, ir_version) -> str:
    """The text of a model: uint8 [batch, height, width, 3] -> float [batch, size, size, 3].

    As jax.image.resize does it: each side is a product with a matrix whose columns are triangles around the
    places of the new pixels, of width 1, or, smoothed, as wide as a new pixel is. The number of the first
    pixel of a side, 0, is looked up because a side without pixels has none: it would become a black image.
    """
    is_smoothed = images.RESIZES[picture.resize]

    def weights(side, axis):
        """[old, new] of one side."""
        return f"""
    {side}_old_count = Shape <start = {axis}, end = {axis + 1}> ({IMAGE})
    {side}_old_1 = Cast <to = 1> ({side}_old_count)
    {side}_old = Squeeze ({side}_old_1)
    {side}_inverse = Div ({side}_old, size)
    {side}_width = {f'Max ({side}_inverse, one)' if is_smoothed else 'Identity (one)'}
    {side}_new_places = Range (zero, size, one)
    {side}_new_centres = Add ({side}_new_places, half)
    {side}_new_scaled = Mul ({side}_new_centres, {side}_inverse)
    {side}_sampled = Sub ({side}_new_scaled, half)
    {side}_old_row = Range (zero, {side}_old, one)
    {side}_no_pixels_here = Gather ({side}_old_row, first)
    {side}_old_from_0 = Sub ({side}_old_row, {side}_no_pixels_here)
    {side}_old_column = Unsqueeze ({side}_old_from_0, axis_1)
    {side}_difference = Sub ({side}_sampled, {side}_old_column)
    {side}_distance = Abs ({side}_difference)
    {side}_relative = Div ({side}_distance, {side}_width)
    {side}_falling = Sub (one, {side}_relative)
    {side}_triangle = Relu ({side}_falling)
    {side}_total = ReduceSum <keepdims = 1> ({side}_triangle, axis_0)
    {side}_weights = Div ({side}_triangle, {side}_total)"""

    rounded = """
    resized_and_half = Add (resized, half)
    whole = Floor (resized_and_half)"""
    return f"""<ir_version: {ir_version}, opset_import: ["" : {OPSET}]>
resizing (uint8[{BATCH}, height, width, 3] {IMAGE})
    => (float[{BATCH}, {picture.size}, {picture.size}, 3] {PIXELS}) {{
    zero = Constant <value = float {{0.0}}> ()
    half = Constant <value = float {{0.5}}> ()
    one = Constant <value = float {{1.0}}> ()
    size = Constant <value = float {{{picture.size}.0}}> ()
    first = Constant <value = int64 {{0}}> ()
    axis_0 = Constant <value = int64[1] {{0}}> ()
    axis_1 = Constant <value = int64[1] {{1}}> (){weights('row', 1)}{weights('column', 2)}
    colours = Cast <to = 1> ({IMAGE})
    planes = Transpose <perm = [0, 3, 1, 2]> (colours)
    narrowed = MatMul (planes, column_weights)
    turned = Transpose <perm = [0, 1, 3, 2]> (narrowed)
    shortened = MatMul (turned, row_weights)
    resized = Transpose <perm = [0, 3, 2, 1]> (shortened){rounded if picture.is_rounded else ''}
    {PIXELS} = Identity ({'whole' if picture.is_rounded else 'resized'})
}}"""
