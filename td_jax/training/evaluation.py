"""Exact metrics: every example counts once, whatever the batch size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.data import base as data
from td_jax.devices import sharding
from td_jax.method import objectives
from td_jax.models import base


def _is_correct(predictions, labels):
    is_correct = (predictions.argmax(axis=-1) == labels).astype(jnp.float32)
    # argmax takes the first NaN for the largest, which would be right as often as class 0 is.
    return jnp.where(jnp.isfinite(predictions).all(axis=-1), is_correct, jnp.nan)


# task -> (metric, value of each example [batch], what becomes of the mean, whether less is better)
METRICS = {
    'regression': ('rmse', objectives.squared_error, np.sqrt, True),
    'classification': ('accuracy', _is_correct, lambda mean: mean, False),
}


# metric -> whether less of it is better.
LESS_IS_BETTER = {metric: less for metric, _, _, less in METRICS.values()}


class Scores(NamedTuple):
    """What an evaluation found."""

    metric: np.ndarray  # [seeds]; not finite where a prediction is not
    # [seeds, examples] float32, the squared error of each example or whether it is right, 0 or 1; None of a
    # stream.
    values: np.ndarray | None


def make_values(model: base.Model, source: data.Source, mesh):
    """Makes the compiled part of an evaluation; of data and parameters it keeps nothing.

    Args:
      model, source, mesh: as for make_evaluation.

    Returns:
      values(params, tables, examples, mask) -> [seeds, batch], of parameters of all seeds
    """
    _, value_of, _, _ = METRICS[source.task]
    inputs_of = source.inputs

    def batch_values(params, tables, examples, mask):
        predictions = base.activations(model, params, inputs_of(tables, examples, None)).logits
        # What fills a batch up may be anything, of which a product with 0 may be NaN.
        return jnp.where(mask > 0, value_of(predictions, examples['labels']), 0.0)

    whole = sharding.replicated(mesh)
    return jax.jit(jax.vmap(batch_values, in_axes=(0, None, None, None)), out_shardings=whole)


def make_evaluation(model: base.Model, source: data.Source, batch_size: int, mesh, values=None):
    """Makes the evaluation of a model on `source.evaluation`.

    Args:
      model: what is evaluated.
      source: how the model's inputs are made of examples.
      batch_size: examples at once, rounded up to a multiple of the devices; the metric does not depend on it.
      mesh: the devices, by sharding.make_mesh.
      values: by make_values of the same, or of a run that compiles the same; None makes it.

    Returns:
      evaluate(params, examples=source.evaluation) -> Scores, from parameters of all seeds stacked on their
      first axis. Every process must call it, and has all of them.
    """
    _, _, finish, _ = METRICS[source.task]
    devices, whole = mesh.devices.size, sharding.replicated(mesh)
    values_of = values or make_values(model, source, mesh)

    def evaluate(params, examples=None):
        examples = source.evaluation if examples is None else examples
        # Not more rows than there are examples, rounded up to a multiple of the devices.
        size = -(-min(batch_size, data.count(examples)) // devices) * devices
        tables = sharding.place(source.tables, whole)
        count, in_memory = data.count(examples), isinstance(examples, dict)
        # Summed in float64 on the host: float32 would round with the batch size.
        total, kept = 0.0, []
        for batch, mask in batches(examples, size, mesh):
            placed = sharding.place_rows((batch, mask), mesh, size)
            values = np.asarray(values_of(params, tables, *placed))
            total += values.sum(axis=1, dtype=np.float64)
            if in_memory:
                kept.append(values)
        # What fills up is at the end.
        kept = np.concatenate(kept, axis=1)[:, :count] if in_memory else None
        return Scores(finish(total / count), kept)

    return evaluate


def of_groups(source: data.Source, values: np.ndarray) -> dict[str, dict]:
    """The metric of each group of evaluation examples that is not empty.

    Args:
      source: of the examples, with its groups.
      values: [seeds, examples], as Scores has them.

    Returns:
      {group: {'count': examples, 'values': [seeds] as a list}}
    """
    finish = METRICS[source.task][2]
    return {
        name: {
            'count': int(is_in.sum()),
            'values': finish(values[:, is_in].mean(axis=1, dtype=np.float64)).tolist(),
        }
        for name, is_in in source.groups.items()
        if is_in.any()
    }


def batches(examples: dict | data.EvaluationStream, batch_size: int, mesh):
    """One pass over some examples: the rows of every batch that belong to this process, with their mask."""
    rows = sharding.local_rows(mesh, batch_size)
    if not isinstance(examples, dict):
        yield from examples.open(rows.stop - rows.start, jax.process_index(), jax.process_count())
        return
    padded, mask = data.padded_batches(examples, batch_size)
    for i in range(len(mask)):
        yield jax.tree.map(lambda x, i=i: x[i, rows], (padded, mask))


def mean_and_stderr(values):
    """Mean of some seeds' values and its standard error, s / sqrt(n); the error of one value is None."""
    values = np.asarray(values, np.float64)
    stderr = None if len(values) < 2 else float(values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()), stderr
