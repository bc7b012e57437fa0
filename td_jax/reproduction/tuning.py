"""Chooses the hyperparameters of each method on validation data; the test split is never read.

There is one choice for a method and a setting (a split of ratings, or a data set of images). Its score is the
mean over some columns, such as a dense, a medium and a sparse genre, because a mean reduces noise. Choices on
other columns, or with another sampler seed, are stored under their names. The teacher has the same task in
every column, and is searched once.

The teacher is searched first, then the student without distillation, over the options of the optimizer
(OPTIMIZER). Then the weights and rounds of each method are searched. Blocks of PARTS trials
use the chosen options of the optimizer and, alternately, the draws of the student without distillation in
trials of the same numbers, because a method may need another regularization, such as less dropout.

All searches have the same number of trials and the same rungs. All trials are trained on a rung, with several
seeds; a fixed number of the best go on to the next rung, with other seeds and, of ratings, another slice of
time. The score of a trial is the best value of its mean validation curve over all its runs so far. The
learning rate is constant, so that the step of this value is the chosen number of steps. Every method thus has
the same number of trials that are trained to the end, unless some diverge.

A draw depends on the name of an option, the number of the trial and the sampler seed: trial 5 has the same
weight of the logits term for every method. The first trials of a variant that joins two methods are the
choices of these methods (STARTS). All of that is data, in td_jax/configs/searches.py.

A search can be restarted: each run is a line in the journal of its method, from which another machine can
resume, and a finished run is read from its folder. There is no other state, so that an interrupted search
gives the same choices as an uninterrupted one.
"""

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import ml_collections
from etils import epath

from td_jax import config as config_lib
from td_jax.configs import searches
from td_jax.data import ratings
from td_jax.errors import Diverged, UserError
from td_jax.files import metric_log, workdir
from td_jax.method import objectives
from td_jax.reproduction import cells, jobs, journal, same_data, same_teacher, tables
from td_jax.training import evaluation, finished
from td_jax.training import optimizer as optimizer_lib
from td_jax.training.programs import describe_program


class SearchSpace(NamedTuple):
    """A config, the columns and the ranges to search."""

    config: Callable[[], ml_collections.ConfigDict]  # the base of all runs
    task: str  # of its models, a name of evaluation.METRICS
    columns: dict[str, dict]  # column -> its changes of the config
    score_columns: tuple[str, ...]  # the usual columns, whose mean is the score
    points: int  # validations of a run
    weights: searches.LogUniform
    # Name -> its changes of the config; the name of a method changes `method`.
    variants: Mapping[str, dict] = tables.VARIANTS
    fixed: frozenset[str] = frozenset()  # keys that are not searched
    optimizer: Mapping[str, searches.LogUniform] = MappingProxyType({})  # ranges in place of OPTIMIZER's
    chooses_step: bool = True  # whether the number of steps is chosen; if not, the last step counts

    def changes(self, name: str) -> dict:
        """The config changes of a variant or a method."""
        return self.variants.get(name, {'method': name})

    def set_by(self, name: str) -> set[str]:
        """The keys that a variant sets and that are not searched; tables.VARIANTS set only start values."""
        return set() if name in tables.VARIANTS else set(self.changes(name))


CONFIGS = {
    name: SearchSpace(functools.partial(cells.base_config, name), **space)
    for name, space in searches.SPACES.items()
}
TEACHER = 'teacher'
NO_DISTILLATION = 'supervised'
# What may be done with images that have no label in a column: left out, or used.
UNLABELLED = 'none', 'rest'


class Search(NamedTuple):
    """The options of a search, the same for every method."""

    space: SearchSpace
    setting: dict  # its changes of the config, such as {'dataset.split_by': 'user'}
    chosen_by: tables.ChosenBy  # its columns and sampler seed
    trials: int  # of each method
    seeds: int  # of a run
    steps: int  # of a run
    teacher: str = ''  # location of a public checkpoint, in place of the config's


class Plan(NamedTuple):
    """The trials of a method."""

    name: str  # of the method or the variant, or TEACHER
    columns: tuple[str, ...]
    fixed: dict  # {config key: value} of all trials, from choices made before
    trials: list[dict]  # {config key: value} of each trial


class Ranked(NamedTuple):
    """The score of a trial after a rung."""

    score: float  # the best value of its mean curve
    step: int  # of the score
    number: int
    at_last_step: bool  # whether `step` is the last one


def ranges_of(space: SearchSpace, name: str) -> dict:
    """The ranges to draw from for TEACHER, a method or a variant, {config key: LogUniform or OneOf}.

    Weights that the config or a variant leaves at 0, and fixed keys, are not drawn.
    """
    config = space.config()
    if name in (TEACHER, NO_DISTILLATION):
        prefix, side = ('teacher.', config.teacher) if name == TEACHER else ('', config)
        ranges = searches.OPTIMIZER | (searches.SGD if side.optimizer.name == 'sgd' else {}) | space.optimizer
        return {key: range_ for key, range_ in ranges.items() if f'{prefix}{key}' not in space.fixed}
    config.update_from_flattened_dict(space.changes(name))
    section = objectives.section_of(config)
    ranges = {f'{section}.weights.{term}': space.weights for term in objectives.active_terms(config)}
    ranges |= searches.OPTIONS.get(config.method, {})
    fixed = space.fixed | space.set_by(name)
    return {key: range_ for key, range_ in ranges.items() if key not in fixed}


def draw(name: str, number: int, sampler_seed: int) -> float:
    """Draws a number in [0, 1) that depends only on the name of an option, the trial and the sampler seed.

    Of PARTS consecutive trials, one is in each of PARTS equal parts, in an order that depends on the name.
    """
    block, place = divmod(number, searches.PARTS)
    order = sorted(range(searches.PARTS), key=lambda part: _uniform(name, sampler_seed, block, part))
    return (order[place] + _uniform(name, sampler_seed, number)) / searches.PARTS


def _uniform(*values):
    """Hashes some values to a number in [0, 1), the same on every machine."""
    digest = hashlib.sha256(json.dumps(values).encode()).digest()
    return (int.from_bytes(digest[:8], 'big') >> 11) / 2**53


def draw_name(key: str) -> str:
    """The name for the draws of a config key; for a weight that of its term, the same for all methods."""
    _, is_weight, term = key.partition('.weights.')
    return f'weights.{term}' if is_weight else key


def quotas(trials: int) -> list[int]:
    """The number of trials that are trained on each rung."""
    return [max(1, trials // searches.REDUCTION**rung) for rung in range(searches.RUNGS)]


def searchable_names(space: SearchSpace, sampler_seed: int = 0) -> list[str]:
    """The names that can be searched: TEACHER, if one is trained, methods of the task, and variants.

    With a sampler seed other than 0 they are MAIN.
    """
    if sampler_seed:
        return list(searches.MAIN)
    methods = [name for name, method in objectives.METHODS.items() if space.task in method.tasks]
    config = space.config()
    config.method = 'ld'
    teacher = [TEACHER] if cells.shares_teacher(config) else []
    return [*teacher, *dict.fromkeys((*methods, *space.variants))]


def make_search(
    name: str,
    split_by: str,
    columns,
    trials: int,
    seeds: int,
    steps: int,
    sampler_seed: int = 0,
    *,
    unlabelled: str | None = None,
    teacher: str = '',
) -> Search:
    """Makes a Search; columns None are the usual ones, and their order does not matter.

    Args:
      name: of a config. split_by, columns, trials, seeds, steps, sampler_seed, unlabelled, teacher: as the
        flags of td_jax.tune.

    Raises:
      UserError: an unknown name, a split of data other than ratings, examples without labels that ratings
        do not have, or a public teacher that the config does not have.
    """
    config_lib.check_choice('--config', name, CONFIGS)
    setting, space = {}, CONFIGS[name]
    if space.task == 'regression':
        config_lib.check_choice('--split_by', split_by, ratings.SPLITS_BY)
        setting = {'dataset.split_by': split_by}
    elif split_by != 'time':
        raise UserError(f'--split_by is {split_by}, but {name} has no ratings to split; leave it out.')
    if unlabelled is not None:
        config_lib.check_choice('--unlabelled', unlabelled, UNLABELLED)
        if space.task == 'regression':
            raise UserError(f'--unlabelled is {unlabelled}, but {name} has ratings; leave it out.')
        setting['dataset.unlabelled'] = '' if unlabelled == 'none' else unlabelled
    if teacher:
        config = space.config()
        config.method = 'ld'
        same_teacher.replace([config], teacher)
    known, chosen = list(space.columns), set(columns or space.score_columns)
    # `check` refuses unknown columns.
    order = tuple(sorted(chosen, key=lambda column: known.index(column) if column in known else -1))
    chosen_by = tables.ChosenBy(() if order == space.score_columns else order, sampler_seed)
    return Search(space, setting, chosen_by, trials, seeds, steps, teacher)


def check(search: Search, names, journals: epath.Path, target: epath.Path):
    """Refuses arguments of `tune` that cannot be searched.

    Raises:
      UserError: an unknown name, a method of another task, a teacher with another sampler seed, damaged
        journals, a file that cannot be written, or a method without the choices that it needs.
    """
    for name in names:
        config_lib.check_choice('--methods', name, searchable_names(search.space))
    for column in search.chosen_by.columns:
        config_lib.check_choice('--columns', column, search.space.columns)
    if TEACHER in names and search.chosen_by.sampler_seed:
        raise UserError(
            f'--sampler_seed is {search.chosen_by.sampler_seed}, but the teacher is that of --sampler_seed=0 '
            f'for all; leave {TEACHER} out of --methods.'
        )
    check_steps(search, names)
    workdir.check_target('--output', target)
    for name in names:
        journal.read(_journal_path(search, name, journals))
    choices = workdir.read_json(target) or {}
    for name in names:
        for other in _prerequisites(name):
            if other not in names:
                _find_choice(search, name, other, choices)


def check_steps(search: Search, names: Iterable[str]):
    """Refuses runs of a search that end before their warm-up, or before TD trains its parts together."""
    for name in names:
        config = start_config(search, name, search.space.score_columns[0], 0)
        for key, steps in (
            ('teacher.' * (name == TEACHER) + 'optimizer.warmup_steps', config.optimizer.warmup_steps),
            ('td.ramp_up', sum(config.td.ramp_up) if config.method == 'td' else 0),
        ):
            if steps >= config.num_steps:
                raise UserError(
                    f'{key} takes {steps} steps, but a run of the search has {config.num_steps}: raise '
                    f'--steps or lower {key}.'
                )


def first_configs(search: Search, names: Iterable[str]) -> list:
    """The start configs of some methods on the first rung, of every column that is searched."""
    columns = search.chosen_by.columns or search.space.score_columns
    return [start_config(search, name, column, 0) for name in names for column in columns]


def start_config(search: Search, name: str, column: str, rung: int):
    """The config of the runs of TEACHER, a method or a variant on one rung, without the values of a trial."""
    config = search.space.config()
    config.update_from_flattened_dict(search.setting | search.space.columns[column])
    if config.teacher.pretrained and search.teacher:
        config.teacher.pretrained = search.teacher
    config.dataset.split = 'validation'
    if search.space.task == 'regression':
        config.dataset.validation_slice = rung
    config.num_steps, config.eval_every = search.steps, max(1, search.steps // search.space.points)
    config.log_every = config.save_every = search.steps
    config.diagnostics = False
    config.num_seeds, config.seed = search.seeds, rung * search.seeds
    config.teacher.seed = rung
    if name == TEACHER:
        run = config_lib.teacher_run(config)
        run.num_steps, run.num_seeds, run.seed = search.steps, config.num_seeds, config.seed
        return run
    config.update_from_flattened_dict(search.space.changes(name))
    return config


def run_of(search: Search, plan: Plan, number: int, rung: int, column: str):
    """The config of one run of a trial."""
    config = start_config(search, plan.name, column, rung)
    config.update_from_flattened_dict(plan.fixed | plan.trials[number])
    return config


def make_plan(search: Search, name: str, choices: dict) -> Plan:
    """Draws the trials of a method.

    Args:
      search: its options.
      name: of the method or the variant, or TEACHER.
      choices: in the form of `cells.read_tuned`; those of the searches before it.

    Raises:
      UserError: a choice that the method needs is missing or of another search.
    """
    columns = search.chosen_by.columns or search.space.score_columns
    ranges, fixed, starts = ranges_of(search.space, name), {}, []
    if name == TEACHER:
        columns = columns[:1]
    else:
        fixed = dict(choices.get(_setting_name(search, TEACHER), {}).get(TEACHER, {}))
    optimizer = {}
    if not any(ranges_of(search.space, other) for other in (name, NO_DISTILLATION)):
        # All trials would be the same.
        return Plan(name, columns, fixed, [{}])
    if NO_DISTILLATION in _prerequisites(name):
        chosen = _find_choice(search, name, NO_DISTILLATION, choices, fixed)
        all_ranges = ranges_of(search.space, NO_DISTILLATION)
        optimizer = {
            key: range_ for key, range_ in all_ranges.items() if key not in search.space.set_by(name)
        }
        fixed |= {key: chosen[key] for key in optimizer}
    if name in searches.STARTS:
        one, other = (
            {
                draw_name(key): value
                for key, value in _find_choice(search, name, method, choices, fixed).items()
                if key in optimizer or key not in fixed
            }
            for method in searches.STARTS[name]
        )
        # Options of the other method alone are as weak as possible.
        weakest = {draw_name(key): getattr(range_, 'low', 0) for key, range_ in ranges.items()}
        for values in (one | other, one, other):
            starts.append({key: (weakest | values)[draw_name(key)] for key in ranges | optimizer})

    def trial(number):
        has_own_optimizer = number // searches.PARTS % 2
        trial_ranges = ranges | optimizer if has_own_optimizer else ranges
        seed = search.chosen_by.sampler_seed
        values = {key: range_.at(draw(draw_name(key), number, seed)) for key, range_ in trial_ranges.items()}
        return {key: fixed[key] for key in optimizer} | values

    if not ranges | optimizer:
        return Plan(name, columns, fixed, [{}])
    trials = starts[: search.trials]
    for number in range(len(trials), search.trials):
        values = trial(number)
        # A start may equal this trial; a new trial replaces the repetition.
        trials.append(trial(search.trials) if values in starts else values)
    return Plan(name, columns, fixed, trials)


def warmup_of(space: SearchSpace, config) -> int:
    """The steps of a run of some config that cannot be chosen: its warm-up, or all but the last.

    With a schedule, only the last step has the score of a run of that length.
    """
    is_free = space.chooses_step and not optimizer_lib.depends_on_length(config.optimizer)
    return config.optimizer.warmup_steps if is_free else config.num_steps - 1


def rank(curves: dict[int, list[dict]], less_is_better: bool, warmup_steps: int = 0) -> list[Ranked]:
    """Ranks trials, best first, without those that diverged.

    Args:
      curves: {number of a trial: [{step: value} of each of its runs]}.
      less_is_better: of the values.
      warmup_steps: of the optimizer; a run must have more steps, so that only later ones can be chosen.
    """
    ranked = []
    for number, trial_curves in curves.items():
        # A run that diverged has no later steps; a trial without a common step is left out.
        common_steps = set.intersection(*map(set, trial_curves))
        steps = {step for step in common_steps if step > warmup_steps}
        mean = {step: sum(curve[step] for curve in trial_curves) / len(trial_curves) for step in steps}
        if mean:
            (step, score), last_step = best(mean, less_is_better), max(map(max, trial_curves))
            # Where no other step can be chosen, the choice says nothing.
            ranked.append(Ranked(score, step, number, step == last_step > warmup_steps + 1))
    return sorted(ranked, key=lambda trial: (trial.score if less_is_better else -trial.score, trial.number))


def tune(
    search: Search,
    names,
    root: epath.Path,
    journals: epath.Path,
    target: epath.Path,
    processes: int,
    shard: jobs.Shard | None = None,
    only_show: bool = False,
):
    """Searches the hyperparameters of some methods, and writes each choice as soon as it is made.

    Several workers share the runs of a rung: each runs its part, then what no other has begun, and goes on
    when the rung is complete. A choice is a function of the journals, so that all of them make the same.

    Args:
      search: its options.
      names: of methods, variants or TEACHER, which passed `check`.
      root: folder of all runs.
      journals: folder of the journals.
      target: JSON file for the choices; other choices in it stay. Each worker needs a file of its own.
      processes: runs at once.
      shard: which of several workers this is, if there are several.
      only_show: whether to run nothing.

    Yields:
      (name, the record of its choice, as in `cells.read_tuned`, with the values as `chosen`)

    Raises:
      UserError: journals that are damaged or in use, every trial of a method diverged, or raised by a run; or
        with `only_show`, a run is missing.
    """
    for name, folder in () if only_show else (('workdir', root), ('journals', journals)):
        workdir.make_folder(name, folder)
    groups = _group_names(search, names)
    with contextlib.ExitStack() as locks:
        if not only_show:
            for setting in sorted({_setting_name(search, name) for name in names}):
                locks.enter_context(journal.lock(journals, f'{setting}.{shard}' if shard else setting))
        paths = {name: _journal_path(search, name, journals, shard) for name in names}
        # Damage in any journal is found before a torn line is cut off.
        for path in paths.values():
            journal.read(path)
        journals_by_name = {name: journal.Journal(path, not only_show) for name, path in paths.items()}
        for group in groups:
            choices = workdir.read_json(target) or {}
            if not only_show:
                same_teacher.check_choices(_prerequisite_choices(search, group, choices))
            plans = [make_plan(search, name, choices) for name in group]
            ranked_by_plan = _run_rungs(search, plans, journals_by_name, root, processes, shard, only_show)
            for plan, ranked in zip(plans, ranked_by_plan, strict=True):
                if not ranked:
                    raise UserError(
                        f'every trial of {plan.name} diverged; raise --trials, now {search.trials}.'
                    )
                taught_by = _public_teacher_of(search, plan, journals_by_name[plan.name])
                values, record = _make_choice(search, plan, ranked, taught_by)
                # Another search may have written to the file in the meantime.
                choices = workdir.read_json(target) or {}
                setting_choices = choices.setdefault(_setting_name(search, plan.name), {})
                setting_choices[plan.name] = values
                setting_choices.setdefault(cells.SEARCHED, {})[plan.name] = record
                workdir.write(target, json.dumps(choices, indent=2, sort_keys=True) + '\n')
                yield plan.name, {'chosen': values, **record}


def _group_names(search, names):
    """Groups names so that each group needs only choices of those before; one group if nothing is drawn."""
    if not any(ranges_of(search.space, name) for name in names):
        return [names]
    joined = [name for name in names if name in searches.STARTS]
    first = [name for name in (TEACHER, NO_DISTILLATION) if name in names]
    rest = [name for name in names if name not in (*first, *joined)]
    return [*([name] for name in first), rest, joined]


def _run_rungs(search, plans, journals_by_name, root, processes, shard, only_show):
    """Runs all rungs; returns the trials of each plan that were trained to the end, best first."""
    less_is_better = evaluation.METRICS[search.space.task][3]
    climbing = {plan.name: {number: [] for number in range(len(plan.trials))} for plan in plans}
    starts = {plan.name: start_config(search, plan.name, plan.columns[0], 0) for plan in plans}
    warmups = {name: warmup_of(search.space, config) for name, config in starts.items()}
    for rung, quota in enumerate([*quotas(search.trials)[1:], search.trials]):
        runs, missing, known, known_teachers = [], {}, [], []
        for plan in plans:
            for number, column in itertools.product(climbing[plan.name], plan.columns):
                config = run_of(search, plan, number, rung, column)
                runs.append((plan.name, number, cells.run_name(config)))
                if runs[-1][2] not in journals_by_name[plan.name].curves:
                    about = {'method': plan.name, 'trial': number, 'rung': rung, 'column': column}
                    # Variants may have a run in common.
                    of_run = missing.setdefault(runs[-1][2], (config, []))
                    of_run[1].append(about | {'values': plan.trials[number]})
                else:
                    run, of_method = runs[-1][2], journals_by_name[plan.name]
                    known.append((same_data.part_of(config), run, of_method.data[run]))
                    known_teachers.append((same_teacher.part_of(config), run, of_method.teachers[run]))
        if missing and only_show:
            are_missing = 'run of the search is' if len(missing) == 1 else 'runs of the search are'
            raise UserError(
                f'{len(missing)} {are_missing} missing in {root}, such as {next(iter(missing))}; call this '
                'without --only_show first.'
            )
        same_data.check_current(same_data.check(known), [config for config, _ in missing.values()])
        same_teacher.check_current(
            same_teacher.check(known_teachers), [config for config, _ in missing.values()]
        )
        _run_missing(search, missing, journals_by_name, root, processes, shard)
        for name, number, run in runs:
            climbing[name][number].append(journals_by_name[name].curves[run])
        ranked = {name: rank(curves, less_is_better, warmups[name]) for name, curves in climbing.items()}
        climbing = {
            name: {trial.number: climbing[name][trial.number] for trial in trials[:quota]}
            for name, trials in ranked.items()
        }
    return [ranked[plan.name] for plan in plans]


def _run_missing(search, missing, journals_by_name, root, processes, shard):
    """Runs {name: (config, details of lines)}, and appends each to its journals as soon as it ends."""
    if shard:
        # Its own part first; then what no other worker has begun.
        first = dict(shard.cut(list(missing.items())))
        missing = first | missing
    names, configs = list(missing), [config for config, _ in missing.values()]
    metric = f'validation_{evaluation.METRICS[search.space.task][0]}'

    def append_curve(number, curve):
        folder = cells.run_folder(root, configs[number])
        about = {
            'data': same_data.digest_of_run(folder),
            'teacher': same_teacher.fingerprint_of_run(configs[number], folder),
        }
        for details in missing[names[number]][1]:
            line = {**details, **{key: value for key, value in about.items() if value}}
            journals_by_name[details['method']].append(names[number], curve, line)

    def is_done(number):
        of_methods = [journals_by_name[details['method']] for details in missing[names[number]][1]]
        for of_method in of_methods:
            if shard and names[number] not in of_method.curves:
                of_method.refresh()
        return all(names[number] in of_method.curves for of_method in of_methods)

    cells.train_teachers(root, configs, processes)
    tasks = [(str(root), config_lib.to_json(config), metric) for config in configs]
    kinds = [describe_program(config) for config in configs]
    jobs.run_tasks(_task, tasks, processes, root, 'runs', kinds, append_curve, is_done)


def _task(task):
    root, text, metric = task
    return _curve(epath.Path(root), config_lib.from_json(json.loads(text)), metric)


def _curve(root, config, name) -> dict:
    """Runs a config unless finished; returns the curve of a metric, {step: value}, empty if it diverged."""
    folder = cells.run_folder(root, config)
    try:
        cells.run_one(root, config)
    except Diverged:
        return {}
    # Checkpoints of hundreds of runs would fill the disk.
    saved = folder / finished.CHECKPOINTS
    # Another worker may delete them, too.
    with contextlib.suppress(FileNotFoundError):
        if saved.exists():
            saved.rmtree()
    return {line['step']: line[name] for line in metric_log.read(folder) if name in line}


def _public_teacher_of(search, plan, of_method):
    """The fingerprint of the public teacher of a plan's runs, by its journal; '' without one."""
    for number in range(len(plan.trials)):
        run = cells.run_name(run_of(search, plan, number, 0, plan.columns[0]))
        if of_method.teachers.get(run):
            return of_method.teachers[run]
    return ''


def _make_choice(search, plan, ranked, public_teacher):
    """Makes the choice and its record from the trials that were trained to the end, best first."""
    prefix = 'teacher.' if plan.name == TEACHER else ''
    fixed = {key: value for key, value in plan.fixed.items() if not key.startswith('teacher.')}
    trials = [
        {f'{prefix}{key}': value for key, value in (fixed | plan.trials[trial.number]).items()}
        | {f'{prefix}num_steps': trial.step}
        for trial in ranked
    ]
    record = {
        **{key: getattr(search, key) for key in cells.BUDGET},
        'fixed': plan.fixed,
        'completed': [
            {'score': trial.score, 'values': values} for trial, values in zip(ranked, trials, strict=True)
        ],
        'at_last_step': ranked[0].at_last_step,
        **({cells.PUBLIC_TEACHER: public_teacher} if public_teacher else {}),
    }
    return trials[0], record


def at_last_step(search: Search, names, choices: dict) -> list[str]:
    """The methods that chose the last step, if they are more than half of a search, and TEACHER if it did.

    Args:
      search: its options.
      names: of this search; TEACHER is checked if it is among them. Of methods, others that have a choice in
        the setting of no distillation count, too.
      choices: in the form of `cells.read_tuned`.
    """

    def with_last_step(candidates):
        records = {name: _find_record(search, name, choices) for name in candidates}
        chosen = [name for name, record in records.items() if record and record['at_last_step']]
        return chosen if 2 * len(chosen) > sum(map(bool, records.values())) else []

    others = choices.get(_setting_name(search, NO_DISTILLATION), {}).get(cells.SEARCHED, {})
    # A variant may have a setting of its own, such as one with examples without labels.
    methods = dict.fromkeys(name for name in (*others, *names) if name != TEACHER)
    return with_last_step([TEACHER] if TEACHER in names else []) + with_last_step(methods)


def score_of(search: Search, name: str, choices: dict) -> float:
    """The validation score of this search's choice for a method.

    Args:
      search: its options.
      name: of the method or the variant, or TEACHER.
      choices: in the form of `cells.read_tuned`.
    """
    return _find_record(search, name, choices)['completed'][0]['score']


def values_of(search: Search, name: str, choices: dict) -> dict:
    """The values that this search chose for the teacher and for a method, {config key: value}.

    Args:
      search: its options.
      name: of the method or the variant.
      choices: in the form of `cells.read_tuned`.
    """
    teacher = choices.get(_setting_name(search, TEACHER), {}).get(TEACHER, {})
    return teacher | choices[_setting_name(search, name)][name]


def _find_record(search, name, choices):
    """The record of the choice for a method by a search with the same budget, or None."""
    record = choices.get(_setting_name(search, name), {}).get(cells.SEARCHED, {}).get(name)
    return record if record and all(record[key] == getattr(search, key) for key in cells.BUDGET) else None


def _prerequisites(name):
    """The names whose choices a method needs, in addition to the teacher."""
    return () if name in (TEACHER, NO_DISTILLATION) else (NO_DISTILLATION, *searches.STARTS.get(name, ()))


def _prerequisite_choices(search, names, choices):
    """What some methods are searched on top of, in the form of `same_teacher.check_choices`."""
    for name in names:
        config = start_config(search, name, search.space.score_columns[0], 0)
        for other in _prerequisites(name):
            record = _find_record(search, other, choices) or {}
            what = f'the hyperparameters of {other} in --output'
            yield what, record.get(cells.PUBLIC_TEACHER, ''), config


def _find_choice(search, name, other, choices, fixed=None):
    """The choice for another method that this one needs."""
    record = _find_record(search, other, choices)
    if record is None or (fixed is not None and record['fixed'] != fixed):
        raise UserError(
            f'{name} is searched on top of {other}, for which --output has no choice of this search '
            f'({search.trials} trials, {search.seeds} seeds, {search.steps} steps, the same teacher); '
            f'name {other} in --methods, too.'
        )
    return choices[_setting_name(search, other)][other]


def _journal_path(search, name, journals, shard=None):
    """The path of a method's journal, of one worker if there are several."""
    stem = f'{_setting_name(search, name)}-{name}'
    return epath.Path(journals) / (f'{stem}.{shard}{journal.SUFFIX}' if shard else f'{stem}{journal.SUFFIX}')


def _setting_name(search, name):
    """The name of the setting of a method's choice; the teacher has that of the usual search."""
    config = start_config(search, name, search.space.score_columns[0], 0)
    return cells.setting(config, tables.USUAL if name == TEACHER else search.chosen_by)


def best(curve: dict, less_is_better: bool):
    """(step, value) of the best value of a curve {step: value}, the first of several."""
    return min(curve.items(), key=lambda point: (point[1] if less_is_better else -point[1], point[0]))
