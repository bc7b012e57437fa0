"""Compares variants of one config on a user's own data: searches each, trains students, keeps the best one.

A variant is a method or a named set of changes to the config. All are searched alike on validation data
(tuning.py), the student without distillation among them. Then several students of each are trained with what
was chosen and evaluated on the test split once. The best variant is the one with the best validation score;
its first student is copied to a folder of its own. The test split chooses nothing.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import ml_collections
from etils import epath

from td_jax import config as config_lib
from td_jax import statistics
from td_jax.devices import flops
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.method import objectives
from td_jax.reproduction import cells, tables, tuning
from td_jax.training import assembly, evaluation, finished, preflight

# Below the folder of a comparison.
SEARCH, JOURNALS, CHOICES, STUDENTS, BEST = 'search', 'journals', 'choices.json', 'students', 'best'
# Validations of a run of a search.
POINTS = 20


class Plan(NamedTuple):
    """What is compared, and with how much effort."""

    config: ml_collections.ConfigDict  # what all variants start from
    names: tuple[str, ...]  # of the variants, tuning.NO_DISTILLATION first
    search: tuning.Search
    is_searched: bool  # else every variant keeps the hyperparameters of the config
    seeds: int  # students of a variant
    teachers: int  # that they have between them
    operations: Mapping[str, float]  # by variant: of a training step of one student

    def metric(self) -> str:
        """The name of what is measured."""
        return evaluation.METRICS[self.search.of.task][0]

    def less_is_better(self) -> bool:
        """Of that."""
        return evaluation.METRICS[self.search.of.task][3]


class Row(NamedTuple):
    """What came of a variant."""

    name: str
    config: ml_collections.ConfigDict  # with what was chosen, of all its students
    validation: float  # score of the choice
    result: dict  # as cells.stored gives it
    folders: list[epath.Path]  # of its runs
    parameters: int  # of a student


def plan(
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
    """Refuses what cannot be compared; reads the data, and trains and writes nothing.

    Args:
      config: what all variants start from.
      methods: names of methods and of tables.VARIANTS.
      own_variants: {name: {config key: value}} of other variants.
      fixed: keys that are not searched, such as those that a person has set.
      trials: of each variant; 0 keeps the hyperparameters of the config.
      steps: of a run of the search, the most that can be chosen; 0 for the config's.
      search_seeds: students of a run of the search.
      seeds: students of each variant.
      teachers: that these have between them; 0 for as many.

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
    teachers = teachers or seeds
    if teachers > seeds:
        raise UserError(f'--teachers is {teachers}, but only {seeds} students have one (--seeds).')
    task = assembly.load_source(config, config.dataset).task
    # A schedule ends at a fixed step: only the last one of a run says what such a run gives.
    points = POINTS if config.optimizer.schedule == 'constant' else 1
    searched = tuning.Searched(
        config.copy_and_resolve_references,
        task,
        columns={'': {}},
        mean_of=('',),
        points=points,
        weights=tuning.IMAGE_WEIGHTS if 'image_size' in _read(config) else tuning.WEIGHTS,
        variants={**tables.VARIANTS, **own_variants},
        fixed=frozenset({*fixed, *_unread(config)} if trials else config_lib.flatten(config)),
    )
    names = tuple(dict.fromkeys((tuning.NO_DISTILLATION, *methods, *own_variants)))
    for name in own_variants:
        if name in (*objectives.METHODS, *tables.VARIANTS, tuning.TEACHER):
            raise UserError(f'--variants has {name}, a name that td_jax has itself; give yours another one.')
    known = [name for name in tuning.names_for(searched) if name != tuning.TEACHER]
    for name in names:
        config_lib.check_choice('--methods', name, known)
        if missing := [other for other in tuning.STARTS.get(name, ()) if other not in names]:
            raise UserError(
                f'{name} is searched on top of {" and ".join(tuning.STARTS[name])}; name '
                f'{", ".join(missing)} in --methods, too.'
            )
    search = tuning.Search(
        searched, {}, tables.USUAL, max(1, trials), search_seeds, (trials and steps) or config.num_steps
    )
    made = Plan(config, names, search, bool(trials), seeds, teachers, {})
    for rung in range(tuning.RUNGS):
        # Of ratings, another slice of time.
        searched_config = tuning.prepared(search, tuning.NO_DISTILLATION, '', rung)
        assembly.load_source(searched_config, searched_config.dataset)
    return made._replace(operations={name: _checked(made, name) for name in names})


def _unread(config):
    """The keys of the optimizer and of its teacher's that the models of a config do not read."""
    config = config.copy_and_resolve_references()
    config.method = 'ld'
    keys = [f'{prefix}{key}' for prefix in ('', 'teacher.') for key in tuning.OPTIMIZER]
    return config_lib.without_effect(config, keys)


def _read(config):
    """The keys of a data set of the config that have an effect."""
    keys = [key for key in config_lib.flatten(config) if key.startswith('dataset.')]
    return {
        key.removeprefix('dataset.') for key in set(keys) - config_lib.without_effect(config, keys).keys()
    }


def _checked(of: Plan, name) -> float:
    """Refuses a variant that cannot be trained; -> the operations of a step of one of its students."""
    changes, keys = of.search.of.changes(name), config_lib.flatten(of.config).keys()
    for key in changes:
        config_lib.check_choice(f'--variants: {name}:', key, list(keys))
    for key, value in changes.items():
        try:
            _set(of.config.copy_and_resolve_references(), {key: value})
        except (TypeError, ValueError) as error:
            usual = config_lib.flatten(of.config)[key]
            raise UserError(
                f'--variants: {name}: {key} is {value!r}, which is no value like {usual!r}.'
            ) from error
    config = _start(of, name)
    config_lib.check(config)
    first = _runs(of, config)[0]
    step = preflight.check(first, epath.Path('/nowhere') / name, cells.PROGRAMS).compiled.step
    return flops.of(step.jitted.run, *step.arguments) / first.num_seeds


def _start(of: Plan, name):
    """The config of a variant before anything is chosen for it."""
    return _set(of.config.copy_and_resolve_references(), of.search.of.changes(name))


def _set(config, changes):
    """A config with some changes, of which a list in JSON is a tuple."""
    config.update_from_flattened_dict(
        {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    )
    return config


def _runs(of: Plan, config) -> list:
    """The runs of a variant's students."""
    config.num_seeds = of.seeds
    return cells.by_teacher(config, of.teachers)


class Cost(NamedTuple):
    """What a comparison takes in all, those of its runs included that are there."""

    runs: int  # of the search and of the students
    operations: float  # of matrix products
    size: float  # bytes of the checkpoints that stay


def cost(of: Plan) -> Cost:
    """Counts the runs of a plan and the operations of their steps; TD with the rounds of the config."""
    runs, operations, size = 0, 0.0, 0.0
    for name in of.names:
        config = _start(of, name)
        # All trials are the same where nothing is drawn.
        trials = of.search.trials if tuning.space(of.search.of, name) else 1
        searched, students = sum(tuning.quotas(trials)), of.seeds * config.num_steps
        steps = searched * of.search.seeds * of.search.steps + students
        operations += of.operations[name] * steps
        runs += searched + len(_runs(of, config))
        # Parameters and two moments of each; two checkpoints are kept.
        size += 2 * 3 * 4 * of.seeds * parameters_of(config)
    return Cost(runs, operations, size)


def parameters_of(config) -> int:
    """How many parameters a student has."""
    source = assembly.load_source(config, config.dataset)
    shapes = assembly.parameter_shapes(config, config.model, source)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def run(of: Plan, root: epath.Path, processes: int) -> list[Row]:
    """Searches, trains and evaluates what is missing; -> the rows, in the order of the names.

    Args:
      of: by `plan`.
      root: folder of the comparison; a second call resumes.
      processes: runs at once.

    Raises:
      UserError: journals that are damaged or in use, every trial of a variant diverged, or what a run raises.
    """
    workdir.make_folder('workdir', root)
    names, choices = list(of.names), root / CHOICES
    has_teacher = of.is_searched and tuning.TEACHER in tuning.names_for(of.search.of)
    searched = [tuning.TEACHER, *names] if has_teacher else names
    places = root / SEARCH, root / JOURNALS, choices
    tuning.check(of.search, searched, *places[1:])
    for name, record in tuning.tune(of.search, searched, *places, processes):
        score = record['completed'][0]['score']
        print(f'{name}: validation {of.metric()} {statistics.number(score)}', file=sys.stderr, flush=True)
    chosen = workdir.read_json(choices) or {}
    at_last = tuning.at_last_step(of.search, searched, chosen) if of.is_searched else []
    if at_last and of.search.of.points > 1:
        print(
            f'td_jax: {", ".join(at_last)} chose the last of {of.search.steps} steps; longer training may be '
            f'better: --steps={2 * of.search.steps}.',
            file=sys.stderr,
            flush=True,
        )
    configs = {name: config_of(of, name, chosen) for name in names}
    runs = {name: _runs(of, config) for name, config in configs.items()}
    results = cells.results_of(root / STUDENTS, runs.values(), {}, only_show=False, processes=processes)
    return [
        Row(
            name,
            configs[name],
            tuning.score_of(of.search, name, chosen),
            result,
            [cells.run_folder(root / STUDENTS, config) for config in runs[name]],
            parameters_of(configs[name]),
        )
        for name, result in zip(names, results, strict=True)
    ]


def config_of(of: Plan, name: str, choices: dict):
    """The config of a variant with what was chosen for it, where something was."""
    config = _start(of, name)
    if of.is_searched:
        cells.apply_tuned(config, choices, name)
    return config


def best_of(of: Plan, rows: list[Row]) -> Row:
    """The row with the best score on validation data, the first of several."""
    sign = 1 if of.less_is_better() else -1
    return min(rows, key=lambda row: sign * row.validation)


def keep_best(row: Row, root: epath.Path) -> epath.Path:
    """Copies the first run of a row to the folder BEST, in place of another one; -> the folder."""
    source, target = row.folders[0], root / BEST
    if target.exists():
        if _says(target) == _says(source):
            return target
        shutil.rmtree(target)
    with workdir.whole(target) as folder:
        shutil.copytree(source, folder)
    return target


def _says(folder):
    """What tells a finished run from another one."""
    stored = workdir.read_json(folder / workdir.CONFIG)
    return json.dumps([stored, finished.read_result(folder)], sort_keys=True)
