"""Exact metrics: every example counts once, whatever the batch size."""

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.data import base as data
from td_jax.models import base


def _squared_error(predictions, labels):
    return jnp.square(predictions[:, 0] - labels)


def _is_correct(predictions, labels):
    return (predictions.argmax(axis=-1) == labels).astype(jnp.float32)


# task -> (metric, value of each example [batch], what becomes of the mean, whether less is better)
METRICS = {
    'regression': ('rmse', _squared_error, np.sqrt, True),
    'classification': ('accuracy', _is_correct, lambda mean: mean, False),
}


def build(model: base.Model, source: data.Source, batch_size: int):
    """Makes the evaluation of a model on `source.evaluation`.

    Args:
      model: what is evaluated.
      source: how the model's inputs are made of examples.
      batch_size: examples at once; the metric does not depend on it.

    Returns:
      evaluate(params, examples=source.evaluation) -> [seeds], the metric of each seed, from parameters
      of all seeds stacked on their first axis.
    """
    _, value_of, finish, _ = METRICS[source.task]

    def batch_sum(params, tables, examples, mask):
        inputs = source.inputs(tables, examples, None)
        predictions = base.activations(model, params, inputs).logits
        return jnp.sum(value_of(predictions, examples['labels']) * mask)

    sums = jax.jit(jax.vmap(batch_sum, in_axes=(0, None, None, None)))

    def evaluate(params, examples=None):
        examples = source.evaluation if examples is None else examples
        batches, mask = data.padded_batches(examples, batch_size)
        # Summed over batches in float64 on the host: float32 would round with the batch size.
        total = sum(
            np.asarray(sums(params, source.tables, data.take(batches, i), mask[i]), np.float64)
            for i in range(len(mask))
        )
        return finish(total / len(examples['labels']))

    return evaluate


def mean_and_stderr(values):
    """Mean of some seeds' values and its standard error, s / sqrt(n); the error of one value is None."""
    values = np.asarray(values, np.float64)
    stderr = None if len(values) < 2 else float(values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()), stderr
