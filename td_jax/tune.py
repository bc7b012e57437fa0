"""Chooses the knobs of each method on the validation slice; the test period is never read.

    python -m td_jax.tune --config=movielens --split_by=user --jobs=2 --workdir=runs/tune \
        --journals=docs/results/search --output=td_jax/configs/tuned/movielens.json

Restartable: called again, it goes on, on another machine from the journals alone. With
--columns=War what is chosen is filed under that name, beside what is chosen on the usual columns.
"""

import json

from absl import flags

from td_jax import command_line
from td_jax.files import workdir
from td_jax.reproduction import jobs, tuning


def main():
    name = flags.DEFINE_string('config', None, f'A module of td_jax/configs/: {", ".join(tuning.CONFIGS)}.')
    split_by = flags.DEFINE_string('split_by', 'time', 'MovieLens: how ratings are split, time or user.')
    columns = flags.DEFINE_list(
        'columns', None, 'Genres, or images a class, whose mean chooses; a few by default.'
    )
    methods = flags.DEFINE_list(
        'methods', None, f'Methods, variants and {tuning.TEACHER}, which is first; all by default.'
    )
    trials = flags.DEFINE_integer('trials', 40, 'Trials a method.', lower_bound=1)
    seeds = flags.DEFINE_integer('seeds', 1, 'Students of a run, with seeds of their own.', lower_bound=1)
    steps = flags.DEFINE_integer('steps', 1500, 'Steps of a run, the most that can be chosen.', lower_bound=1)
    count = flags.DEFINE_integer(
        'jobs',
        1,
        'Methods searched at once, each kept to its share of the cores; 0: one on each.',
        lower_bound=0,
    )
    folder = flags.DEFINE_string('workdir', None, 'Folder of all runs; called again, it goes on.')
    journals = flags.DEFINE_string(
        'journals', None, 'Folder of the journals of all trials, from which another machine goes on.'
    )
    output = flags.DEFINE_string('output', None, 'JSON file that gets the choices, others kept.')

    def command():
        search = tuning.search_of(
            name.value, split_by.value, columns.value, trials.value, seeds.value, steps.value
        )
        names = tuning.names_for(name.value) if methods.value is None else methods.value
        root, *places = (workdir.resolve(flag.value) for flag in (folder, journals, output))
        tuning.check(search, names, *places)
        processes = jobs.prepare(count.value, root)
        for searched, record in tuning.tune(search, names, root, *places, processes):
            print(f'{searched}: {json.dumps(record)}', flush=True)

    command_line.run(command, required=('config', 'workdir', 'journals', 'output'))


if __name__ == '__main__':
    main()
