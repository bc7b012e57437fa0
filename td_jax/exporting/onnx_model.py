"""Exports a student as an ONNX model, for onnxruntime and other libraries.

jax2onnx converts the student, which computes in float32. Images of any size are resized before it, by the
ONNX operations below, because ONNX's Resize smooths smaller images otherwise than JAX.
"""

import pathlib

import jax
import jax.export
import numpy as np

from td_jax.data import resizing
from td_jax.errors import UserError
from td_jax.exporting import onnx_batch, optional
from td_jax.predicting.program import BATCH, HEIGHT, IMAGE, WIDTH, Port, Program, resize_images

NAME = 'student.onnx'
# The version of the operator set.
OPSET = 21
# The name of the resized images.
PIXELS = 'pixels'
# Formats for any student.
OTHERS = '--format=stablehlo or --format=saved_model'
# The largest difference of predictions, relative to the largest one.
TOLERANCE = 1e-3
# Type -> upper bound of random inputs for the comparison of predictions.
RANGES = {'uint8': 256, 'float32': 1}


def write(folder: pathlib.Path, program: Program):
    """Writes an ONNX model into a folder.

    Args:
      folder: for the file NAME.
      program: of a student that computes in float32.

    Raises:
      UserError: a library is missing, or cannot convert the student or converts it wrongly.
    """
    onnx = optional.import_module('onnx', 'onnx')
    outputs = list(program.outputs)
    ports, run = program.inputs, _take_positional(program)
    if program.picture:
        side = program.picture.view.side
        ports, run = {PIXELS: Port('float32', (BATCH, side, side, 3), '')}, program.of_pixels
    # A single symbol for all inputs, because symbols of different scopes differ.
    (rows,) = jax.export.symbolic_shape(onnx_batch.ROWS)
    specs = [jax.ShapeDtypeStruct((rows, *port.shape[1:]), np.dtype(port.dtype)) for port in ports.values()]
    model = onnx_batch.accept_empty_batch(_convert(run, specs, ports, outputs), ports, program.outputs)
    if program.picture:
        resizes = onnx.parser.parse_model(_write_resizing_model(program.picture, model.ir_version))
        _check_resizing(resizes.SerializeToString(), program.picture)
        model = onnx.compose.merge_models(resizes, model, io_map=[(PIXELS, PIXELS)])
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    _check(content, program)
    (folder / NAME).write_bytes(content)


def _take_positional(program):
    """Makes a version of program.run with positional inputs."""
    return lambda *arrays: program.run(dict(zip(program.inputs, arrays, strict=True)))


def _convert(run, specs, inputs, outputs):
    """Converts a function with results {name: array} to an ONNX model with names by onnx_batch.inner_name."""
    jax2onnx = optional.import_module('jax2onnx', 'onnx')

    def run_ordered(*arrays):
        results = run(*arrays)
        return tuple(results[name] for name in outputs)

    with optional.silence_logging():
        try:
            return jax2onnx.to_onnx(
                run_ordered,
                specs,
                model_name='student',
                opset=OPSET,
                input_names=list(map(onnx_batch.inner_name, inputs)),
                output_names=list(map(onnx_batch.inner_name, outputs)),
            )
        # Its converters of operations raise all kinds of exceptions.
        except Exception as error:
            reason = ' '.join(str(error).split('\n\n')[0].split())[:200]
            raise UserError(
                f'--format=onnx: jax2onnx cannot convert this student ({reason}); use {OTHERS}.'
            ) from error


def _check(content, program):
    """Refuses a model whose predictions for random examples differ from those of the program."""
    onnxruntime = optional.import_module('onnxruntime', 'onnx')
    rng = np.random.default_rng(0)
    # Images need no resizing here, so that rounding in resizing does not matter.
    side = program.picture and program.picture.view.scaled_side
    sizes = {BATCH: 3, HEIGHT: side, WIDTH: side}
    inputs = {}
    for name, port in program.inputs.items():
        shape = [sizes.get(axis, axis) for axis in port.shape]
        inputs[name] = rng.uniform(0, RANGES.get(port.dtype, 2), shape).astype(port.dtype)
    expected = program.run(inputs)
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    for name, predictions in zip(expected, session.run(list(expected), inputs), strict=True):
        ours = np.asarray(expected[name])
        tolerance = TOLERANCE * np.abs(ours).max()
        if predictions.shape != ours.shape or not np.allclose(predictions, ours, TOLERANCE, tolerance):
            raise UserError(
                f'--format=onnx: the {name} of what jax2onnx makes of this student are others than its own; '
                f'use {OTHERS}.'
            )


def _check_resizing(content, picture):
    """Refuses a model that resizes otherwise than td_jax; rounding may differ."""
    onnxruntime = optional.import_module('onnxruntime', 'onnx')
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 41, 29, 3), np.uint8)
    (images,) = session.run([PIXELS], {IMAGE: pixels})
    difference = np.abs(images - np.asarray(resize_images(pixels, picture)))
    if difference.max() > 2 or difference.mean() > 0.1:
        raise UserError(f'--format=onnx: onnxruntime resizes images otherwise than td_jax; use {OTHERS}.')


def _write_resizing_model(picture, ir_version) -> str:
    """Writes the text of a model: uint8 [batch, height, width, 3] -> float [batch, side, side, 3].

    Like in resizing.resize_on_device, each side is multiplied by a matrix whose columns are kernels around
    the places of the new pixels. The number of the first pixel, 0, is looked up so that a side without pixels
    is an error instead of a black image.
    """
    view = picture.view
    method = resizing.RESIZES[view.resize]

    def compute_length(side):
        """Computes the new length of a side."""
        if view.crop_mode == 'squash':
            return f'{side}_new = Identity (scaled)'
        return f"""{side}_long = Mul (scaled, {side}_old)
    {side}_new = Div ({side}_long, shortest)"""

    def compute_kernel(side):
        """Computes the weight of a distance."""
        if method.method == 'bilinear':
            return f"""{side}_falling = Sub (one, {side}_distance)
    {side}_kernel = Relu ({side}_falling)"""
        return f"""{side}_near_1 = Mul ({side}_distance, one_and_half)
    {side}_near_2 = Sub ({side}_near_1, two_and_half)
    {side}_square = Mul ({side}_distance, {side}_distance)
    {side}_near_3 = Mul ({side}_near_2, {side}_square)
    {side}_near = Add ({side}_near_3, one)
    {side}_far_1 = Sub ({side}_distance, five)
    {side}_far_2 = Mul ({side}_far_1, {side}_distance)
    {side}_far_3 = Add ({side}_far_2, eight)
    {side}_far_4 = Mul ({side}_far_3, {side}_distance)
    {side}_far_5 = Sub (four, {side}_far_4)
    {side}_far = Mul ({side}_far_5, half)
    {side}_is_near = Less ({side}_distance, one)
    {side}_is_far = Less ({side}_distance, two)
    {side}_outer = Where ({side}_is_far, {side}_far, zero)
    {side}_kernel = Where ({side}_is_near, {side}_near, {side}_outer)"""

    def compute_weights(side):
        """Computes the weights [old, new] of a side."""
        return f"""
    {compute_length(side)}
    {side}_quotient = Div ({side}_old, {side}_new)
    {side}_rest = Mod ({side}_old, {side}_new)
    {side}_old_float = Cast <to = 1> ({side}_old)
    {side}_new_float = Cast <to = 1> ({side}_new)
    {side}_rest_float = Cast <to = 1> ({side}_rest)
    {side}_quotient_float = Cast <to = 1> ({side}_quotient)
    {side}_part = Div ({side}_rest_float, {side}_new_float)
    {side}_cut = Sub ({side}_new, side)
    {side}_first = Div ({side}_cut, int_2)
    {side}_counted = Range (int_0, side, int_1)
    {side}_places = Add ({side}_counted, {side}_first)
    {side}_whole_places = Mul ({side}_places, {side}_quotient)
    {side}_old_row = Range (int_0, {side}_old, int_1)
    {side}_no_pixels_here = Gather ({side}_old_row, int_0)
    {side}_old_from_0 = Sub ({side}_old_row, {side}_no_pixels_here)
    {side}_old_column = Unsqueeze ({side}_old_from_0, axis_1)
    {side}_whole = Sub ({side}_old_column, {side}_whole_places)
    {side}_whole_float = Cast <to = 1> ({side}_whole)
    {side}_places_float = Cast <to = 1> ({side}_places)
    {side}_middles = Add ({side}_places_float, half)
    {side}_moved = Mul ({side}_middles, {side}_part)
    {side}_half_quotient = Mul ({side}_quotient_float, half)
    {side}_centres = Add ({side}_moved, {side}_half_quotient)
    {side}_old_middles = Add ({side}_whole_float, half)
    {side}_difference = Sub ({side}_old_middles, {side}_centres)
    {side}_ratio = Div ({side}_old_float, {side}_new_float)
    {side}_width = {f'Max ({side}_ratio, one)' if method.is_pillow else 'Identity (one)'}
    {side}_relative = Div ({side}_difference, {side}_width)
    {side}_distance = Abs ({side}_relative)
    {compute_kernel(side)}
    {side}_total = ReduceSum <keepdims = 1> ({side}_kernel, axis_0)
    {side}_weights = Div ({side}_kernel, {side}_total)"""

    def round_bytes(name, is_rounded):
        """Computes NAME_bytes: rounded and clipped to a byte, or as it is."""
        if not is_rounded:
            return f'{name}_bytes = Identity ({name})'
        return f"""{name}_half = Add ({name}, half)
    {name}_floor = Floor ({name}_half)
    {name}_bytes = Clip ({name}_floor, zero, most)"""

    floats = {'zero': 0.0, 'half': 0.5, 'one': 1.0, 'most': 255.0}
    if method.method == 'bicubic':
        floats |= {
            'one_and_half': 1.5,
            'two': 2.0,
            'two_and_half': 2.5,
            'four': 4.0,
            'five': 5.0,
            'eight': 8.0,
        }
    ints = {'int_0': 0, 'int_1': 1, 'int_2': 2, 'side': view.side, 'scaled': view.scaled_side}
    constants = [f'{name} = Constant <value = float {{{value}}}> ()' for name, value in floats.items()]
    constants += [f'{name} = Constant <value = int64 {{{value}}}> ()' for name, value in ints.items()]
    lines = '\n    '.join(constants)
    return f"""<ir_version: {ir_version}, opset_import: ["" : {OPSET}]>
resizing (uint8[{BATCH}, height, width, 3] {IMAGE})
    => (float[{BATCH}, {view.side}, {view.side}, 3] {PIXELS}) {{
    {lines}
    axis_0 = Constant <value = int64[1] {{0}}> ()
    axis_1 = Constant <value = int64[1] {{1}}> ()
    row_count = Shape <start = 1, end = 2> ({IMAGE})
    column_count = Shape <start = 2, end = 3> ({IMAGE})
    row_old = Squeeze (row_count)
    column_old = Squeeze (column_count)
    shorter = Min (row_old, column_old)
    shortest = Max (shorter, int_1){compute_weights('row')}{compute_weights('column')}
    colours = Cast <to = 1> ({IMAGE})
    planes = Transpose <perm = [0, 3, 1, 2]> (colours)
    narrowed = MatMul (planes, column_weights)
    {round_bytes('narrowed', method.is_pillow)}
    turned = Transpose <perm = [0, 1, 3, 2]> (narrowed_bytes)
    shortened = MatMul (turned, row_weights)
    {round_bytes('shortened', method.is_pillow or picture.is_rounded)}
    {PIXELS} = Transpose <perm = [0, 3, 2, 1]> (shortened_bytes)
}}"""
