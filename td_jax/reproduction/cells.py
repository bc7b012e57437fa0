"""The cells of a table: what each runs, where, and what came of it.

A cell is one run of td_jax.training.run, or one for each teacher, in a folder of its own, whose name holds a
digest of its config: a table may be interrupted and made again, and a changed config is a new run. Runs that
would train the same teacher share one.
"""

import functools
import importlib
import json
import pathlib
import types
from typing import NamedTuple

from etils import epath

from td_jax import config as config_lib
from td_jax.devices import flops, platform, sharding
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import errors, jobs, same_data, tables
from td_jax.training import assembly, evaluation
from td_jax.training.programs import Programs, describe_program
from td_jax.training.run import train

# Of the runs of this process.
PROGRAMS = Programs()
TUNED = pathlib.Path(__file__).parents[1] / 'configs' / 'tuned'
# The key of how the choices of a setting were made.
SEARCHED = 'searched'
# The options of a search that those of all methods have in common.
BUDGET = 'trials', 'seeds', 'steps'


def base_config(name: str):
    """The config of a module of td_jax/configs/."""
    return importlib.import_module(f'td_jax.configs.{name}').get_config()


def tuned(name: str) -> dict:
    """{setting: {'teacher', a method or a variant: {config key: value}}}, as td_jax.tune chose.

    Under SEARCHED of a setting stands how each of them was chosen: {name: {'trials', 'seeds', 'steps',
    'fixed', 'completed', 'at_last_step'}}, where `fixed` are the values that all trials had, `completed` the
    score and the values of those that were trained to their end, best first, and `at_last_step` whether the
    best one had as many steps as there were.
    """
    return workdir.read_json(TUNED / f'{name}.json') or {}


def setting(config, chosen_by: tables.ChosenBy = tables.USUAL) -> str:
    """What a config's tuned values are filed under: how ratings are split, or the data set of images.

    Args:
      config: of any of its runs.
      chosen_by: the search that chose them.
    """
    dataset = config.dataset
    name = f'{dataset.name}_by_{dataset.split_by}' if dataset.name == 'movielens' else dataset.name
    seed = chosen_by.sampler_seed
    return '_'.join((name, *chosen_by.columns, *([f'sampler_seed_{seed}'] if seed else [])))


def apply_tuned(config, choices: dict, name: str, chosen_by: tables.ChosenBy = tables.USUAL):
    """Sets what was chosen for a method or a variant, and for the teacher; a list in JSON is a tuple.

    Args:
      config: is changed.
      choices: as `tuned` gives them.
      name: of the method or the variant.
      chosen_by: the search that chose it; the teacher is that of the usual one.

    Raises:
      UserError: this search, which is not the usual one, chose nothing, so that the usual hyperparameters
        would pass for its own; or the student without distillation, or the teacher, is of another search.
    """
    under = setting(config, chosen_by)
    chosen, teacher = choices.get(under, {}), choices.get(setting(config), {}).get('teacher', {})
    if chosen_by != tables.USUAL and name not in chosen:
        columns, seed = chosen_by
        flags = f'--columns={",".join(columns)} ' * bool(columns) + f'--sampler_seed={seed} ' * bool(seed)
        raise UserError(
            f'td_jax/configs/tuned/ has no hyperparameters of {name} under {under}; '
            f'td_jax.tune with {flags}--methods={name} chooses them.'
        )
    if SEARCHED in chosen and name in chosen:
        _check_same_search(under, chosen, teacher, name)
    found = {**teacher, **chosen.get(name, {})}
    config.update_from_flattened_dict(
        {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    )


def _check_same_search(under, chosen, teacher, name):
    """Refuses a choice that was not made as that of the student without distillation, and on top of it."""
    ours, basis = (chosen[SEARCHED].get(of, {}) for of in (name, 'supervised'))
    now = chosen.get('supervised', {}) | teacher
    if (
        not ours
        or any(ours[key] != basis.get(key) for key in BUDGET)
        or any(value != now.get(key) for key, value in ours['fixed'].items())
    ):
        raise UserError(
            f'td_jax/configs/tuned/ has hyperparameters of {name} under {under} that are not of the search '
            f'of supervised and teacher there; td_jax.tune with --methods={name} and the --trials, --seeds '
            'and --steps of that one chooses them anew.'
        )


def module_of(table: tables.Table, column: str) -> str:
    """The module of configs/ that a column starts from."""
    return table.config if isinstance(table.config, str) else table.config[column]


def tuned_name(table: tables.Table, row: str) -> str:
    """The name of the method or the variant that a row's hyperparameters were tuned for."""
    return table.variants.get(row, table.rows[row]['method'])


def cell_config(table: tables.Table, column: str, row: str, choices: dict | None = None):
    """The config of one cell: the table's, its column's, what was tuned for its method, its row's.

    The row with the operations of another is the only one that needs the data for that.

    Args:
      table, column, row: which cell.
      choices: as `tuned` gives them, in place of those in td_jax/configs/tuned/.
    """
    module = module_of(table, column)
    config = base_config(module)
    config.update_from_flattened_dict(table.columns[column])
    name = tuned_name(table, row)
    config.update_from_flattened_dict(tables.variant(name))
    tuned_as = tuned_name(table, table.knobs_of.get(row, row))
    choices = tuned(module) if choices is None else choices
    apply_tuned(config, choices, tuned_as, table.chosen_by.get(row, tables.USUAL))
    config.update_from_flattened_dict(table.rows[row])
    config.update_from_flattened_dict(
        {key: config_lib.flatten(config)[other] for key, other in table.copied.get(row, {}).items()}
    )
    if 'td.ramp_up' in table.rows[row]:
        # The steps that train the parts alone come before those, chosen on validation data, that train all.
        config.num_steps += sum(config.td.ramp_up)
    if row in table.as_many_operations_as:
        other = cell_config(table, column, table.as_many_operations_as[row], choices)
        config.num_steps = round(other.num_steps * operations(other) / operations(config))
    return config


def runs_of(table: tables.Table, column: str, row: str, choices: dict | None = None) -> list:
    """The configs of a cell's runs: one for each teacher, or a single one; of `cell_config`'s arguments."""
    config = cell_config(table, column, row, choices)
    if table.students:
        config.num_seeds = table.students
    return by_teacher(config, table.teachers)


def by_teacher(config, teachers: int) -> list:
    """The runs of a config whose students have several teachers: one for each teacher, student i with i.

    Where no teacher is trained, that is the config itself.
    """
    given = config.teacher.pretrained or config.teacher.checkpoint
    if teachers == 1 or not config_lib.has_teacher(config) or given:
        return [config]
    runs = []
    for i in range(teachers):
        run = config.copy_and_resolve_references()
        run.teacher.seed, run.seed, run.seed_step = config.teacher.seed + i, config.seed + i, teachers
        run.num_seeds = len(range(i, config.num_seeds, teachers))
        runs.append(run)
    return runs


def operations(config) -> int:
    """Of one training step of all seeds of a run on data in memory: those of its matrix products."""
    return _operations(config_lib.to_json(config))


@functools.cache
def _operations(stored: str) -> int:
    config = config_lib.from_json(json.loads(stored))
    source, teacher = assembly.load_source(config, config.dataset), None
    if config_lib.has_teacher(config):
        task = assembly.load_source(config, config.teacher.dataset)
        teacher = assembly.abstract_teacher(config, task)
    found = assembly.abstract(config, source, teacher, sharding.make_mesh(config))
    return flops.of(found.jitted.run, *found.arguments)


def run_name(config) -> str:
    """The folder of a cell's run below that of all runs: data set, method and content."""
    return f'{config.dataset.name}/{config.method}-{config_lib.digest(config)}'


def run_folder(root: epath.Path, config) -> epath.Path:
    """Where a cell's run is."""
    return root / run_name(config)


def teacher_folder(root: epath.Path, config) -> epath.Path:
    """Where the teacher that these cells share is."""
    return root / config.dataset.name / f'teacher-{config_lib.digest(_teacher_run(config))}'


def share_teacher(root: epath.Path, config) -> epath.Path:
    """Trains a config's teacher unless it is there; -> its folder."""
    folder = teacher_folder(root, config)
    train(_teacher_run(config), folder, programs=PROGRAMS)
    return folder


def _teacher_run(config):
    """The config of a shared teacher's run: validated at its end alone, since nothing reads its curve."""
    run = config_lib.teacher_run(config)
    run.eval_every = run.num_steps
    return run


def own_teachers(root: epath.Path, configs) -> list:
    """The configs, one for each, of the teachers that some runs need and that are trained for them."""
    needed = {teacher_folder(root, config): config for config in configs if shares_teacher(config)}
    return list(needed.values())


def shares_teacher(config) -> bool:
    """Whether a run has a teacher that is trained for it and for others, and not one that is named."""
    return config_lib.trains_teacher(config) and not config.teacher.checkpoint


def run_one(root: epath.Path, config) -> dict:
    """The result of a run, which is run now if it is missing."""
    folder = run_folder(root, config)
    config = config.copy_and_resolve_references()
    if shares_teacher(config):
        config.teacher.checkpoint = str(share_teacher(root, config))
    return train(config, folder, programs=PROGRAMS)


def is_there(root: epath.Path, config) -> bool:
    """Whether a run has a result."""
    return workdir.read_json(run_folder(root, config) / workdir.RESULT) is not None


def names_of(configs) -> list[str]:
    """`run_name` of each."""
    return [run_name(config) for config in configs]


def stored(root: epath.Path, configs) -> dict | None:
    """The result of a cell from its runs, or None where one is missing.

    What a result.json has; of several runs, `values` and `seeds` in the order of the seeds, and `teacher` the
    mean of the teachers' scores. In addition: `teachers`, the seed of each student's teacher, `errors` of its
    examples, as `errors.by_unit` gives them, or None, `runs`, the names of the runs, `protocol`, the number
    of the rules that they were trained by, and `data`, what their data are known by, '' where they do not
    say.

    Raises:
      UserError: a file of errors is damaged, or the runs were trained on different data.
    """
    folders = [run_folder(root, config) for config in configs]
    results = [workdir.read_json(folder / workdir.RESULT) for folder in folders]
    if None in results:
        return None
    students = [
        (seed, value, config.teacher.seed)
        for config, result in zip(configs, results, strict=True)
        for seed, value in zip(result['seeds'], result['values'], strict=True)
    ]
    order = sorted(range(len(students)), key=lambda i: students[i][0])
    seeds, values, teachers = (list(column) for column in zip(*(students[i] for i in order), strict=True))
    mean, stderr = evaluation.mean_and_stderr(values)
    scores = [result['teacher'] for result in results if result['teacher'] is not None]
    return {
        **results[0],
        'seeds': seeds,
        'values': values,
        'mean': mean,
        'stderr': stderr,
        'teacher': sum(scores) / len(scores) if scores else None,
        'teachers': teachers,
        'errors': errors.of_runs(folders, order),
        'groups': errors.groups_of_runs(results, order),
        'runs': names_of(configs),
        'protocol': configs[0].protocol,
        'data': _data_of(configs, folders),
    }


def _data_of(configs, folders):
    """What the data of the runs of a cell are known by, '' where none says it."""
    found = same_data.check(
        (same_data.part_of(config), str(folder), same_data.of_run(folder))
        for config, folder in zip(configs, folders, strict=True)
    )
    return next((digest for _, digest in found.values()), '')


def run_missing(root: epath.Path, configs, processes: int):
    """Runs what is missing of some configs, after the teachers that they need.

    Args:
      root: folder of all runs.
      configs: of the runs.
      processes: how many at once.

    Raises:
      UserError: what a run raises.
    """
    missing = {run_folder(root, config): config for config in configs if not is_there(root, config)}
    if missing:
        workdir.make_folder('workdir', root)
    train_teachers(root, missing.values(), processes)
    # The last rows of most tables are of TD, whose runs are the longest: begun first, they leave no process
    # alone with one of them at the end.
    configs = list(missing.values())[::-1]
    kinds = [describe_program(config) for config in configs]
    jobs.each(_run_task, _tasks(root, configs), processes, root, 'runs', kinds)


def train_teachers(root: epath.Path, configs, processes: int):
    """Trains the teachers that some runs need, each once: two runs would be in each other's way."""
    jobs.each(_teacher_task, _tasks(root, own_teachers(root, configs)), processes, root, 'teachers')


def _tasks(root, configs):
    return [(str(root), config_lib.to_json(config)) for config in configs]


def _teacher_task(task):
    root, text = task
    share_teacher(epath.Path(root), config_lib.from_json(json.loads(text)))


def _run_task(task):
    root, text = task
    run_one(epath.Path(root), config_lib.from_json(json.loads(text)))


def _of_wanted(names, genres, datasets):
    """{(table, column, row): the configs of its runs} of the cells that some tables need."""
    tables.check_names(names, genres, datasets)
    return {
        cell: runs_of(tables.TABLES[cell[0]], *cell[1:])
        for cell in tables.wanted_cells(names, genres, datasets)
    }


def by_runs(kept: dict) -> dict:
    """{the names of its runs: a cell that is there}; tables have cells in common.

    Args:
      kept: {table: {column: {row: result or None}}}, of a file of errors or as `make` gives them.
    """
    results = [result for columns in kept.values() for rows in columns.values() for result in rows.values()]
    return {tuple(result['runs']): result for result in results if result and 'runs' in result}


def results_of(root: epath.Path, wanted, there: dict, only_show: bool, processes: int) -> list:
    """The result of each of some cells, or None where it is missing.

    Args:
      root: folder of all runs.
      wanted: the configs of the runs of each.
      there: cells by the names of their runs, as `by_runs` gives them, that need no runs in `root`.
      only_show: whether to run nothing.
      processes: how many runs at once.

    Raises:
      UserError: what a run raises, or cells that were trained on different data.
    """
    wanted = list(wanted)
    names = [tuple(names_of(configs)) for configs in wanted]
    if not only_show:
        needed = [configs for name, configs in zip(names, wanted, strict=True) if name not in there]
        needed = [config for configs in needed for config in configs]
        _check_data_now(root, zip(names, wanted, strict=True), there, needed)
        run_missing(root, needed, processes)
    found = [stored(root, configs) or there.get(name) for name, configs in zip(names, wanted, strict=True)]
    same_data.check(
        (same_data.part_of(configs[0]), name[0], cell.get('data', ''))
        for name, configs, cell in zip(names, wanted, found, strict=True)
        if cell
    )
    return found


def _check_data_now(root, wanted, there, needed):
    """Refuses to run what is missing on other data than those of what is there, a run of each part."""
    missing = [config for config in needed if not is_there(root, config)]
    parts, known = {same_data.part_of(config) for config in missing}, {}
    for name, configs in wanted:
        part = same_data.part_of(configs[0])
        if part in parts and part not in known:
            folders = [run_folder(root, config) for config in configs if is_there(root, config)]
            digest = there.get(name, {}).get('data', '') or (same_data.of_run(folders[0]) if folders else '')
            known |= same_data.check([(part, name[0], digest)])
    same_data.check_now(known, missing)


def of_other_runs(results: dict, kept: dict) -> list[tuple[str, str, str]]:
    """(table, column, row) of what a file has of some tables, of other runs than theirs: other options.

    Args:
      results, kept: what `make` gives, and was given.
    """
    return [
        (name, column, row)
        for name, columns in results.items()
        for column, rows in columns.items()
        for row, result in rows.items()
        if (there := kept.get(name, {}).get(column, {}).get(row))
        and (result is None or result['runs'] != there.get('runs'))
    ]


def make(
    names,
    genres,
    datasets,
    root: epath.Path,
    only_show: bool,
    processes: int = 1,
    kept: dict = types.MappingProxyType({}),
) -> dict:
    """Runs what is missing for some tables.

    Args:
      names: of the tables.
      genres, datasets: the columns to keep.
      root: folder of all runs.
      only_show: whether to run nothing.
      processes: how many runs at once.
      kept: what an errors file has, as errors.read gives it. A cell of the same runs is taken from it where
        they are not in `root`: they may have been run on another machine.

    Returns:
      {table: {column: {row: result, or None where it is missing}}}, tables that others are made of among them

    Raises:
      UserError: an unknown table, genre or data set, or what a run raises.
    """
    wanted, there = _of_wanted(names, genres, datasets), by_runs(kept)
    found = results_of(root, wanted.values(), there, only_show, processes)
    results = {}
    for (name, column, row), result in zip(wanted, found, strict=True):
        results.setdefault(name, {}).setdefault(column, {})[row] = result
        if result and row in tables.TABLES[name].chosen_by:
            # A row may have the runs of the usual one, whose trials are of another search.
            results[name][column][row] = {key: result[key] for key in result if key != 'on_test'}
    return results


class Planned(NamedTuple):
    """What a run would cost."""

    cell: tuple[str, str, str]  # the first table, column and row that need it
    is_there: bool  # run already
    of_step: float  # operations of one step, all seeds together
    steps: int
    seeds: int

    def operations(self) -> float:
        """Of the whole run."""
        return self.of_step * self.steps


def plan(names, genres, datasets, root: epath.Path, kept: dict = types.MappingProxyType({})) -> list[Planned]:
    """The runs that `make` needs of the same arguments, each once, and their operations; runs nothing.

    Raises:
      UserError: an unknown name, a table whose runs cannot be counted without their data, or no device.
    """
    platform.start()
    found, in_file = {}, by_runs(kept)
    for cell, configs in _of_wanted(names, genres, datasets).items():
        is_kept = tuple(names_of(configs)) in in_file
        for config in configs:
            folder = run_folder(root, config)
            if folder in found:
                continue
            config_lib.check(config)
            abstract = assembly.abstract_images(config, sharding.make_mesh(config))
            of_step = flops.of(abstract.jitted.run, *abstract.arguments)
            is_run = is_kept or is_there(root, config)
            found[folder] = Planned(cell, is_run, of_step, config.num_steps, config.num_seeds)
    return list(found.values())
