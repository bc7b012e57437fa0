"""An ONNX model that takes no examples, too.

onnxruntime ends the process (SIGFPE) where the batch of an Einsum is empty. A model is therefore given one
example of zeros where there is none, and what it makes of that is cut off.
"""

import numpy as np

from td_jax.exporting import optional
from td_jax.predicting.program import BATCH

# The axis of as many rows as there are examples, but at least one.
ROWS = 'rows'
# How many examples there are.
COUNT = 'count_of_examples'


def inner_name(name: str) -> str:
    """What a model that takes at least one example calls an input or an output."""
    return f'{name}_of_{ROWS}'


def accept_none(model, inputs: dict, outputs: dict):
    """Puts a model between what fills its batch and what cuts it off.

    Args:
      model: an ONNX model of batches [ROWS, ...], of at least one row; it calls inputs and outputs by
        inner_name.
      inputs, outputs: {name: program.Port}.

    Returns:
      The model of batches [BATCH, ...].
    """
    onnx = optional.module('onnx', 'onnx')
    node = onnx.helper.make_node
    count = onnx.helper.make_tensor_value_info(COUNT, onnx.TensorProto.INT64, [1])

    def type_of(port):
        return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype))

    def described(ports, axis):
        return [
            onnx.helper.make_tensor_value_info(
                name if axis == BATCH else inner_name(name), type_of(port), [axis, *port.shape[1:]]
            )
            for name, port in ports.items()
        ]

    def made(name, nodes, given, results, numbers):
        constants = [onnx.numpy_helper.from_array(np.array(x, np.int64), key) for key, x in numbers.items()]
        return onnx.helper.make_model(
            onnx.helper.make_graph(nodes, name, given, results, constants),
            ir_version=model.ir_version,
            opset_imports=[entry for entry in model.opset_import if not entry.domain],
        )

    filling = [
        node('Shape', [next(iter(inputs))], [COUNT], start=0, end=1),
        node('Sub', ['fill_one', COUNT], ['fill_difference']),
        node('Max', ['fill_difference', 'fill_zero'], ['fill_missing']),
    ]
    numbers = {'fill_zero': [0], 'fill_one': [1]}
    for name, port in inputs.items():
        tail, shape, filler = (f'fill_{part}_{name}' for part in ('tail', 'shape', 'rows'))
        numbers[tail] = port.shape[1:]
        zero = onnx.helper.make_tensor('zero', type_of(port), [1], [0])
        filling += [
            node('Concat', ['fill_missing', tail], [shape], axis=0),
            node('ConstantOfShape', [shape], [filler], value=zero),
            node('Concat', [name, filler], [inner_name(name)], axis=0),
        ]
    filled = made('fill', filling, described(inputs, BATCH), [*described(inputs, ROWS), count], numbers)
    cutting = [node('Slice', [inner_name(name), 'cut_zero', COUNT, 'cut_zero'], [name]) for name in outputs]
    given, results = [*described(outputs, ROWS), count], described(outputs, BATCH)
    cut = made('cut', cutting, given, results, {'cut_zero': [0]})
    joints = [[(inner_name(name), inner_name(name)) for name in ports] for ports in (inputs, outputs)]
    found = onnx.compose.merge_models(filled, model, io_map=joints[0])
    return onnx.compose.merge_models(found, cut, io_map=[*joints[1], (COUNT, COUNT)])
