"""Chooses the knobs of each method on the validation slice; the test period is never read.

    python -m td_jax.tune --config=movielens --columns=Drama,War --trials=12 --workdir=runs/tune \
        --output=configs/tuned/movielens.json

Restartable: a finished trial is read from its folder.
"""

from absl import flags

from td_jax import command_line
from td_jax.files import workdir
from td_jax.reproduction import tuning


def main():
    name = flags.DEFINE_string('config', None, f'A module of configs/: {", ".join(tuning.CONFIGS)}.')
    columns = flags.DEFINE_list('columns', None, 'Genres to tune for, or the data set name.')
    methods = flags.DEFINE_list(
        'methods', [tuning.TEACHER, *tuning.SPACES], 'Methods to tune, the teacher first.'
    )
    trials = flags.DEFINE_integer('trials', 12, 'Trials a method, at least one a stage.', lower_bound=2)
    seeds = flags.DEFINE_integer('seeds', 3, 'Seeds a trial.', lower_bound=1)
    steps = flags.DEFINE_integer('steps', 1000, 'Longest run.', lower_bound=1)
    folder = flags.DEFINE_string('workdir', None, 'Folder of all trials; called again, it goes on.')
    output = flags.DEFINE_string('output', None, 'JSON file that gets the choices, others kept.')

    def command():
        records = tuning.tune(
            name.value,
            columns.value,
            methods.value,
            trials.value,
            seeds.value,
            steps.value,
            workdir.resolve(folder.value),
            workdir.resolve(output.value),
        )
        for record in records:
            print(f'{record}', flush=True)

    command_line.run(command, required=('config', 'columns', 'methods', 'workdir', 'output'))


if __name__ == '__main__':
    main()
