"""How long the training steps of a config take, compiled as a run compiles them."""

import time

import jax
import numpy as np

from td_jax.devices import flops, sharding
from td_jax.training import assembly, dispatch


def measure(config, source, teacher, steps: int, repeats: int) -> dict:
    """Trains a config's students for some steps, some times.

    Args:
      config: of the run.
      source: its data.
      teacher: its dispatch.Teacher, or None.
      steps: of a dispatch.
      repeats: dispatches, of which the fastest counts.

    Returns:
      {'compile': seconds, 'operations': of one step of one seed, 'seconds': of one step of one seed}
    """
    run = assembly.assemble(config, source, teacher, sharding.make_mesh(config))
    keys = dispatch.seed_keys(config)
    progress, order = run.begin(run.init(keys)), run.feed(keys, 0)
    began = time.perf_counter()
    compiled = run.jitted.lower(progress, order, run.constants, keys, 1).compile()
    compile_seconds = time.perf_counter() - began
    operations = flops.of(run.jitted, progress, order, run.constants, keys, 1) // config.num_seeds

    fastest = np.inf
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        stop = (repeat + 1) * steps
        progress, order = jax.block_until_ready(compiled(progress, order, run.constants, keys, stop))
        # The first dispatch touches its memory for the first time.
        fastest = min(fastest, time.perf_counter() - began) if repeat else fastest
    return {
        'compile': compile_seconds,
        'operations': operations,
        'seconds': fastest / steps / config.num_seeds,
    }
