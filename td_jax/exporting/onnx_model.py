"""A student as an ONNX model, which onnxruntime and many others run.

jax2onnx converts the student; it computes in float32. Images of any size are resized before, by operations of
ONNX that are written down here: its own Resize smooths otherwise than JAX where an image becomes smaller.
"""

import pathlib

import jax
import jax.export
import numpy as np

from td_jax.data import resizing
from td_jax.errors import UserError
from td_jax.exporting import onnx_batch, optional
from td_jax.predicting.program import BATCH, HEIGHT, IMAGE, WIDTH, Port, Program, resized

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
        side = program.picture.view.side
        ports, run = {PIXELS: Port('float32', (BATCH, side, side, 3), '')}, program.of_pixels
    # One for all inputs: axes of the same name in other scopes are other axes.
    (rows,) = jax.export.symbolic_shape(onnx_batch.ROWS)
    specs = [jax.ShapeDtypeStruct((rows, *port.shape[1:]), np.dtype(port.dtype)) for port in ports.values()]
    model = onnx_batch.accept_none(_converted(run, specs, ports, outputs), ports, program.outputs)
    if program.picture:
        resizes = onnx.parser.parse_model(_resizing(program.picture, model.ir_version))
        _check_resizing(resizes.SerializeToString(), program.picture)
        model = onnx.compose.merge_models(resizes, model, io_map=[(PIXELS, PIXELS)])
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
    # Images as large as they are shown: a byte that is rounded otherwise is no fault of the student's.
    side = program.picture and program.picture.view.scaled_side
    sizes = {BATCH: 3, HEIGHT: side, WIDTH: side}
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


def _check_resizing(content, picture):
    """Refuses a model that resizes otherwise than td_jax; a sum may fall on the other side of a half."""
    onnxruntime = optional.module('onnxruntime', 'onnx')
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 41, 29, 3), np.uint8)
    (found,) = session.run([PIXELS], {IMAGE: pixels})
    difference = np.abs(found - np.asarray(resized(pixels, picture)))
    if difference.max() > 2 or difference.mean() > 0.1:
        raise UserError(f'--format=onnx: onnxruntime resizes images otherwise than td_jax; use {OTHERS}.')


def _resizing(picture, ir_version) -> str:
    """The text of a model: uint8 [batch, height, width, 3] -> float [batch, side, side, 3].

    As resizing.resize_on_device does it: each side is a product with a matrix, whose columns are a kernel
    around the places of the new pixels. The number of the first pixel of a side, 0, is looked up because a
    side without pixels has none: it would become a black image.
    """
    view = picture.view
    how = resizing.RESIZES[view.resize]

    def scaled(side):
        """How long a side becomes."""
        if view.crop_mode == 'squash':
            return f'{side}_new = Identity (scaled)'
        return f"""{side}_long = Mul (scaled, {side}_old)
    {side}_new = Div ({side}_long, shortest)"""

    def kernel(side):
        """What a distance counts for."""
        if how.method == 'bilinear':
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

    def weights(side):
        """[old, new] of one side."""
        return f"""
    {scaled(side)}
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
    {side}_width = {f'Max ({side}_ratio, one)' if how.is_pillow else 'Identity (one)'}
    {side}_relative = Div ({side}_difference, {side}_width)
    {side}_distance = Abs ({side}_relative)
    {kernel(side)}
    {side}_total = ReduceSum <keepdims = 1> ({side}_kernel, axis_0)
    {side}_weights = Div ({side}_kernel, {side}_total)"""

    def rounded(name, is_rounded):
        """A name with `_bytes` behind it, rounded and held to a byte or as it is."""
        if not is_rounded:
            return f'{name}_bytes = Identity ({name})'
        return f"""{name}_half = Add ({name}, half)
    {name}_floor = Floor ({name}_half)
    {name}_bytes = Clip ({name}_floor, zero, most)"""

    floats = {'zero': 0.0, 'half': 0.5, 'one': 1.0, 'most': 255.0}
    if how.method == 'bicubic':
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
    shortest = Max (shorter, int_1){weights('row')}{weights('column')}
    colours = Cast <to = 1> ({IMAGE})
    planes = Transpose <perm = [0, 3, 1, 2]> (colours)
    narrowed = MatMul (planes, column_weights)
    {rounded('narrowed', how.is_pillow)}
    turned = Transpose <perm = [0, 1, 3, 2]> (narrowed_bytes)
    shortened = MatMul (turned, row_weights)
    {rounded('shortened', how.is_pillow or picture.is_rounded)}
    {PIXELS} = Transpose <perm = [0, 3, 2, 1]> (shortened_bytes)
}}"""
