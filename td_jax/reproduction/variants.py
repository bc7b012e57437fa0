"""Compares variants of one config on a user's own data: searches each, trains students, keeps the best one.

A variant is a method or a named set of changes to the config. All variants, including the student without
distillation, are searched with the same budget on validation data (tuning.py). Then several students of each
are trained with the chosen hyperparameters, and evaluated on the test split once. The best variant is the one
with the best validation score; its first student is copied to a folder of its own. Nothing is selected on the
test split.
"""

import bisect
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import fsspec
import jax
import ml_collections
from etils import epath

from td_jax import config as config_lib
from td_jax import statistics
from td_jax.configs import searches
from td_jax.devices import flops
from td_jax.errors import Diverged, UserError
from td_jax.files import workdir
from td_jax.method import objectives
from td_jax.reproduction import cells, jobs, tables, tuning
from td_jax.training import assembly, evaluation, finished, preflight

# Names of folders and files of a comparison.
CHOICES, STUDENTS = 'choices.json', 'students'
# The number of trials that fit into the hours of a search, and the seconds per run that decided it.
HOURS = 'hours.json'
# The folder whose lock the worker holds that decides it; a report reads none whose name begins with a point.
HOURS_LOCK = '.hours'
# Number of validations in a run of a search.
POINTS = 20
# Keys of the examples that a score is of, and of their labels.
_OF_SCORES = (
    *('name', 'path', 'tfds', 'movielens', 'genre', 'filter_column', 'filter_value', 'classes', 'split'),
    *('test_part', 'split_by', 'validation_slice'),
    *('user_column', 'item_column', 'rating_column', 'timestamp_column'),
)
# Keys that a variant cannot set: the comparison sets them, or pairs students by them; or scores would be of
# different examples.
OF_ALL_VARIANTS = 'num_seeds', 'role', 'seed', 'seed_step', *(f'dataset.{key}' for key in _OF_SCORES)


class Plan(NamedTuple):
    """The variants of a comparison and its budget."""

    config: ml_collections.ConfigDict  # the base of all variants
    names: tuple[str, ...]  # of the variants, tuning.NO_DISTILLATION first
    search: tuning.Search
    is_searched: bool  # if not, every variant has the hyperparameters of the config
    seeds: int  # students of each variant
    teachers: int  # that the students of a variant share
    operations: Mapping[str, float]  # variant -> operations per training step of one student
    # variant -> its teacher if it trains one; TEACHER -> that of the search
    teachers_of: Mapping[str, 'Trained']

    def metric(self) -> str:
        """The name of the metric."""
        return evaluation.METRICS[self.search.space.task][0]

    def less_is_better(self) -> bool:
        """Whether a smaller value of the metric is better."""
        return evaluation.METRICS[self.search.space.task][3]

    def searched(self) -> list[str]:
        """The names that are searched: those of the variants, after the teacher if one is trained."""
        has_teacher = self.is_searched and tuning.TEACHER in tuning.searchable_names(self.search.space)
        return [*[tuning.TEACHER] * has_teacher, *self.names]


class Trained(NamedTuple):
    """A teacher that is trained."""

    identity: str  # the same for variants with the same teacher
    operations: float  # per training step
    parameters: int


class Row(NamedTuple):
    """The outcome of a variant."""

    name: str
    config: ml_collections.ConfigDict  # with the chosen values, of all its students
    validation: float  # score of the choice
    result: dict  # by cells.read_cell
    folders: list[epath.Path]  # of its runs
    parameters: int  # of a student


def make_plan(
    config,
    methods: Iterable[str],
    own_variants: Mapping[str, dict],
    fixed: Iterable[str],
    *,
    trials: int,
    steps: int,
    search_seeds: int,
    seeds: int,
    teachers: int,
) -> Plan:
    """Plans a comparison and refuses invalid arguments; reads the data, but trains and writes nothing.

    Args:
      config: the base of all variants.
      methods: names of methods and of tables.VARIANTS.
      own_variants: {name: {config key: value}} of other variants.
      fixed: keys that are not searched, such as those that the user has set.
      trials: of each variant; 0 keeps the hyperparameters of the config.
      steps: of a run of the search, an upper bound on the choice; 0 for the config's.
      search_seeds: students of a run of the search.
      seeds: students of each variant.
      teachers: that these share; 0 for as many as students.

    Raises:
      UserError: an unknown name or key, or a config that cannot be trained.
    """
    config = config.copy_and_resolve_references()
    config_lib.check(config)
    if config.dataset.split != 'test':
        raise UserError(
            f'dataset.split is {config.dataset.split}; leave it out: variants are searched on validation '
            'data and compared on the test split.'
        )
    if teachers > seeds:
        raise UserError(f'--teachers is {teachers}, but only {seeds} students have one (--seeds).')
    task = assembly.load_source(config, config.dataset).task
    # With a schedule, only the last step of a run has the metric of a run of that length.
    points = POINTS if config.optimizer.schedule == 'constant' else 1
    space = tuning.SearchSpace(
        config.copy_and_resolve_references,
        task,
        columns={'': {}},
        score_columns=('',),
        points=points,
        weights=searches.WEIGHTS_BY_TASK[task],
        variants={**_without_values(tables.VARIANTS, fixed), **own_variants},
        fixed=frozenset({*fixed, *_unread_keys(config)} if trials else config_lib.flatten(config)),
        chooses_step=bool(trials),
    )
    names = tuple(dict.fromkeys((tuning.NO_DISTILLATION, *methods, *own_variants)))
    for name in own_variants:
        if name in (*objectives.METHODS, *tables.VARIANTS, tuning.TEACHER):
            raise UserError(f'--variants has {name}, a name that td_jax has itself; give yours another one.')
    known = [name for name in tuning.searchable_names(space) if name != tuning.TEACHER]
    for name in names:
        config_lib.check_choice('--methods', name, known)
        if missing := [other for other in searches.STARTS.get(name, ()) if other not in names]:
            raise UserError(
                f'{name} is searched on top of {" and ".join(searches.STARTS[name])}; name '
                f'{", ".join(missing)} in --methods, too.'
            )
    search = tuning.Search(
        space, {}, tables.USUAL, max(1, trials), search_seeds, (trials and steps) or config.num_steps
    )
    plan = Plan(config, names, search, bool(trials), seeds, teachers or seeds, {}, {})
    tuning.check_steps(search, [name for name in plan.searched() if name == tuning.TEACHER])
    for name in names:
        _check_variant(plan, name)
    for rung in range(searches.RUNGS):
        # Each rung has another slice of time, of ratings.
        for name in (tuning.NO_DISTILLATION, *[tuning.TEACHER] * (tuning.TEACHER in plan.searched())):
            rung_config = tuning.start_config(search, name, '', rung)
            preflight.check_batch(rung_config, assembly.load_source(rung_config, rung_config.dataset))
    first_runs = {name: _student_runs(plan, _start_config(plan, name))[0] for name in names}
    plan = plan._replace(operations={name: _count_operations(run, name) for name, run in first_runs.items()})
    plan = plan._replace(teachers_of=_describe_teachers(plan))
    if teachers > 1 and all(len(_student_runs(plan, _start_config(plan, name))) == 1 for name in names):
        raise UserError(f'--teachers is {teachers}, but no variant trains a teacher; leave it out.')
    return plan


def _without_values(all_changes, keys):
    """{name: changes} without the start values of some keys, which a person has set."""
    return {
        name: {key: value for key, value in changes.items() if key == 'method' or key not in keys}
        for name, changes in all_changes.items()
    }


def _unread_keys(config):
    """The keys of the student's and the teacher's optimizer that have no effect in a config."""
    config = config.copy_and_resolve_references()
    config.method = 'ld'
    keys = [f'{prefix}{key}' for prefix in ('', 'teacher.') for key in searches.OPTIMIZER]
    return config_lib.explain_without_effect(config, keys)


def _check_variant(plan: Plan, name):
    """Refuses a variant whose config cannot be trained, whatever the data are."""
    changes, keys = plan.search.space.changes(name), config_lib.flatten(plan.config).keys()
    for key in changes:
        config_lib.check_key(key, keys, f'--variants: {name}: ')
        if key in OF_ALL_VARIANTS:
            raise UserError(f'--variants: {name}: {key} is the same for all variants; leave it out.')
    for key, value in changes.items():
        try:
            cells.set_values(plan.config.copy_and_resolve_references(), {key: value})
        except (TypeError, ValueError) as error:
            default = config_lib.flatten(plan.config)[key]
            raise UserError(
                f'--variants: {name}: {key} is {value!r}, which is no value like {default!r}.'
            ) from error
    config = _start_config(plan, name)
    config_lib.check(config)
    if plan.is_searched:
        tuning.check_steps(plan.search, [name])
    if config.teacher.checkpoint and config_lib.has_teacher(config):
        raise UserError(
            f'teacher.checkpoint is {config.teacher.checkpoint}, but the search needs a teacher that was '
            'trained without the validation data, and the students one that was trained with them; leave it '
            'out, and both are trained, or name a public checkpoint in teacher.pretrained.'
        )


def _count_operations(config, name):
    """Checks a run; returns the operations of the products in a training step of one of its seeds."""
    step = preflight.check(config, epath.Path('/nowhere') / name, cells.PROGRAMS).compiled.step
    return flops.of(step.jitted.run, *step.arguments) / config.num_seeds


def _describe_teachers(plan):
    """{variant: its Trained} of the variants that train a teacher, and of TEACHER if it is searched."""
    teachers, described = {}, {}
    for name in plan.searched():
        # The search trains the teacher of the config, whatever its method is.
        config = _start_config(plan, 'ld' if name == tuning.TEACHER else name)
        if cells.shares_teacher(config):
            run = config_lib.teacher_run(config)
            identity = config_lib.digest(run)
            if identity not in described:
                operations = _count_operations(run, tuning.TEACHER)
                described[identity] = Trained(identity, operations, count_parameters(run))
            teachers[name] = described[identity]
    return teachers


def _start_config(plan: Plan, name):
    """The config of a variant without chosen values."""
    config = plan.config.copy_and_resolve_references()
    cells.set_values(config, plan.search.space.changes(name))
    return config


def describe_without_effect(plan: Plan, keys: Iterable[str]) -> list[str]:
    """Makes a line for a person about each of some keys of the config that no run of a comparison reads.

    Args:
      plan: by `make_plan`.
      keys: such as those that were set on the command line.
    """
    reasons = {'num_seeds': '--seeds and --search_seeds say how many students there are'}
    if all('method' in plan.search.space.changes(name) for name in plan.names):
        reasons['method'] = 'every variant names its own'
    if tuning.TEACHER in plan.searched():
        reasons['teacher.num_steps'] = f'the search chooses it, up to {plan.search.steps} (--steps)'
    if plan.is_searched and plan.search.steps != plan.config.num_steps:
        # Without --steps it is the most that can be chosen.
        reasons['num_steps'] = f'the search chooses it, up to --steps={plan.search.steps}'
    keys = list(keys)
    unread = [config_lib.explain_without_effect(_start_config(plan, name), keys) for name in plan.names]
    for key in keys:
        if all(key in of_variant for of_variant in unread):
            reasons.setdefault(key, '; '.join(dict.fromkeys(of_variant[key] for of_variant in unread)))
    return [f'{key} has no effect: {reasons[key]}' for key in keys if key in reasons]


def _student_runs(plan: Plan, config) -> list:
    """The configs of the runs of a variant's students; changes `config`."""
    config.num_seeds = plan.seeds
    return cells.split_by_teacher(config, plan.teachers)


class Cost(NamedTuple):
    """The cost of a comparison, including runs that are finished already."""

    runs: int  # of the search, of the students and of their teachers
    operations: float  # of matrix products
    size: float  # of the checkpoints, in bytes


def estimate_cost(plan: Plan) -> Cost:
    """Counts the runs of a plan, their operations and bytes, as if every run had all steps of the search.

    TD has the rounds of the config.
    """
    runs, operations, parameters = 0, 0.0, 0
    # The steps that a search chooses are at most its own.
    steps_chosen = plan.search.steps if plan.is_searched else 0
    for name in plan.names:
        config = _start_config(plan, name)
        searched = _count_searched(plan, name)
        students = plan.seeds * (steps_chosen or config.num_steps)
        operations += plan.operations[name] * (searched * plan.search.seeds * plan.search.steps + students)
        runs += searched + len(_student_runs(plan, config))
        parameters += plan.seeds * count_parameters(config)
    if tuning.TEACHER in plan.searched():
        searched, teacher = _count_searched(plan, tuning.TEACHER), plan.teachers_of[tuning.TEACHER]
        operations += teacher.operations * searched * plan.search.seeds * plan.search.steps
        runs += searched
    of_variants = (teacher for name, teacher in plan.teachers_of.items() if name in plan.names)
    for teacher in {teacher.identity: teacher for teacher in of_variants}.values():
        # Each rung has one of its own, which is trained without the data that its students are validated on.
        count = searches.RUNGS + plan.teachers
        operations += teacher.operations * count * (steps_chosen or plan.config.teacher.num_steps)
        parameters += count * teacher.parameters
        runs += count
    # Parameters and two moments of each; two checkpoints are kept.
    return Cost(runs, operations, 2 * 3 * 4 * parameters)


def _count_searched(plan, name):
    """The runs of a search; a single trial if nothing is drawn."""
    return sum(tuning.quotas(plan.search.trials if tuning.ranges_of(plan.search.space, name) else 1))


def count_parameters(config) -> int:
    """Counts the parameters of a student."""
    source = assembly.load_source(config, config.dataset)
    shapes = assembly.parameter_shapes(config, config.model, source)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def fit_trials(
    plan: Plan,
    root: epath.Path,
    hours: float,
    processes: int,
    shard: jobs.Shard | None = None,
    only_show: bool = False,
) -> Plan:
    """Sets the number of trials to the most whose search takes some hours, the same for every variant.

    A run of each variant is timed at first. Every variant has an equal share of the hours, and the variant
    with the slowest runs sets the number for all: a faster one ends before its share is over. No search is
    cut off, so that all have as many trials on every rung. A later call with the same hours for the same
    searches reads the number.

    Args:
      plan: by `make_plan`; its number of trials is not read.
      root: folder of the comparison, which gets HOURS.
      hours: for all searches together.
      processes: number of runs at once, of one worker.
      shard: which of several workers this is, if there are several; one of them decides for all.
      only_show: whether to run nothing.

    Raises:
      UserError: the hours are too few for a single trial, or, with `only_show`, there is no number yet.
    """
    configs = {name: tuning.start_config(plan.search, name, '', 0) for name in plan.searched()}
    runs = {name: cells.run_name(config) for name, config in configs.items()}

    def read():
        stored = workdir.read_json(root / HOURS) or {}
        is_same = stored.get('hours') == hours and stored.get('runs', runs) == runs
        return stored['trials'] if is_same else None

    def decide(_):
        with workdir.lock(root / HOURS_LOCK):
            if read() is None:
                stored = _time_searches(configs, hours, processes, shard.count if shard else 1)
                workdir.write(root / HOURS, json.dumps(stored | {'runs': runs}, indent=2) + '\n')
            return read()

    if only_show and read() is None:
        raise UserError(
            f'{root / HOURS} has no number of trials for --hours={hours:g} and these searches; call this '
            'without --only_show first.'
        )
    # Waits while another worker decides.
    (trials,) = jobs.run_tasks(decide, [None], 1, root, 'number of trials')
    return plan._replace(search=plan.search._replace(trials=trials))


def _time_searches(configs, hours, processes, workers):
    """Times a run of each search, {name: its config}; returns the content of HOURS, without the runs."""
    start, names = time.monotonic(), list(configs)
    with tempfile.TemporaryDirectory() as folder:
        cells.train_teachers(epath.Path(folder), configs.values(), processes)
        tasks = [(folder, config_lib.to_json(config)) for config in configs.values()]
        seconds = jobs.run_tasks(_time_run, tasks, processes, epath.Path(folder), 'timed runs')
    seconds = dict(zip(names, seconds, strict=True))
    left = 3600 * hours - (time.monotonic() - start)
    trials = count_trials(seconds, left, processes * workers)
    if not trials:
        needed = 3600 * hours - left + _search_seconds(seconds, 1, processes * workers)
        raise UserError(
            f'--hours={hours:g} is too short: a trial of each of {len(names)} searches and its teachers take '
            f'about {needed / 3600:.2g} hours.'
        )
    return {'hours': hours, 'trials': trials, 'seconds': seconds}


def _time_run(task) -> float:
    """The seconds of a run whose program this process has compiled before."""
    root, text = task
    for is_first in (True, False):
        config = config_lib.from_json(json.loads(text))
        if is_first:
            # The fewest that are allowed.
            fewest = 1 + max(config.optimizer.warmup_steps, sum(config.td.ramp_up))
            config.num_steps = min(fewest, config.num_steps)
        start = time.monotonic()
        with contextlib.suppress(Diverged):
            cells.run_one(epath.Path(root), config)
    return time.monotonic() - start


def count_trials(seconds: Mapping[str, float], left: float, processes: int) -> int:
    """The most trials with which every search fits into an equal share of the time.

    Args:
      seconds: of a run of each search.
      left: seconds for all searches and for the teachers of their rungs.
      processes: number of runs at once.
    """
    # A trial takes at least one run.
    most = max(0, int(left * processes / (len(seconds) * max(seconds.values()))))
    return bisect.bisect_right(
        range(1, most + 1), left, key=lambda trials: _search_seconds(seconds, trials, processes)
    )


def _search_seconds(seconds, trials, processes):
    """The seconds of all searches if each takes as long as the slowest, and of the teachers of all rungs."""
    runs = sum(tuning.quotas(trials)) / processes
    return len(seconds) * runs * max(seconds.values()) + searches.RUNGS * seconds.get(tuning.TEACHER, 0)


def run(
    plan: Plan,
    root: epath.Path,
    processes: int,
    shard: jobs.Shard | None = None,
    only_show: bool = False,
) -> list[Row]:
    """Searches, trains and evaluates all variants, and returns their rows in the order of the names.

    Args:
      plan: by `make_plan`.
      root: folder of the comparison; a second call resumes.
      processes: number of runs at once.
      shard: which of several workers this is, if there are several; it trains its part of the students, and
        no rows are returned.
      only_show: whether to run nothing.

    Raises:
      UserError: journals that are damaged or in use, every trial of a variant diverged, or raised by a run;
        or with `only_show`, a run is missing.
    """
    if not only_show:
        workdir.make_folder('workdir', root)
    elif not workdir.holds_comparison(root):
        raise UserError(f'{root} holds no comparison; call this without --only_show first.')
    names, choices = list(plan.names), shard_file(root / CHOICES, shard)
    searched = plan.searched()
    folders = root / workdir.SEARCH, root / workdir.JOURNALS, choices
    tuning.check(plan.search, searched, *folders[1:])
    for name, record in tuning.tune(plan.search, searched, *folders, processes, shard, only_show):
        score = record['completed'][0]['score']
        print(
            f'{name}: validation {plan.metric()} {statistics.format_number(score)}',
            file=sys.stderr,
            flush=True,
        )
    chosen = workdir.read_json(choices) or {}
    last_step_names = tuning.at_last_step(plan.search, searched, chosen) if plan.is_searched else []
    if last_step_names and plan.search.space.points > 1:
        print(
            f'td_jax: {", ".join(last_step_names)} chose the last of {plan.search.steps} steps; '
            f'longer training may be better: --steps={2 * plan.search.steps}.',
            file=sys.stderr,
            flush=True,
        )
    configs = {name: config_of(plan, name, chosen) for name in names}
    runs = {name: _student_runs(plan, config) for name, config in configs.items()}
    results = cells.results_of(root / STUDENTS, runs.values(), {}, only_show, processes, shard)
    if shard:
        return []
    if missing := [name for name, result in zip(names, results, strict=True) if result is None]:
        raise UserError(f'students of {", ".join(missing)} are missing; call this without --only_show first.')
    return [
        Row(
            name,
            configs[name],
            tuning.score_of(plan.search, name, chosen),
            result,
            [cells.run_folder(root / STUDENTS, config) for config in runs[name]],
            count_parameters(configs[name]),
        )
        for name, result in zip(names, results, strict=True)
    ]


def shard_file(path: epath.Path, shard: jobs.Shard | None) -> epath.Path:
    """A file of one of several workers, such as choices.2of3.json for choices.json."""
    return path.with_name(f'{path.stem}.{shard}{path.suffix}') if shard else path


def config_of(plan: Plan, name: str, choices: dict):
    """The config of a variant with the chosen values, if there was a search."""
    config = _start_config(plan, name)
    if plan.is_searched:
        cells.set_values(config, tuning.values_of(plan.search, name, choices))
    return config


def choose_best(plan: Plan, rows: list[Row]) -> Row:
    """The row with the best validation score, the first of equal ones."""
    sign = 1 if plan.less_is_better() else -1
    return min(rows, key=lambda row: sign * row.validation)


def keep_best(row: Row, root: epath.Path) -> epath.Path:
    """Copies the first run of a row to the folder `best`, replacing a former one; returns the folder."""
    source, target = row.folders[0], root / workdir.BEST
    if target.exists():
        if _identify(target) == _identify(source):
            return target
        target.rmtree()
    with workdir.atomic_write(target) as folder:
        if workdir.is_in_bucket(source):
            system, place = fsspec.url_to_fs(str(source))
            system.get(place, str(folder), recursive=True)
        else:
            shutil.copytree(source, folder)
    return target


def _identify(folder):
    """A text that identifies a finished run: its config and its result."""
    stored = workdir.read_json(folder / workdir.CONFIG)
    return json.dumps([stored, finished.read_result(folder)], sort_keys=True)
