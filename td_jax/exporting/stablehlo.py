"""A student as a StableHLO program with its parameters in it, for any model.

`jax.export.deserialize(bytes).call(images)` gives the logits [batch, outputs] of any number of images
[batch, height, width, 3]. They are what the model is shown in an evaluation: float32, resized by
dataset.resize to dataset.image_size, and (pixel / 255 - dataset.image_mean) / dataset.image_std. The digits
of an MLP are [batch, pixels]. A model with several inputs takes them as {name: [batch, ...]}.
"""

import jax
import jax.export
import numpy as np

from td_jax.data import base as data
from td_jax.models import base

# Where a program runs.
PLATFORMS = ('cpu', 'cuda', 'tpu')


def program(model: base.Model, params, source: data.Source) -> bytes:
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
