"""Chooses the hyperparameters of each method on the validation slice; the test period is never read.

    python -m td_jax.tune --config=movielens --split_by=user --jobs=2 --workdir=runs/tune \
        --journals=docs/results/search --output=td_jax/configs/tuned/movielens.json

The same command resumes an interrupted search, on another machine from the journals alone. With --shard=I/N
several machines share it, and --only_show writes the choices. With --columns=War or --sampler_seed=1 the
choices are stored under that name, next to those of the usual columns and draws.
"""

import json

from absl import flags

from td_jax import command_line, quantities
from td_jax.configs import searches
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import jobs, tuning
from td_jax.training import teacher_outputs


def main():
    name = flags.DEFINE_string('config', None, f'A module of td_jax/configs/: {", ".join(tuning.CONFIGS)}.')
    split_by = flags.DEFINE_string('split_by', 'time', 'MovieLens: how ratings are split, time or user.')
    columns = flags.DEFINE_list(
        'columns', None, 'Genres, or images per class, over whose mean is selected; a few by default.'
    )
    methods = flags.DEFINE_list(
        'methods',
        None,
        f'Methods, variants and {tuning.TEACHER}, which is first; all by default, '
        f'with another --sampler_seed {", ".join(searches.MAIN)}.',
    )
    unlabelled = flags.DEFINE_string(
        'unlabelled',
        None,
        'Images: whether a column uses the examples that it has no labels of: rest, or none; by default as '
        'in the config.',
    )
    trials = flags.DEFINE_integer(
        'trials', 16, 'Trials per method.', lower_bound=1, upper_bound=quantities.MOST_TRIALS
    )
    seeds = flags.DEFINE_integer(
        'seeds',
        3,
        'Students per run, each with its own seed.',
        lower_bound=2,
        upper_bound=quantities.MOST_SEEDS,
    )
    steps = flags.DEFINE_integer(
        'steps', 1500, 'Steps per run: the most that can be selected.', lower_bound=1
    )
    sampler_seed = flags.DEFINE_integer(
        'sampler_seed', 0, 'Seed of the draws; the teacher has 0.', lower_bound=0
    )
    runs = command_line.define_runs()
    journals = flags.DEFINE_string(
        'journals', None, 'Folder of the journals of all trials, from which another machine resumes.'
    )
    output = flags.DEFINE_string('output', None, 'JSON file that gets the choices; others in it are kept.')
    outputs = command_line.define_teacher_outputs()
    teacher = command_line.define_teacher()

    def command():
        command_line.refuse_without_effect(
            {'shard': ('only_show',), 'only_show': ('teacher_outputs', 'teacher')}
        )
        search = tuning.make_search(
            name.value,
            split_by.value,
            columns.value,
            trials.value,
            seeds.value,
            steps.value,
            sampler_seed.value,
            unlabelled=unlabelled.value,
            teacher=teacher.value or '',
        )
        default = tuning.searchable_names(search.space, sampler_seed.value)
        names = default if methods.value is None else list(dict.fromkeys(methods.value))
        root, folder, target = (workdir.resolve(flag.value) for flag in (runs.folder, journals, output))
        shard, only_show = jobs.read_shard(runs.shard.value), runs.only_show.value
        tuning.check(search, names, folder, target)
        teacher_outputs.use(*(flag.value for flag in outputs))
        if line := teacher_outputs.describe_unused(tuning.first_configs(search, names)):
            command_line.print_message(line)
        processes = 1 if only_show else jobs.prepare(runs.count.value, root)
        if shard:
            # Several workers make the same choices; --only_show writes them to --output.
            choices, target = workdir.read_json(target) or {}, root / f'choices.{shard}.json'
            workdir.make_folder('workdir', root)
            workdir.write(target, json.dumps(choices))
        for searched_name, record in tuning.tune(
            search, names, root, folder, target, processes, shard, only_show
        ):
            print(f'{searched_name}: {json.dumps(record)}', flush=True)
        choices = workdir.read_json(target)
        last_step_names = [] if shard else tuning.at_last_step(search, names, choices)
        if last_step_names:
            raise UserError(
                f'{", ".join(last_step_names)} chose the last step: the step budget binds, and what was '
                f'chosen is not final; call this again with --steps={2 * steps.value}.'
            )

    command_line.run(command, required=('config', 'workdir', 'journals', 'output'))


if __name__ == '__main__':
    main()
