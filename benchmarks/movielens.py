"""How fast MovieLens students train, compared with what this machine can do.

    python -m benchmarks.movielens [--seeds=5] [--steps=140] [--repeats=3]

For every method, and TD by number of rounds, on the real ratings of Drama and the sizes of
configs/movielens.py: compile time, floating-point operations per step and seed (of the products, counted from
the shapes), training steps per second, summed over seeds, and the rate of operations as a share of the rate
of one large float32 product, measured in the same process. Each speed is the best of some repeats: what
disturbs a measurement only makes it slower.
"""

from absl import flags

from benchmarks import products
from benchmarks import steps as steps_lib
from td_jax import command_line, data
from td_jax.configs import movielens
from td_jax.method import objectives
from td_jax.training import assembly

CASES = {
    **{
        name: {'method': name}
        for name, method in objectives.METHODS.items()
        if name != 'td' and 'regression' in method.tasks
    },
    **{
        f'td, {rounds} round{"s" * (rounds != 1)}': {'method': 'td', 'td.rounds': rounds}
        for rounds in range(4)
    },
}


def _parts(config):
    """(the student's data, a teacher with random weights, which costs as much as a trained one)."""
    source = data.SOURCES[config.dataset.name](config.dataset, config.dataset)
    if not objectives.reads_teacher(config):
        return source, None
    theirs = data.SOURCES[config.dataset.name](config.dataset, config.teacher.dataset)
    return source, assembly.untrained_teacher(config, theirs)


def main():
    seeds = flags.DEFINE_integer('seeds', 5, 'Students side by side.', lower_bound=1)
    steps = flags.DEFINE_integer(
        'steps', 140, 'Steps a dispatch; 140 are an epoch, whose shuffling counts.', lower_bound=1
    )
    repeats = flags.DEFINE_integer('repeats', 3, 'Dispatches a case; the fastest counts.', lower_bound=1)

    def command():
        rate = products.rate(repeats.value)
        print(f'{products.describe(rate)}; {seeds.value} seeds\n')
        print(
            '| method | compile, s | GFLOP per step, seed | steps/s, all seeds | GFLOP/s | of the product |'
        )
        print('| --- | --- | --- | --- | --- | --- |')
        for name, changes in CASES.items():
            config = movielens.get_config()
            config.num_seeds = seeds.value
            config.update_from_flattened_dict(changes)
            measured = steps_lib.measure(config, *_parts(config), steps.value, repeats.value)
            reached = measured['operations'] / measured['seconds']
            print(
                f'| {name} | {measured["compile"]:.1f} | {measured["operations"] / 1e9:.2f} '
                f'| {1 / measured["seconds"]:.0f} | {reached / 1e9:.0f} | {reached / rate:.0%} |',
                flush=True,
            )

    command_line.run(command, required=())


if __name__ == '__main__':
    main()
