"""Trains one run: flags and process start-up, nothing else.

python -m td_jax.main --config=configs/movielens.py --workdir=runs/drama --config.method=fitnet
"""

from absl import flags
from ml_collections import config_flags

from td_jax import command_line


def main():
    config = config_flags.DEFINE_config_file('config', None, 'A config file; --config.KEY=VALUE overrides.')
    folder = flags.DEFINE_string('workdir', None, 'Folder of the run, made if missing.')

    def train():
        # Imported here: it takes seconds, and a mistake in a flag is told without them.
        from td_jax import experiment, workdir

        print(experiment.describe(experiment.run(config.value, workdir.resolve(folder.value))))

    command_line.run(train, required=('config', 'workdir'))


if __name__ == '__main__':
    main()
