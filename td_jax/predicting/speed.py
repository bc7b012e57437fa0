"""Measures the time of a trained student per example on this machine."""

import time

import jax
import numpy as np
from etils import epath

from td_jax.data import base as data
from td_jax.models import base
from td_jax.training import finished, train_step


def time_per_example(folder: epath.Path, batch_size: int = 64, repeats: int = 20) -> float:
    """Measures the seconds per example of a finished run's student, in batches, on this machine.

    The result is the minimum over the repetitions after the first one, which compiles.
    """
    run = finished.load(folder, with_examples=True)
    example = data.one_example(run.source)
    examples = {name: np.repeat(array, batch_size, axis=0) for name, array in example.items()}
    params = jax.device_put(run.params[train_step.STUDENT])

    @jax.jit
    def predict(params, examples):
        inputs = run.source.inputs(run.source.tables, examples, None)
        return base.activations(run.student, params, inputs).logits

    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        predict(params, examples).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / batch_size
