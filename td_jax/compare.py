"""Compares methods on your own data with one command, and keeps the best student.

    python -m td_jax.compare --config=configs/images.py --config.dataset.path=photos --workdir=runs/photos

searches the hyperparameters of each method on validation data with the same budget, trains several students
with the chosen ones, evaluates them on the test split once, and prints a table of differences to the student
without a teacher. WORKDIR/best is the workdir of the chosen student, ready for td_jax.predict and
td_jax.export; report.html shows all runs, and comparison.json has every number.

An option that you set on the command line is not searched. The same command resumes. With --shard=I/N several
machines share the work, and --only_show joins it.
"""

import json
import math
import pathlib

from absl import flags

from td_jax import command_line, quantities
from td_jax.errors import UserError
from td_jax.files import workdir

# The default methods.
METHODS = ('supervised', 'ld', 'td', 'td_ld')
# The default number of trials per variant.
TRIALS = 8
# A search has to end; far above it, the number of trials is no longer a machine's integer.
MOST_HOURS = 1e5
REPORT, COMPARISON = 'report.html', 'comparison.json'


def run(
    config,
    folder,
    *,
    methods=METHODS,
    variants=None,
    fixed=(),
    trials: int | None = None,
    hours: float | None = None,
    steps: int = 0,
    search_seeds: int = 2,
    seeds: int = 5,
    teachers: int = 0,
    jobs: int = 1,
    shard: str | None = None,
    only_show: bool = False,
    models=None,
    sources=None,
    own_methods=None,
) -> dict | None:
    """Compares variants of a config, as the command does.

    Args:
      config: by common.get_config(), changed.
      folder: of the comparison; made if missing, resumed if it exists.
      methods: names of methods, and td_ld; no distillation is always included.
      variants: {name: {config key: value}} of further variants; keys that they set are not searched.
      fixed: keys of the config that are not searched.
      trials: of each variant; 0 keeps the hyperparameters of the config, None is TRIALS.
      hours: of the whole search, in place of `trials`, divided evenly between the variants.
      steps: of a run of the search, an upper bound on the choice; 0 for config.num_steps.
      search_seeds: students of a run of the search.
      seeds: students of each variant.
      teachers: that these share; 0 for as many as students.
      jobs: runs at once; 0 for one on each core.
      shard: I/N, of N workers that share the folder; as the flag.
      only_show: whether to run nothing, and to join what the workers have done.
      models, sources, own_methods: the caller's own parts, as for td_jax.train (own_methods is `methods`
        there). They need jobs=1, because other processes could not import them.

    Returns:
      the content of comparison.json; None for one of several workers

    Raises:
      UserError: anything the caller can change, such as an unknown method.
    """
    # Imported here: it takes seconds, and invalid flags are reported without it.
    from td_jax import own
    from td_jax.devices import flops
    from td_jax.reporting import page
    from td_jax.reproduction import jobs as jobs_lib
    from td_jax.reproduction import summary, tuning
    from td_jax.reproduction import variants as engine
    from td_jax.training import public_teacher, teacher_outputs

    root = workdir.resolve(str(folder))
    worker = jobs_lib.read_shard(shard)
    if worker and only_show:
        raise UserError('--only_show has no effect with --shard; leave one of them out.')
    _check_effort(trials, hours, steps)
    _check_counts(trials=trials or 0, seeds=seeds, search_seeds=search_seeds, teachers=teachers)
    if jobs != 1 and (models or sources or own_methods):
        raise UserError(f'jobs is {jobs}, but models, sources and methods of your own need jobs=1.')
    if workdir.holds_run(root):
        raise UserError(f'{root} holds a run, by its {workdir.CONFIG}; choose another --workdir.')
    if not only_show:
        # Before the checks of the config, which may take minutes.
        jobs_lib.count_processes(jobs)
    with own.use_parts(models, sources, own_methods):
        config = public_teacher.complete(config, root, fixed, any_method=True)
        plan = engine.make_plan(
            config,
            methods,
            variants or {},
            fixed,
            trials=TRIALS if trials is None else trials,
            steps=steps,
            search_seeds=search_seeds,
            seeds=seeds,
            teachers=teachers,
        )
        for line in engine.describe_without_effect(plan, fixed):
            command_line.print_message(line)
        if line := teacher_outputs.describe_unused(tuning.first_configs(plan.search, plan.names)):
            command_line.print_message(line)
        # Before programs are cached in the workdir, which is made later.
        rate = None if only_show else flops.measure_rate(plan.config.compute_dtype)
        processes = 1 if only_show else jobs_lib.prepare(jobs, root)
        if hours is not None:
            plan = engine.fit_trials(plan, root, hours, processes, worker, only_show)
            command_line.print_message(f'{plan.search.trials} trials per variant fit into {hours:g} hours')
        if not only_show:
            command_line.print_message(_describe_cost(engine.estimate_cost(plan), rate))
        rows = engine.run(plan, root, processes, worker, only_show)
        if worker:
            command_line.print_message(
                f'the part of --shard={shard} is done; --only_show joins the parts of all'
            )
            return None
        compared = summary.compare(rows)
        best = engine.choose_best(plan, rows)
        best_folder = engine.keep_best(best, root)
        seconds = _time_rows(rows)
        record = summary.record(plan, rows, compared, best) | {'seconds_per_example': seconds}
        workdir.write(root / COMPARISON, json.dumps(record, indent=2) + '\n')
        page.write(root / engine.STUDENTS, root / REPORT)
        print(summary.table(plan, rows, compared, seconds))
        print(f'\n{record["sentence"]}')
        print(
            f'{best_folder} is a student of {best.name}, the best on validation data: {best.parameters:,} '
            f'parameters, {summary.describe_microseconds(seconds[best.name])} µs per example.'
        )
    return record


def _check_effort(trials, hours, steps):
    """Refuses numbers of a search that exclude each other or are none."""
    if hours is not None and trials is not None:
        raise UserError('--trials and --hours both say how long the search is; leave one of them out.')
    if hours is not None and not 0 < hours <= MOST_HOURS:
        raise UserError(f'--hours is {hours:g}; it must be more than 0 and at most {MOST_HOURS:,.0f}.')
    if steps and trials == 0:
        raise UserError('--steps has no effect with --trials=0; leave one of them out.')


def _check_counts(**counts):
    """Refuses counts of runs that nobody could wait for, {flag: count}."""
    for name, count in counts.items():
        most = quantities.MOST_TRIALS if name == 'trials' else quantities.MOST_SEEDS
        if count > most:
            raise UserError(f'--{name} must be at most {most:,}.')


def _time_rows(rows):
    """{variant: seconds per example of a student here}; students that compute the same are timed once."""
    # Imported here as in `run`.
    from td_jax.predicting import speed

    times, seconds = {}, {}
    for row in rows:
        options = {key: value for key, value in row.config.model.to_dict().items() if key != 'dropout'}
        program = json.dumps(
            [options, row.config.dataset.to_dict(), row.config.compute_dtype], sort_keys=True
        )
        if program not in times:
            times[program] = speed.time_per_example(row.folders[0])
        seconds[row.name] = times[program]
    return seconds


def _describe_cost(cost, rate):
    """Describes a Cost in one line, with a lower bound on its time at a rate of operations per second."""
    seconds = cost.operations / rate
    time = f', at least {quantities.describe_duration(seconds)} of this machine' if seconds >= 1 else ''
    return (
        f'{cost.runs} runs, {cost.operations:.3g} operations of matrix products{time}, up to '
        f'{math.ceil(cost.size / 1e6)} MB of checkpoints; finished runs are read back'
    )


def _read_variants(path):
    """Reads variants from a JSON file, {name: {key: value}}."""
    if not path:
        return {}
    variants = workdir.read_json(workdir.resolve(path))
    if variants is None:
        raise UserError(f'--variants {pathlib.Path(path)} is not there.')
    for name, changes in variants.items():
        if not isinstance(changes, dict) or not name.isidentifier():
            raise UserError(
                f'--variants {path}: {name!r} must be a word of letters, digits and _, and have an object of '
                'config keys and values.'
            )
    return variants


def main():
    config = command_line.define_config()
    runs = command_line.define_runs()
    methods = flags.DEFINE_list(
        'methods', list(METHODS), 'Methods, and td_ld; supervised, without a teacher, is always compared.'
    )
    variants = flags.DEFINE_string(
        'variants',
        None,
        'JSON file of variants, {name: {config key: value}}; what they set is not searched.',
    )
    trials = flags.DEFINE_integer(
        'trials',
        None,
        f"Trials per variant, {TRIALS} by default; 0 keeps the config's hyperparameters.",
        lower_bound=0,
    )
    hours = flags.DEFINE_float(
        'hours',
        None,
        'Hours of the search in place of --trials, divided evenly between the variants.',
    )
    steps = flags.DEFINE_integer(
        'steps', 0, 'Steps of a run of the search, the most that can be chosen; 0: num_steps.', lower_bound=0
    )
    search_seeds = flags.DEFINE_integer('search_seeds', 2, 'Students of a run of the search.', lower_bound=1)
    seeds = flags.DEFINE_integer('seeds', 5, 'Students per variant.', lower_bound=2)
    teachers = flags.DEFINE_integer(
        'teachers', 0, 'Teachers that these have between them; 0: one each.', lower_bound=0
    )
    outputs = command_line.define_teacher_outputs()

    def command():
        # Imported here: it takes seconds, and invalid flags are reported without it.
        from td_jax.training import teacher_outputs

        command_line.refuse_without_effect({'only_show': ('teacher_outputs',)})
        teacher_outputs.use(*(flag.value for flag in outputs))
        run(
            config.value,
            runs.folder.value,
            methods=methods.value,
            variants=_read_variants(variants.value),
            fixed=command_line.list_set_keys(),
            trials=trials.value,
            hours=hours.value,
            steps=steps.value,
            search_seeds=search_seeds.value,
            seeds=seeds.value,
            teachers=teachers.value,
            jobs=runs.count.value,
            shard=runs.shard.value,
            only_show=runs.only_show.value,
        )

    command_line.run(command, required=('config', 'workdir', 'methods'))


if __name__ == '__main__':
    main()
