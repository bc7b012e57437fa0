"""How long one step of a full-size ViT-B/32 takes, compared with what this machine can do.

    python -m benchmarks.vit [--batch=16] [--rounds=0,1,2] [--repeats=3] [--dtype=float32] [--image_size=224]

TD between a ViT-B/32 with random weights and a student of 4 of its blocks: milliseconds, floating-point
operations (of the products, counted from the shapes), their rate as a share of that of one large float32
product in the same process, memory that the compiled program needs, and what a round adds in time and
in operations.
"""

import time

import jax
import numpy as np
from absl import flags

from benchmarks import products
from td_jax import command_line
from td_jax.configs import vit_imagenet
from td_jax.data import images
from td_jax.devices import flops, sharding
from td_jax.training import assembly, dispatch


def measure(config, repeats: int) -> dict:
    """Runs the step of a config on random images.

    Returns:
      {'compile': seconds, 'seconds': of a step, 'operations': of a step, 'memory': bytes}
    """
    source = images.abstract_source(config.dataset, config.dataset)
    theirs = source._replace(label_names=tuple(map(str, range(assembly.PUBLIC_LABELS))))
    mesh = sharding.make_mesh(config)
    teacher = assembly.untrained_teacher(config, theirs)
    run = assembly.assemble(config, source, teacher, mesh)
    keys = dispatch.seed_keys(config)
    rng, side = np.random.default_rng(0), config.dataset.image_size
    examples = {
        'image': rng.integers(0, 256, (1, config.batch_size, side, side, 3), np.uint8),
        'labels': rng.integers(0, len(source.label_names), (1, config.batch_size), np.int32),
    }
    examples = sharding.place_rows(examples, mesh, config.batch_size, axis=1)
    progress = run.begin(run.init(keys))
    began = time.perf_counter()
    compiled = run.jitted.lower(progress, run.constants, keys, examples).compile()
    compile_seconds = time.perf_counter() - began
    operations = flops.of(run.jitted, progress, run.constants, keys, examples)
    memory = compiled.memory_analysis()
    fastest = np.inf
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        progress = jax.block_until_ready(compiled(progress, run.constants, keys, examples))
        # The first run touches its memory for the first time.
        fastest = min(fastest, time.perf_counter() - began) if repeat else fastest
    return {
        'compile': compile_seconds,
        'seconds': fastest,
        'operations': operations,
        'memory': memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    }


def main():
    batch = flags.DEFINE_integer('batch', 16, 'Images per step.', lower_bound=1)
    rounds = flags.DEFINE_list('rounds', '0,1,2', 'Rounds of conversation.')
    repeats = flags.DEFINE_integer('repeats', 3, 'Steps a case; the fastest counts.', lower_bound=1)
    dtype = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'What products are computed in.')
    side = flags.DEFINE_integer('image_size', 224, 'Side of an image in pixels.', lower_bound=32)

    def command():
        rate = products.rate(repeats.value)
        print(f'{products.describe(rate)}\n')
        head = 'rounds', 'compile, s', 'ms a step', 'GFLOP', 'of the product', 'memory, GB'
        print(f'| {" | ".join(head)} | a round: time | counted |')
        print('| --- | --- | --- | --- | --- | --- | --- | --- |')
        before = None
        for count in map(int, rounds.value):
            config = vit_imagenet.get_config()
            config.batch_size, config.compute_dtype = batch.value, dtype.value
            config.dataset.image_size, config.td.rounds = side.value, count
            measured = measure(config, repeats.value)
            added = ['', '']
            if before:
                added = [f'{measured[key] / before[key] - 1:+.0%}' for key in ('seconds', 'operations')]
            before = measured
            print(
                f'| {count} | {measured["compile"]:.1f} | {1000 * measured["seconds"]:.0f} '
                f'| {measured["operations"] / 1e9:.0f} '
                f'| {measured["operations"] / measured["seconds"] / rate:.0%} '
                f'| {measured["memory"] / 1e9:.2f} '
                f'| {added[0]} | {added[1]} |',
                flush=True,
            )

    command_line.run(command, required=())


if __name__ == '__main__':
    main()
