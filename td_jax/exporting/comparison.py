"""Compares the size and the speed of a student with those of its teacher."""

import time

import jax
import numpy as np

from td_jax import text_tables
from td_jax.data import base as data
from td_jax.models import base
from td_jax.training import finished as finished_runs
from td_jax.training import train_step

# Batch sizes for timing; the minimum over REPEATS repeats, or over those within SECONDS.
BATCHES = (1, 32)
REPEATS, SECONDS = 50, 2.0


def repeat_example(source: data.Source, count: int) -> dict[str, np.ndarray]:
    """Repeats one example, {name: [count, ...]}; the time does not depend on the content."""
    return data.take(data.one_example(source), np.zeros(count, np.int32))


def measure_milliseconds(model: base.Model, params, inputs) -> float:
    """Measures the time per example from inputs to logits, jitted, the minimum over some repeats."""
    # Includes the upper state, because a teacher without a head has no other output.
    run = jax.jit(lambda params, inputs: base.activations(model, params, inputs)[1:])
    params, inputs = jax.device_put((params, inputs))
    upper, _ = jax.block_until_ready(run(params, inputs))
    best, end = float('inf'), time.perf_counter() + SECONDS
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run(params, inputs))
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            break
    return 1000 * best / len(upper)


def render_table(finished: finished_runs.FinishedRun) -> str:
    """Renders size and speed of a student and its teacher, one line each under a header."""
    models = {'student': (finished.student, finished.source, finished.params[train_step.STUDENT])}
    if finished.teacher:
        models['teacher'] = finished.teacher.model, finished.teacher.source, finished.teacher.params
    examples = [repeat_example(finished.source, batch) for batch in BATCHES]
    unit = 'image' if 'image' in examples[0] else 'example'
    rows = [('', 'parameters', *(f'ms an {unit}, {batch} at once' for batch in BATCHES))]
    for name, (model, source, params) in models.items():
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        times = [measure_milliseconds(model, params, source.inputs(source.tables, x, None)) for x in examples]
        rows.append((name, f'{size:,}', *(f'{value:.4f}' for value in times)))
    lines, device = text_tables.align(rows, right=range(1, len(rows[0]))), jax.devices()[0]
    return '\n'.join([*lines, f'(on {device.device_kind}, {finished.config.compute_dtype}, jitted)'])
