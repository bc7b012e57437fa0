"""How fast students of a public CNN train, compared with what this machine can do.

    python -m benchmarks.public_cnn [--methods=supervised,ld,td] [--seeds=2] [--steps=5] [--repeats=2]

The config is configs/public_cnn_cifar10.py with 50 labels per class, an EfficientNet-lite0 of random weights
and random images, which cost as much as real ones. For the teacher alone on the images of a step, and for
each method: compile time, floating-point operations per step and seed (of the products, counted from the
shapes), milliseconds per step and seed, and the rate of operations as a share of that of one large float32
product in the same process. The best of some repeats counts.
"""

import time

import jax
import numpy as np
from absl import flags

from benchmarks import products
from benchmarks import steps as steps_lib
from td_jax import command_line
from td_jax.configs import public_cnn_cifar10
from td_jax.data import images
from td_jax.devices import flops
from td_jax.method import objectives
from td_jax.models import base
from td_jax.training import assembly, dispatch

TEACHER = 'teacher'


def make_config(method: str, seeds: int):
    """The config of a method, or of LD for TEACHER."""
    config = public_cnn_cifar10.get_config()
    config.method = 'ld' if method == TEACHER else method
    config.num_seeds = seeds
    config.dataset.examples_per_class = 50
    # The teacher is a part of the step here; a run reads what it computed once for fixed views.
    config.teacher.views = 0
    return config


def make_parts(config):
    """(a Source of random images, a teacher with random weights or None)"""
    rng = np.random.default_rng(0)
    source = images.abstract_source(config.dataset, config.dataset, assembly.of_teacher(config))

    def fill(array):
        return rng.integers(0, 256, array.shape, np.uint8)

    labels, others = np.arange(len(source.train['labels']), dtype=np.int32) % 10, source.unlabelled
    source = source._replace(
        train={'image': fill(source.train['image']), 'labels': labels},
        unlabelled=others._replace(examples={'image': fill(others.examples['image'])}),
    )
    if not objectives.active_terms(config):
        return source._replace(unlabelled=None), None
    names = tuple(map(str, range(1000)))
    theirs = source._replace(label_names=names, inputs=source.inputs_for(config.teacher.dataset))
    return source, assembly.untrained_teacher(config, theirs)


def measure(method: str, seeds: int, steps: int, repeats: int) -> dict:
    """Times a method.

    Returns:
      {'compile': seconds, 'operations': and 'seconds' of a step of one seed}
    """
    config = make_config(method, seeds)
    source, teacher = make_parts(config)
    if method == TEACHER:
        return _measure_teacher(config, source, teacher, repeats)
    return steps_lib.measure(config, source, teacher, steps, repeats)


def _measure_teacher(config, source, teacher, repeats):
    """`measure` of the teacher alone, on the labelled and the other images of a step."""
    size = config.batch_size + dispatch.unlabelled_batch_size(source, config)
    pixels = np.resize(source.train['image'], (size, *source.train['image'].shape[1:]))

    @jax.jit
    def run(params, pixels):
        inputs = teacher.source.inputs((), {'image': pixels}, jax.random.key(0))
        return base.activations(teacher.model, params, inputs)

    began = time.perf_counter()
    compiled = run.lower(teacher.params, pixels).compile()
    compile_seconds = time.perf_counter() - began
    seconds = min(products.seconds(lambda: compiled(teacher.params, pixels)) for _ in range(repeats + 1))
    return {
        'compile': compile_seconds,
        'operations': flops.of(run, teacher.params, pixels),
        'seconds': seconds,
    }


def main():
    methods = flags.DEFINE_list('methods', 'supervised,ld,td', 'Methods, timed after the teacher alone.')
    seeds = flags.DEFINE_integer('seeds', 2, 'Students side by side.', lower_bound=1)
    steps = flags.DEFINE_integer('steps', 5, 'Steps per repeat.', lower_bound=1)
    repeats = flags.DEFINE_integer('repeats', 2, 'Repeats per case; the fastest counts.', lower_bound=1)

    def command():
        rate = products.rate(repeats.value)
        print(f'{products.describe(rate)}; {seeds.value} seeds\n')
        print('| | compile, s | GFLOP per step, seed | ms per step, seed | GFLOP/s | of the product |')
        print('| --- | --- | --- | --- | --- | --- |')
        for method in (TEACHER, *methods.value):
            measured = measure(method, seeds.value, steps.value, repeats.value)
            reached = measured['operations'] / measured['seconds']
            print(
                f'| {method} | {measured["compile"]:.1f} | {measured["operations"] / 1e9:.1f} '
                f'| {1000 * measured["seconds"]:.0f} | {reached / 1e9:.0f} | {reached / rate:.0%} |',
                flush=True,
            )

    command_line.run(command, required=())


if __name__ == '__main__':
    main()
