"""Lets an ONNX model accept an empty batch.

onnxruntime ends the process (SIGFPE) if the batch of an Einsum is empty. An empty batch is therefore padded
by one example of zeros, whose results are cut off.
"""

import numpy as np

from td_jax.exporting import optional
from td_jax.predicting.program import BATCH

# The name of the padded axis, which has at least one row.
ROWS = 'rows'
# The name of the number of examples.
COUNT = 'count_of_examples'


def inner_name(name: str) -> str:
    """The name of an input or an output in the model that needs at least one example."""
    return f'{name}_of_{ROWS}'


def accept_empty_batch(model, inputs: dict, outputs: dict):
    """Adds padding before a model and cutting after it, so that it accepts an empty batch.

    Args:
      model: an ONNX model of batches [ROWS, ...] of at least one row, with names by inner_name.
      inputs, outputs: {name: program.Port}.

    Returns:
      the model of batches [BATCH, ...]
    """
    onnx = optional.import_module('onnx', 'onnx')
    node = onnx.helper.make_node
    count = onnx.helper.make_tensor_value_info(COUNT, onnx.TensorProto.INT64, [1])

    def type_of(port):
        return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype))

    def describe(ports, axis):
        return [
            onnx.helper.make_tensor_value_info(
                name if axis == BATCH else inner_name(name), type_of(port), [axis, *port.shape[1:]]
            )
            for name, port in ports.items()
        ]

    def make_model(name, nodes, graph_inputs, results, numbers):
        constants = [onnx.numpy_helper.from_array(np.array(x, np.int64), key) for key, x in numbers.items()]
        return onnx.helper.make_model(
            onnx.helper.make_graph(nodes, name, graph_inputs, results, constants),
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
    filling_model = make_model(
        'fill', filling, describe(inputs, BATCH), [*describe(inputs, ROWS), count], numbers
    )
    cutting = [node('Slice', [inner_name(name), 'cut_zero', COUNT, 'cut_zero'], [name]) for name in outputs]
    graph_inputs, results = [*describe(outputs, ROWS), count], describe(outputs, BATCH)
    cutting_model = make_model('cut', cutting, graph_inputs, results, {'cut_zero': [0]})
    io_maps = [[(inner_name(name), inner_name(name)) for name in ports] for ports in (inputs, outputs)]
    padded = onnx.compose.merge_models(filling_model, model, io_map=io_maps[0])
    return onnx.compose.merge_models(padded, cutting_model, io_map=[*io_maps[1], (COUNT, COUNT)])
