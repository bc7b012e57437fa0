"""Chooses the hyperparameters of each method on validation data; the test split is never read.

One choice for a method and a setting (how ratings are split, or a data set of images), made on the mean over
some columns, such as a dense, a middle and a sparse genre: a mean averages noise away, and is what a user
could do, too. What is chosen on other columns, or with another sampler seed, is filed under their names; the
teacher, whose task is the same in every column, is not.

The teacher is searched first, then the student without distillation, over the options of the optimizer
(OPTIMIZER). A method has its weights and rounds searched with what was chosen there in half of its trials, by
blocks of PARTS, and with the draws of the optimizer that the student without distillation has in trials of
the same numbers in the other half: a dropout that suits few labels may be too much where a teacher speaks.

All searches have as many trials and the same rungs: all trials are trained on a rung, with several seeds,
before the best of them, by fixed quotas, go on to the next one, with other seeds and, of ratings, on another
slice of time. The score of a trial is the best mean validation metric, over all its runs so far, of a common
step: the learning rate is constant, so that this step is the number of steps that is chosen. So every method
has as many trials that are trained to their end, unless some diverge.

A draw belongs to the name of an option, the number of the trial and the sampler seed: trial 5 of every method
with a weight of the logits term has the same one. A variant that joins two methods has what was chosen for
them as its first trials (STARTS).

Restartable: each run is a line of a journal, a file for each method that another machine goes on from, and a
finished run is read from its folder. Nothing else is remembered, so that an interrupted search ends where an
uninterrupted one does.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_collections
from etils import epath

from td_jax import config as config_lib
from td_jax.data import ratings
from td_jax.errors import Diverged, UserError
from td_jax.files import metric_log, workdir
from td_jax.method import objectives
from td_jax.reproduction import cells, jobs, journal, same_data, tables
from td_jax.training import evaluation, finished
from td_jax.training.programs import describe_program


class LogUniform(NamedTuple):
    """Values from `low` to `high`, every order of magnitude as likely."""

    low: float
    high: float

    def at(self, share: float) -> float:
        """The value below which this share of the draws is, to six digits, the same on every machine."""
        return float(f'{self.low * (self.high / self.low) ** share:.6g}')


class OneOf(NamedTuple):
    """Some values, each as likely."""

    values: tuple

    def at(self, share: float):
        """The value of a share in [0, 1)."""
        return self.values[int(share * len(self.values))]


# Weights of images: larger ones of states cost accuracy there (docs/cifar.md).
WEIGHTS, IMAGE_WEIGHTS = LogUniform(0.1, 1000.0), LogUniform(0.01, 10.0)


class Searched(NamedTuple):
    """What is searched, and how."""

    config: Callable[[], ml_collections.ConfigDict]  # what all runs start from
    task: str  # of its models, a name of evaluation.METRICS
    columns: dict[str, dict]  # what can be searched -> what it changes in the config
    mean_of: tuple[str, ...]  # the columns whose mean is the score, unless others are named
    points: int  # validations of a run
    weights: LogUniform = WEIGHTS
    # Name -> what it changes; a method's name changes `method`.
    variants: Mapping[str, dict] = tables.VARIANTS
    fixed: frozenset[str] = frozenset()  # keys that are not searched

    def changes(self, name: str) -> dict:
        """What the name of a variant or of a method changes in the config."""
        return self.variants.get(name, {'method': name})

    def set_by(self, name: str) -> set[str]:
        """The keys that a variant keeps as it sets them; those of the tables set where a search starts."""
        return set() if name in tables.VARIANTS else set(self.changes(name))


# The modules of configs/ whose runs are short enough to be searched.
CONFIGS = {
    'movielens': Searched(
        functools.partial(cells.base_config, 'movielens'),
        'regression',
        {genre: {'dataset.genre': genre} for genre in tables.GENRES},
        ('Drama', 'Adventure', 'War'),
        30,
    ),
    'digits': Searched(
        functools.partial(cells.base_config, 'digits'), 'classification', {'digits': {}}, ('digits',), 30
    ),
    # A validation of images takes as long as many steps.
    'vit_tiny_cifar10': Searched(
        functools.partial(cells.base_config, 'vit_tiny_cifar10'),
        'classification',
        {str(count): {'dataset.examples_per_class': count} for count in tables.LABELLED},
        tuple(map(str, tables.LABELLED)),
        6,
        IMAGE_WEIGHTS,
    ),
}
TEACHER = 'teacher'
NO_DISTILLATION = 'supervised'
# A variant -> the methods that it joins, whose choices are its first trials.
STARTS = {'td_ld': ('td', 'ld')}
# The rows whose search is repeated with other sampler seeds, unless methods are named.
MAIN = (NO_DISTILLATION, 'ld', 'td', 'td_ld')
RUNGS = 3
# Of the trials of a rung, one of so many goes on to the next one.
REDUCTION = 2
# Of each so many trials in a row, an option has one in each part of its range of this number of equal parts.
PARTS = 4

# Chosen for the teacher, and on the student without distillation for all methods.
OPTIMIZER = {
    'optimizer.learning_rate': LogUniform(1e-4, 3e-3),
    'optimizer.weight_decay': LogUniform(1e-2, 10.0),
    'model.dropout': OneOf((0.0, 0.2, 0.4)),
}
# What SGD needs in place of the learning rate of AdamW.
SGD = {'optimizer.learning_rate': LogUniform(3e-3, 0.3)}
ROUNDS = {'td.rounds': OneOf((0, 1, 2, 3))}


class Search(NamedTuple):
    """What is searched, for every method alike."""

    of: Searched
    setting: dict  # what it changes in the config, such as {'dataset.split_by': 'user'}
    chosen_by: tables.ChosenBy  # on which columns, with which sampler seed
    trials: int  # of each method
    seeds: int  # of a run
    steps: int  # of a run


class Plan(NamedTuple):
    """What is tried for a method."""

    name: str  # of the method or the variant, or TEACHER
    columns: tuple[str, ...]
    fixed: dict  # {config key: value} of all trials: what was chosen before
    trials: list[dict]  # {config key: value} of each trial


class Ranked(NamedTuple):
    """A trial after a rung."""

    score: float  # the best value of its mean curve
    step: int  # where that is
    number: int
    at_last_step: bool  # whether there is no later one


def space(searched: Searched, name: str) -> dict:
    """{config key: LogUniform or OneOf}, what is drawn for TEACHER, a method or a variant of one.

    A weight that the config or a variant leaves at 0 stays there, and so does what is fixed.
    """
    config = searched.config()
    if name in (TEACHER, NO_DISTILLATION):
        prefix, side = ('teacher.', config.teacher) if name == TEACHER else ('', config)
        ranges = OPTIMIZER | (SGD if side.optimizer.name == 'sgd' else {})
        return {key: of for key, of in ranges.items() if f'{prefix}{key}' not in searched.fixed}
    config.update_from_flattened_dict(searched.changes(name))
    section = objectives.section_of(config)
    drawn = {f'{section}.weights.{term}': searched.weights for term in objectives.active_terms(config)}
    drawn |= ROUNDS if config.method == 'td' else {}
    fixed = searched.fixed | searched.set_by(name)
    return {key: of for key, of in drawn.items() if key not in fixed}


def draw(name: str, number: int, sampler_seed: int) -> float:
    """A number in [0, 1) that belongs to the name of an option, a trial and a sampler seed alone.

    Of each PARTS trials in a row one is in each of PARTS equal parts, in an order of the name's own.
    """
    block, place = divmod(number, PARTS)
    order = sorted(range(PARTS), key=lambda part: _uniform(name, sampler_seed, block, part))
    return (order[place] + _uniform(name, sampler_seed, number)) / PARTS


def _uniform(*of):
    """A number in [0, 1) by the hash of some values, the same on every machine."""
    digest = hashlib.sha256(json.dumps(of).encode()).digest()
    return (int.from_bytes(digest[:8], 'big') >> 11) / 2**53


def drawn_as(key: str) -> str:
    """The name that a config key's draws belong to: a weight is known by its term, whatever the method."""
    _, is_weight, term = key.partition('.weights.')
    return f'weights.{term}' if is_weight else key


def quotas(trials: int) -> list[int]:
    """How many of some trials are trained on each rung."""
    return [max(1, trials // REDUCTION**rung) for rung in range(RUNGS)]


def names_for(searched: Searched, sampler_seed: int = 0) -> list[str]:
    """All that can be searched: TEACHER, where one is trained, methods of the task, and variants.

    With another sampler seed than 0, what is searched unless methods are named: MAIN.
    """
    if sampler_seed:
        return list(MAIN)
    methods = [name for name, method in objectives.METHODS.items() if searched.task in method.tasks]
    config = searched.config()
    config.method = 'ld'
    teacher = [TEACHER] if cells.shares_teacher(config) else []
    return [*teacher, *dict.fromkeys((*methods, *searched.variants))]


def search_of(
    name: str, split_by: str, columns, trials: int, seeds: int, steps: int, sampler_seed: int = 0
) -> Search:
    """A Search; columns may be None, for the usual ones.

    The same columns in another order are the same search.

    Raises:
      UserError: a name that is not known, or a split of what is not split.
    """
    config_lib.check_choice('--config', name, CONFIGS)
    setting, searched = {}, CONFIGS[name]
    if searched.task == 'regression':
        config_lib.check_choice('--split_by', split_by, ratings.SPLITS_BY)
        setting = {'dataset.split_by': split_by}
    elif split_by != 'time':
        raise UserError(f'--split_by is {split_by}, but {name} has no ratings to split; leave it out.')
    known, wanted = list(searched.columns), set(columns or searched.mean_of)
    # `check` refuses what is not known.
    order = tuple(sorted(wanted, key=lambda column: known.index(column) if column in known else -1))
    by = tables.ChosenBy(() if order == searched.mean_of else order, sampler_seed)
    return Search(searched, setting, by, trials, seeds, steps)


def check(search: Search, names, journals: epath.Path, target: epath.Path):
    """Refuses what cannot be searched.

    Raises:
      UserError: a name that is not known, a method of another task, a teacher with another sampler seed,
        journals in a bucket or damaged, a file that cannot be written, or a method without what it is
        searched on top of.
    """
    for name in names:
        config_lib.check_choice('--methods', name, names_for(search.of))
    for column in search.chosen_by.columns:
        config_lib.check_choice('--columns', column, search.of.columns)
    if TEACHER in names and search.chosen_by.sampler_seed:
        raise UserError(
            f'--sampler_seed is {search.chosen_by.sampler_seed}, but the teacher is that of --sampler_seed=0 '
            f'for all; leave {TEACHER} out of --methods.'
        )
    if workdir.is_in_bucket(journals):
        raise UserError(f'--journals {journals} is in a bucket, which no journal can grow in; name a folder.')
    workdir.check_target('--output', target)
    for name in names:
        journal.read(_journal(search, name, journals))
    choices = workdir.read_json(target) or {}
    for name in names:
        for other in _needed(name):
            if other not in names:
                _chosen(search, name, other, choices)


def prepared(search: Search, name: str, column: str, rung: int):
    """The config that the runs of a method or a variant, or of TEACHER, start from on one rung."""
    config = search.of.config()
    config.update_from_flattened_dict(search.setting | search.of.columns[column])
    config.dataset.split = 'validation'
    if search.of.task == 'regression':
        config.dataset.validation_slice = rung
    config.num_steps, config.eval_every = search.steps, max(1, search.steps // search.of.points)
    config.log_every = config.save_every = search.steps
    config.diagnostics = False
    config.num_seeds, config.seed = search.seeds, rung * search.seeds
    config.teacher.seed = rung
    if name == TEACHER:
        run = config_lib.teacher_run(config)
        run.num_steps, run.num_seeds, run.seed = search.steps, config.num_seeds, config.seed
        return run
    config.update_from_flattened_dict(search.of.changes(name))
    return config


def run_of(search: Search, plan: Plan, number: int, rung: int, column: str):
    """The config of one run of a trial."""
    config = prepared(search, plan.name, column, rung)
    config.update_from_flattened_dict(plan.fixed | plan.trials[number])
    return config


def plan(search: Search, name: str, choices: dict) -> Plan:
    """What is tried for a method.

    Args:
      search: what is searched.
      name: of the method or the variant, or TEACHER.
      choices: as `cells.tuned` gives them, of what is searched before it.

    Raises:
      UserError: they lack something that the method is searched on top of, or have it of another search.
    """
    columns = search.chosen_by.columns or search.of.mean_of
    drawn, fixed, starts = space(search.of, name), {}, []
    if name == TEACHER:
        columns = columns[:1]
    else:
        fixed = dict(choices.get(_filed_under(search, TEACHER), {}).get(TEACHER, {}))
    optimizer = {}
    if not any(space(search.of, other) for other in (name, NO_DISTILLATION)):
        # All trials would be the same.
        return Plan(name, columns, fixed, [{}])
    if NO_DISTILLATION in _needed(name):
        chosen = _chosen(search, name, NO_DISTILLATION, choices, fixed)
        every = space(search.of, NO_DISTILLATION)
        optimizer = {key: of for key, of in every.items() if key not in search.of.set_by(name)}
        fixed |= {key: chosen[key] for key in optimizer}
    if name in STARTS:
        one, other = (
            {
                drawn_as(key): value
                for key, value in _chosen(search, name, method, choices, fixed).items()
                if key in optimizer or key not in fixed
            }
            for method in STARTS[name]
        )
        # What only the other one has is as weak as can be.
        least = {drawn_as(key): getattr(of, 'low', 0) for key, of in drawn.items()}
        for values in (one | other, one, other):
            starts.append({key: (least | values)[drawn_as(key)] for key in drawn | optimizer})

    def trial(number):
        has_own_optimizer = number // PARTS % 2
        ranges = drawn | optimizer if has_own_optimizer else drawn
        seed = search.chosen_by.sampler_seed
        values = {key: of.at(draw(drawn_as(key), number, seed)) for key, of in ranges.items()}
        return {key: fixed[key] for key in optimizer} | values

    if not drawn | optimizer:
        return Plan(name, columns, fixed, [{}])
    trials = starts[: search.trials]
    for number in range(len(trials), search.trials):
        values = trial(number)
        # Both methods may have chosen this trial; tried twice, it would take the place of another one.
        trials.append(trial(search.trials) if values in starts else values)
    return Plan(name, columns, fixed, trials)


def rank(curves: dict[int, list[dict]], less_is_better: bool) -> list[Ranked]:
    """Some trials, best first, without those that diverged.

    Args:
      curves: {number of a trial: [{step: value} of each of its runs]}.
      less_is_better: of the values.
    """
    found = []
    for number, of_trial in curves.items():
        # A run that diverged has no more steps, and no step that they all have is none to choose.
        steps = set.intersection(*map(set, of_trial))
        mean = {step: sum(curve[step] for curve in of_trial) / len(of_trial) for step in steps}
        if mean:
            step, score = best(mean, less_is_better)
            found.append(Ranked(score, step, number, step == max(map(max, of_trial))))
    return sorted(found, key=lambda trial: (trial.score if less_is_better else -trial.score, trial.number))


def tune(search: Search, names, root: epath.Path, journals: epath.Path, target: epath.Path, processes: int):
    """Searches the hyperparameters of some methods; what was chosen is written as soon as it is.

    Args:
      search: what is searched.
      names: methods or variants, TEACHER among them or not. `check` has seen them.
      root: folder of all runs.
      journals: local folder of the journals.
      target: JSON file that gets the choices; others in it stay.
      processes: runs at once.

    Yields:
      (name, the record of its choice, as `cells.tuned` has it, with the choice itself as `chosen`)

    Raises:
      UserError: journals that are damaged or in use, every trial of a method diverged, or what a run raises.
    """
    for name, folder in (('workdir', root), ('journals', journals)):
        workdir.make_folder(name, folder)
    parts = _parts(search, names)
    with contextlib.ExitStack() as held:
        for under in sorted({_filed_under(search, name) for name in names}):
            held.enter_context(journal.locked(pathlib.Path(journals), under))
        # All are read before a torn line of one is cut off.
        for name in names:
            journal.read(_journal(search, name, journals))
        kept = {name: journal.Journal(_journal(search, name, journals)) for name in names}
        for part in parts:
            choices = workdir.read_json(target) or {}
            plans = [plan(search, name, choices) for name in part]
            over = _climb(search, plans, kept, root, processes)
            for of, ranked in zip(plans, over, strict=True):
                if not ranked:
                    raise UserError(
                        f'every trial of {of.name} diverged; raise --trials, now {search.trials}.'
                    )
                values, record = _choice(search, of, ranked)
                # Another search may have written there in the meantime.
                choices = workdir.read_json(target) or {}
                under = choices.setdefault(_filed_under(search, of.name), {})
                under[of.name] = values
                under.setdefault(cells.SEARCHED, {})[of.name] = record
                workdir.write(target, json.dumps(choices, indent=2, sort_keys=True) + '\n')
                yield of.name, {'chosen': values, **record}


def _parts(search, names):
    """The names in groups, each searched on top of those before it; one group where nothing is drawn."""
    if not any(space(search.of, name) for name in names):
        return [names]
    joined = [name for name in names if name in STARTS]
    first = [name for name in (TEACHER, NO_DISTILLATION) if name in names]
    rest = [name for name in names if name not in (*first, *joined)]
    return [*([name] for name in first), rest, joined]


def _climb(search, plans, kept, root, processes):
    """The trials of each plan that are trained to their end, best first; runs what is missing."""
    less_is_better = evaluation.METRICS[search.of.task][3]
    climbing = {of.name: {number: [] for number in range(len(of.trials))} for of in plans}
    for rung, quota in enumerate([*quotas(search.trials)[1:], search.trials]):
        runs, missing, known = [], {}, []
        for of in plans:
            for number, column in itertools.product(climbing[of.name], of.columns):
                config = run_of(search, of, number, rung, column)
                runs.append((of.name, number, cells.run_name(config)))
                if runs[-1][2] not in kept[of.name].curves:
                    about = {'method': of.name, 'trial': number, 'rung': rung, 'column': column}
                    missing[runs[-1][2]] = config, about | {'values': of.trials[number]}
                else:
                    known.append((same_data.part_of(config), runs[-1][2], kept[of.name].data[runs[-1][2]]))
        same_data.check_now(same_data.check(known), [config for config, _ in missing.values()])
        _run_missing(search, missing, kept, root, processes)
        for name, number, run in runs:
            climbing[name][number].append(kept[name].curves[run])
        ranked = {name: rank(curves, less_is_better) for name, curves in climbing.items()}
        climbing = {
            name: {trial.number: climbing[name][trial.number] for trial in trials[:quota]}
            for name, trials in ranked.items()
        }
    return [ranked[of.name] for of in plans]


def _run_missing(search, missing, kept, root, processes):
    """Runs {name: (config, what its line says of it)}; each is in its journal as soon as it is over."""
    names, configs = list(missing), [config for config, _ in missing.values()]
    metric = f'validation_{evaluation.METRICS[search.of.task][0]}'

    def keep(number, curve):
        about, digest = missing[names[number]][1], same_data.of_run(cells.run_folder(root, configs[number]))
        about = {**about, 'data': digest} if digest else about
        kept[about['method']].append(names[number], curve, about)

    cells.train_teachers(root, configs, processes)
    tasks = [(str(root), config_lib.to_json(config), metric) for config in configs]
    jobs.each(_task, tasks, processes, root, 'runs', [describe_program(config) for config in configs], keep)


def _task(task):
    root, text, metric = task
    return _curve(epath.Path(root), config_lib.from_json(json.loads(text)), metric)


def _curve(root, config, name) -> dict:
    """{step: value} of the metric in a run's log, run now if it is missing; what diverged has none."""
    folder = cells.run_folder(root, config)
    try:
        cells.run_one(root, config)
    except Diverged:
        return {}
    # Hundreds of runs would fill the disk; what was measured stays.
    saved = folder / finished.CHECKPOINTS
    if saved.exists():
        saved.rmtree()
    return {line['step']: line[name] for line in metric_log.read(folder) if name in line}


def _choice(search, of, ranked):
    """What is chosen of the trials that were trained to their end, best first, and its record."""
    prefix = 'teacher.' if of.name == TEACHER else ''
    fixed = {key: value for key, value in of.fixed.items() if not key.startswith('teacher.')}
    trials = [
        {f'{prefix}{key}': value for key, value in (fixed | of.trials[trial.number]).items()}
        | {f'{prefix}num_steps': trial.step}
        for trial in ranked
    ]
    record = {
        **{key: getattr(search, key) for key in cells.BUDGET},
        'fixed': of.fixed,
        'completed': [
            {'score': trial.score, 'values': values} for trial, values in zip(ranked, trials, strict=True)
        ],
        'at_last_step': ranked[0].at_last_step,
    }
    return trials[0], record


def at_last_step(search: Search, names, choices: dict) -> list[str]:
    """Who chose the last step, where that is more than half of the methods of a search, or the teacher's own.

    Args:
      search: what was searched.
      names: of methods and TEACHER, of which the last is looked at alone.
      choices: as `cells.tuned` gives them.
    """

    def of(wanted):
        records = {name: _record(search, name, choices) for name in wanted}
        last = [name for name, record in records.items() if record and record['at_last_step']]
        return last if 2 * len(last) > sum(map(bool, records.values())) else []

    methods = choices.get(_filed_under(search, NO_DISTILLATION), {}).get(cells.SEARCHED, {})
    return of([TEACHER] if TEACHER in names else []) + of(name for name in methods if name != TEACHER)


def score_of(search: Search, name: str, choices: dict) -> float:
    """The validation score of what was chosen for a method by this search.

    Args:
      search: what was searched.
      name: of the method or the variant, or TEACHER.
      choices: as `cells.tuned` gives them.
    """
    return _record(search, name, choices)['completed'][0]['score']


def _record(search, name, choices):
    """The record of what was chosen for a method by a search of the same budget, or None."""
    record = choices.get(_filed_under(search, name), {}).get(cells.SEARCHED, {}).get(name)
    return record if record and all(record[key] == getattr(search, key) for key in cells.BUDGET) else None


def _needed(name):
    """What a method is searched on top of, in addition to the teacher."""
    return () if name in (TEACHER, NO_DISTILLATION) else (NO_DISTILLATION, *STARTS.get(name, ()))


def _chosen(search, name, other, choices, fixed=None):
    """What was chosen for another method that this one is searched on top of."""
    record = _record(search, other, choices)
    if record is None or (fixed is not None and record['fixed'] != fixed):
        raise UserError(
            f'{name} is searched on top of {other}, for which --output has no choice of this search '
            f'({search.trials} trials, {search.seeds} seeds, {search.steps} steps, the same teacher); '
            f'name {other} in --methods, too.'
        )
    return choices[_filed_under(search, other)][other]


def _journal(search, name, journals):
    """Where the runs of a method's search are."""
    return pathlib.Path(journals) / f'{_filed_under(search, name)}-{name}{journal.SUFFIX}'


def _filed_under(search, name):
    """The setting of a method's choice; that of the teacher is the usual one."""
    config = prepared(search, name, search.of.mean_of[0], 0)
    return cells.setting(config, tables.USUAL if name == TEACHER else search.chosen_by)


def best(curve: dict, less_is_better: bool):
    """(step, value) of the best value of a curve {step: value}, the first of several."""
    return min(curve.items(), key=lambda point: (point[1] if less_is_better else -point[1], point[0]))
