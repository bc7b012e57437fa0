"""The size and the speed of a student, compared with its teacher's."""

import time

import jax
import numpy as np

from td_jax.data import base as data
from td_jax.models import base
from td_jax.training import finished as finished_runs
from td_jax.training import train_step

# Images at once, as they are timed; the best of so many repeats, or of what fits into so many seconds.
BATCHES = (1, 32)
REPEATS, SECONDS = 50, 2.0


def examples_of(source: data.Source, count: int) -> dict[str, np.ndarray]:
    """One example so many times, {name: [count, ...]}: what is timed takes as long for any."""
    return data.take(data.one_example(source), np.zeros(count, np.int32))


def milliseconds(model: base.Model, params, inputs) -> float:
    """The time of one example on the way from inputs to logits, jitted, the best of some repeats."""
    # With the states that it reads: of a teacher without a head, nothing else would be computed.
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


def table(finished: finished_runs.FinishedRun) -> str:
    """The size and the speed of a student and its teacher, one line each under a header."""
    models = {'student': (finished.student, finished.source, finished.params[train_step.STUDENT])}
    if finished.teacher:
        models['teacher'] = finished.teacher.model, finished.teacher.source, finished.teacher.params
    examples = [examples_of(finished.source, batch) for batch in BATCHES]
    unit = 'image' if 'image' in examples[0] else 'example'
    rows = [('', 'parameters', *(f'ms an {unit}, {batch} at once' for batch in BATCHES))]
    for name, (model, source, params) in models.items():
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        times = [milliseconds(model, params, source.inputs(source.tables, x, None)) for x in examples]
        rows.append((name, f'{size:,}', *(f'{value:.4f}' for value in times)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]).rstrip() for row in rows
    ]
    device = jax.devices()[0]
    return '\n'.join([*lines, f'(on {device.device_kind}, {finished.config.compute_dtype}, jitted)'])
