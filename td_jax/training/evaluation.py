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
    # argmax returns the first NaN, which would count as correct as often as class 0 does.
    return jnp.where(jnp.isfinite(predictions).all(axis=-1), is_correct, jnp.nan)


# task -> (metric, value of each example [batch], transform of the mean, whether less is better)
METRICS = {
    'regression': ('rmse', objectives.squared_error, np.sqrt, True),
    'classification': ('accuracy', _is_correct, lambda mean: mean, False),
}


# metric -> whether less of it is better.
LESS_IS_BETTER = {metric: less for metric, _, _, less in METRICS.values()}


class Scores(NamedTuple):
    """The result of an evaluation."""

    metric: np.ndarray  # [seeds]; not finite where a prediction is not
    # [seeds, examples] float32: the squared error of each example, or 1 if it is correct, else 0. None for a
    # stream.
    values: np.ndarray | None


def make_values(model: base.Model, source: data.Source, mesh):
    """Makes the compiled part of an evaluation, which holds neither data nor parameters.

    Args:
      model, source, mesh: as for make_evaluation.

    Returns:
      values(params, tables, examples, mask) -> [seeds, batch], of parameters of all seeds
    """
    _, compute_value, _, _ = METRICS[source.task]
    make_inputs = source.inputs

    def batch_values(params, tables, examples, mask):
        predictions = base.activations(model, params, make_inputs(tables, examples, None)).logits
        # Padding may be anything, and NaN times a mask of 0 would be NaN.
        return jnp.where(mask > 0, compute_value(predictions, examples['labels']), 0.0)

    whole = sharding.replicated_sharding(mesh)
    return jax.jit(jax.vmap(batch_values, in_axes=(0, None, None, None)), out_shardings=whole)


def make_evaluation(model: base.Model, source: data.Source, batch_size: int, mesh, values=None):
    """Makes the evaluation of a model on `source.evaluation`.

    Args:
      model: the model to evaluate.
      source: its data.
      batch_size: examples per batch, rounded up to a multiple of the devices; it does not change the metric.
      mesh: the devices, by sharding.make_mesh.
      values: by make_values, of the same run or one that compiles the same; None makes it here.

    Returns:
      evaluate(params, examples=source.evaluation) -> Scores, from parameters of all seeds stacked on their
      first axis. Every process must call it, and gets all of them.
    """
    _, _, finish, _ = METRICS[source.task]
    devices, whole = mesh.devices.size, sharding.replicated_sharding(mesh)
    compute_values = values or make_values(model, source, mesh)

    def evaluate(params, examples=None):
        examples = source.evaluation if examples is None else examples
        # At most as many rows as examples, rounded up to a multiple of the devices.
        size = -(-min(batch_size, data.count(examples)) // devices) * devices
        tables = sharding.place(source.tables, whole)
        count, in_memory = data.count(examples), isinstance(examples, dict)
        # Summed in float64 on the host: float32 would round with the batch size.
        total, all_values = 0.0, []
        for batch, mask in iterate_batches(examples, size, mesh):
            placed = sharding.place_rows((batch, mask), mesh, size)
            values = np.asarray(compute_values(params, tables, *placed))
            total += values.sum(axis=1, dtype=np.float64)
            if in_memory:
                all_values.append(values)
        # The padding is at the end.
        all_values = np.concatenate(all_values, axis=1)[:, :count] if in_memory else None
        return Scores(finish(total / count), all_values)

    return evaluate


def score_groups(source: data.Source, values: np.ndarray) -> dict[str, dict]:
    """Computes the metric of each group of evaluation examples that is not empty.

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


def iterate_batches(examples: dict | data.EvaluationStream, batch_size: int, mesh):
    """Iterates once over some examples: this process's rows of each batch, and their mask."""
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
