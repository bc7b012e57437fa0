"""Exports a student of any model as a SavedModel of TensorFlow.

`tf.saved_model.load(folder).signatures['serving_default'](**inputs)` gives {name: tensor}; TensorFlow Serving
and other programs read it, too. It takes one example or more.
"""

import pathlib

from td_jax.errors import UserError
from td_jax.exporting import optional
from td_jax.exporting.stablehlo import PLATFORMS
from td_jax.predicting.program import Program


def write(folder: pathlib.Path, program: Program):
    """Writes the SavedModel.

    Args:
      folder: of the SavedModel; it may have other files.
      program: to write.

    Raises:
      UserError: a library is missing, or TensorFlow cannot run the program.
    """
    tf = optional.import_module('tensorflow', 'saved_model')
    jax2tf = optional.import_module('jax.experimental.jax2tf', 'saved_model')
    axes = {
        name: f'({", ".join(str(axis) for axis in port.shape)},)' for name, port in program.inputs.items()
    }
    run = jax2tf.convert(
        program.run,
        polymorphic_shapes=[axes],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    signature = {
        name: tf.TensorSpec(
            [None if isinstance(axis, str) else axis for axis in port.shape], port.dtype, name=name
        )
        for name, port in program.inputs.items()
    }
    serving_function = tf.function(lambda **inputs: run(inputs), autograph=False)
    # Only as a signature: a function of the module would store all parameters again.
    tf.saved_model.save(
        tf.Module(),
        str(folder),
        signatures={'serving_default': serving_function.get_concrete_function(**signature)},
    )
    _check(tf, folder, signature)


def _check(tf, folder, signature):
    """Refuses a program that TensorFlow cannot run, such as one with a newer StableHLO."""
    inputs = {
        name: tf.zeros([size or 1 for size in spec.shape], spec.dtype) for name, spec in signature.items()
    }
    try:
        tf.saved_model.load(str(folder)).signatures['serving_default'](**inputs)
    except tf.errors.OpError as error:
        raise UserError(
            f'--format=saved_model: TensorFlow {tf.__version__} cannot run what this JAX writes; install '
            'an older JAX or a newer TensorFlow, or use --format=stablehlo or --format=onnx.'
        ) from error
