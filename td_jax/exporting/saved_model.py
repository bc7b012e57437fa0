"""A student as a SavedModel of TensorFlow, for any model.

`tf.saved_model.load(folder).signatures['serving_default'](**inputs)` gives {name: tensor}; so do TensorFlow
Serving and every other program that reads a SavedModel. It takes any number of examples from one on.
"""

import pathlib

from td_jax.errors import UserError
from td_jax.exporting import optional
from td_jax.exporting.stablehlo import PLATFORMS
from td_jax.predicting.program import Program


def write(folder: pathlib.Path, program: Program):
    """Writes the SavedModel.

    Args:
      folder: becomes one; other files may be in it, too.
      program: what is written.

    Raises:
      UserError: a library is missing, or TensorFlow cannot run what JAX writes.
    """
    tf = optional.module('tensorflow', 'saved_model')
    jax2tf = optional.module('jax.experimental.jax2tf', 'saved_model')
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
    served = tf.function(lambda **inputs: run(inputs), autograph=False)
    # As a signature alone: a function of the module would have all parameters a second time.
    tf.saved_model.save(
        tf.Module(), str(folder), signatures={'serving_default': served.get_concrete_function(**signature)}
    )
    _check(tf, folder, signature)


def _check(tf, folder, signature):
    """Refuses what the TensorFlow here cannot run: a JAX may write a newer StableHLO than it reads."""
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
