"""The cells of a table: their configs, folders and results.

A cell is one run of td_jax.training.run, or one for each teacher. The name of a run's folder has a digest of
its config: an interrupted table resumes, and a changed config is a new run. Runs that would train the same
teacher share one.
"""

import functools
import importlib
import json
import pathlib
import types
from typing import NamedTuple

from etils import epath

from td_jax import config as config_lib
from td_jax.data import images
from td_jax.devices import flops, platform, sharding
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import errors, jobs, same_data, same_teacher, tables
from td_jax.training import assembly, evaluation, finished
from td_jax.training.programs import Programs, describe_program
from td_jax.training.run import train

# Programs compiled by this process, for its later runs.
PROGRAMS = Programs()
TUNED = pathlib.Path(__file__).parents[1] / 'configs' / 'tuned'
# The key under which a setting records how its choices were made.
SEARCHED = 'searched'
# The key under which a record, or a cell, has the fingerprint of the public checkpoint that taught.
PUBLIC_TEACHER = 'public_teacher'
# The options of a search that must be the same for all methods.
BUDGET = 'trials', 'seeds', 'steps'


def base_config(name: str):
    """The config of a module of td_jax/configs/."""
    return importlib.import_module(f'td_jax.configs.{name}').get_config()


def read_tuned(name: str) -> dict:
    """Reads the hyperparameters that td_jax.tune chose.

    Returns:
      {setting: {'teacher', a method or a variant: {config key: value}}}. Under SEARCHED, a setting also
      records how each was chosen: {name: {'trials', 'seeds', 'steps', 'fixed', 'completed', 'at_last_step'}}.
      `fixed` are the values of all trials; `completed` the scores and values of the trials that were trained
      to the end, best first; `at_last_step` whether the best one had the largest number of steps. A method
      with a public teacher also has its fingerprint, PUBLIC_TEACHER.
    """
    return workdir.read_json(TUNED / f'{name}.json') or {}


def setting(config, chosen_by: tables.ChosenBy = tables.USUAL) -> str:
    """The name of the setting of a config: the data set, for ratings the split, and if some have no labels.

    Args:
      config: of any run in the setting.
      chosen_by: the search; one other than the usual has a setting of its own.
    """
    dataset = config.dataset
    name = f'{dataset.name}_by_{dataset.split_by}' if dataset.name == 'movielens' else dataset.name
    name += '_unlabelled' if dataset.unlabelled else ''
    seed = chosen_by.sampler_seed
    return '_'.join((name, *chosen_by.columns, *([f'sampler_seed_{seed}'] if seed else [])))


def apply_tuned(config, choices: dict, name: str, chosen_by: tables.ChosenBy = tables.USUAL):
    """Sets the hyperparameters that were chosen for a method or a variant, and for the teacher.

    Args:
      config: is changed; a list in JSON becomes a tuple.
      choices: by `read_tuned`.
      name: of the method or the variant.
      chosen_by: the search that chose them; the teacher is always that of the usual search.

    Raises:
      UserError: a search other than the usual one has no choice for the name; or the choice, that of the
        student without distillation and that of the teacher are not of the same search.
    """
    setting_name = setting(config, chosen_by)
    chosen = choices.get(setting_name, {})
    teacher = choices.get(setting(config_lib.teacher_run(config)), {}).get('teacher', {})
    if chosen_by != tables.USUAL and name not in chosen:
        columns, seed = chosen_by
        flags = f'--columns={",".join(columns)} ' * bool(columns) + f'--sampler_seed={seed} ' * bool(seed)
        raise UserError(
            f'td_jax/configs/tuned/ has no hyperparameters of {name} under {setting_name}; '
            f'td_jax.tune with {flags}--methods={name} chooses them.'
        )
    if SEARCHED in chosen and name in chosen:
        _check_same_search(setting_name, chosen, teacher, name)
    set_values(config, {**teacher, **chosen.get(name, {})})


def set_values(config, values: dict):
    """Sets {config key: value} in a config; a list in JSON becomes a tuple."""
    config.update_from_flattened_dict(
        {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def _check_same_search(setting_name, chosen, teacher, name):
    """Refuses a choice that is not of the same search as that of the student without distillation."""
    ours, basis = (chosen[SEARCHED].get(variant, {}) for variant in (name, 'supervised'))
    current = chosen.get('supervised', {}) | teacher
    if (
        not ours
        or any(ours[key] != basis.get(key) for key in BUDGET)
        or any(value != current.get(key) for key, value in ours['fixed'].items())
    ):
        raise UserError(
            f'td_jax/configs/tuned/ has hyperparameters of {name} under {setting_name} that are not of the '
            f'search of supervised and teacher there; td_jax.tune with --methods={name} and the --trials, '
            '--seeds and --steps of that one chooses them anew.'
        )


def module_of(table: tables.Table, column: str) -> str:
    """The module of configs/ that a column starts from."""
    return table.config if isinstance(table.config, str) else table.config[column]


def tuned_name(table: tables.Table, row: str) -> str:
    """The name of the method or the variant that a row's hyperparameters were tuned for."""
    return table.variants.get(row, table.rows[row]['method'])


def cell_config(table: tables.Table, column: str, row: str, choices: dict | None = None):
    """The config of one cell: the table's, then its column's, tuned and row's values, in this order.

    Only a compute-matched row needs to read the data.

    Args:
      table, column, row: which cell.
      choices: by `read_tuned`; None reads those in td_jax/configs/tuned/.
    """
    module = module_of(table, column)
    config = base_config(module)
    config.update_from_flattened_dict(table.columns[column])
    name = tuned_name(table, row)
    config.update_from_flattened_dict(tables.variant(name))
    tuned_as = tuned_name(table, table.hyperparameters_of.get(row, row))
    choices = read_tuned(module) if choices is None else choices
    apply_tuned(config, choices, tuned_as, table.chosen_by.get(row, tables.USUAL))
    config.update_from_flattened_dict(table.rows[row])
    config.update_from_flattened_dict(
        {key: config_lib.flatten(config)[other] for key, other in table.copied.get(row, {}).items()}
    )
    if 'td.ramp_up' in table.rows[row]:
        # The steps that train single parts come in addition to the chosen number of steps.
        config.num_steps += sum(config.td.ramp_up)
    if row in table.compute_matched_to:
        other = cell_config(table, column, table.compute_matched_to[row], choices)
        config.num_steps = round(other.num_steps * operations(other) / operations(config))
    return config


def _choice_of(table_name, column, row, config):
    """What was chosen for a run of a cell, for a person, and the fingerprint of that search's teacher."""
    table = tables.TABLES[table_name]
    module, chosen_by = module_of(table, column), table.chosen_by.get(row, tables.USUAL)
    name = tuned_name(table, table.hyperparameters_of.get(row, row))
    setting_name = setting(config, chosen_by)
    record = read_tuned(module).get(setting_name, {}).get(SEARCHED, {}).get(name, {})
    text = f'the hyperparameters of {name} under {setting_name} in td_jax/configs/tuned/{module}.json'
    return text, record.get(PUBLIC_TEACHER, '')


def runs_of(table: tables.Table, column: str, row: str, choices: dict | None = None) -> list:
    """The configs of a cell's runs, one for each teacher; arguments as for `cell_config`."""
    config = cell_config(table, column, row, choices)
    if table.students:
        config.num_seeds = table.students
    return split_by_teacher(config, table.teachers)


def split_by_teacher(config, teachers: int) -> list:
    """Splits a config into one run for each teacher: student i has teacher i modulo `teachers`.

    A config that trains no teacher is returned as a single run.
    """
    is_pretrained = config.teacher.pretrained or config.teacher.checkpoint
    if teachers == 1 or not config_lib.has_teacher(config) or is_pretrained:
        return [config]
    runs = []
    for i in range(teachers):
        run = config.copy_and_resolve_references()
        run.teacher.seed, run.seed = config.teacher.seed + i, config.seed + i * config.seed_step
        run.seed_step = teachers * config.seed_step
        run.num_seeds = len(range(i, config.num_seeds, teachers))
        runs.append(run)
    return runs


def operations(config) -> int:
    """The operations of the matrix products in one training step of all seeds; the data are in memory."""
    return _operations(config_lib.to_json(config))


@functools.cache
def _operations(stored_config: str) -> int:
    config = config_lib.from_json(json.loads(stored_config))
    if config.teacher.pretrained:
        return _image_operations(config)
    source, teacher = assembly.load_source(config, config.dataset), None
    if config_lib.has_teacher(config):
        task = assembly.load_source(config, config.teacher.dataset)
        teacher = assembly.abstract_teacher(config, task)
    abstract = assembly.abstract(config, source, teacher, sharding.make_mesh(config))
    return flops.of(abstract.jitted.run, *abstract.arguments)


def _image_operations(config):
    """The operations of a step of a run on images, counted without its data and its checkpoint."""
    abstract = assembly.abstract_images(config, sharding.make_mesh(config))
    return flops.of(abstract.jitted.run, *abstract.arguments)


def _key_of_step(config):
    """A text that is the same for runs whose steps have the same operations."""
    without_effect = 'num_steps', 'seed', 'dataset.examples_per_class', 'optimizer.learning_rate'
    options = config_lib.flatten(config)
    return json.dumps({key: value for key, value in options.items() if key not in without_effect})


def run_name(config) -> str:
    """The name of a run: its data set, its method and the digest of its config."""
    return f'{config.dataset.name}/{config.method}-{config_lib.digest(config)}'


def run_folder(root: epath.Path, config) -> epath.Path:
    """The folder of a run."""
    return root / run_name(config)


def teacher_folder(root: epath.Path, config) -> epath.Path:
    """The folder of the teacher that a run shares with others."""
    return root / config.dataset.name / f'teacher-{config_lib.digest(_teacher_run(config))}'


def share_teacher(root: epath.Path, config) -> epath.Path:
    """Trains the teacher of a config unless it is finished, and returns its folder."""
    folder = teacher_folder(root, config)
    _train(_teacher_run(config), folder)
    return folder


def _train(config, folder):
    """Trains a run unless it is finished; InUse if another worker trains it."""
    if workdir.read_json(folder / workdir.RESULT) is None:
        workdir.refuse_in_use(folder)
    return train(config, folder, programs=PROGRAMS)


def _teacher_run(config):
    """The config of a shared teacher's run, which is validated only at its end."""
    run = config_lib.teacher_run(config)
    run.eval_every = run.num_steps
    return run


def own_teachers(root: epath.Path, configs) -> list:
    """One config for each shared teacher that some runs need."""
    needed = {teacher_folder(root, config): config for config in configs if shares_teacher(config)}
    return list(needed.values())


def shares_teacher(config) -> bool:
    """Whether the teacher of a run has to be trained and is shared; one from a checkpoint is not."""
    return config_lib.trains_teacher(config) and not config.teacher.checkpoint


def run_one(root: epath.Path, config) -> dict:
    """Runs a config unless it is finished, and returns its result."""
    folder = run_folder(root, config)
    config = config.copy_and_resolve_references()
    if shares_teacher(config):
        config.teacher.checkpoint = str(share_teacher(root, config))
    return _train(config, folder)


def has_result(root: epath.Path, config) -> bool:
    """Whether a run has a result."""
    return workdir.read_json(run_folder(root, config) / workdir.RESULT) is not None


def run_names(configs) -> list[str]:
    """The names of some runs."""
    return [run_name(config) for config in configs]


def read_cell(root: epath.Path, configs) -> dict | None:
    """Reads the result of a cell from its runs.

    Returns:
      None if a run is missing; else the keys of result.json, with `values` and `seeds` of all runs in
      the order of the seeds, and `teacher` the mean score of the teachers. In addition:
        teachers: the seed of each student's teacher
        errors: of its examples, by `errors.sum_by_unit`, or None
        runs: the names of the runs
        probe: the scores of the seeds' probes on the teacher, if there are any
        PUBLIC_TEACHER: the fingerprint of the public checkpoint that taught, if one did
        protocol: the version of the training protocol
        data: the digest of the training data, '' if unknown

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
    joined = {key: value for key, value in results[0].items() if key != finished.PROBE}
    if all(finished.PROBE in result for result in results):
        probes = [value for result in results for value in result[finished.PROBE]]
        joined[finished.PROBE] = [probes[i] for i in order]
    if public_teacher := _public_teacher_of(configs, folders):
        joined[PUBLIC_TEACHER] = public_teacher
    return {
        **joined,
        'seeds': seeds,
        'values': values,
        'mean': mean,
        'stderr': stderr,
        'teacher': sum(scores) / len(scores) if scores else None,
        'teachers': teachers,
        'errors': errors.read_runs(folders, order),
        'groups': errors.join_groups(results, order),
        'runs': run_names(configs),
        'protocol': configs[0].protocol,
        'data': _digest_of(configs, folders),
    }


def _public_teacher_of(configs, folders):
    """The fingerprint of the public checkpoint that taught a cell's runs, '' if none did."""
    known = same_teacher.check(
        (same_teacher.part_of(config), str(folder), same_teacher.fingerprint_of_run(config, folder))
        for config, folder in zip(configs, folders, strict=True)
    )
    return next((fingerprint for _, fingerprint in known.values()), '')


def _digest_of(configs, folders):
    """The digest of the training data of a cell's runs, '' if unknown."""
    digests = same_data.check(
        (same_data.part_of(config), str(folder), same_data.digest_of_run(folder))
        for config, folder in zip(configs, folders, strict=True)
    )
    return next((digest for _, digest in digests.values()), '')


def run_missing(root: epath.Path, configs, processes: int):
    """Runs the configs that are not finished, after the teachers that they need.

    Args:
      root: folder of all runs.
      configs: of the runs.
      processes: how many at once.

    Raises:
      UserError: raised by a run.
    """
    missing = {run_folder(root, config): config for config in configs if not has_result(root, config)}
    if missing:
        workdir.make_folder('workdir', root)
    train_teachers(root, missing.values(), processes)
    # The last rows of most tables are of TD, whose runs are the longest. They are started first, so that
    # the processes end at about the same time.
    configs = list(missing.values())[::-1]
    kinds = [describe_program(config) for config in configs]
    jobs.run_tasks(_run_task, _tasks(root, configs), processes, root, 'runs', kinds)


def share_of(root: epath.Path, configs, shard: jobs.Shard | None) -> list:
    """The runs of a shard: an equal part of those without a teacher, and an equal part of all others.

    The others are in the order of their teachers, so that a shard needs few of these. None has all runs.
    """
    if shard is None:
        return list(configs)
    configs = {run_folder(root, config): config for config in configs}.values()
    alone = [config for config in configs if not shares_teacher(config)]
    students = [config for config in configs if shares_teacher(config)]
    students.sort(key=lambda config: str(teacher_folder(root, config)))
    return [*shard.cut(alone), *shard.cut(students)]


def train_teachers(root: epath.Path, configs, processes: int):
    """Trains each teacher that some runs need once; two runs must not train it at the same time."""
    jobs.run_tasks(_teacher_task, _tasks(root, own_teachers(root, configs)), processes, root, 'teachers')


def _tasks(root, configs):
    return [(str(root), config_lib.to_json(config)) for config in configs]


def _teacher_task(task):
    root, text = task
    share_teacher(epath.Path(root), config_lib.from_json(json.loads(text)))


def _run_task(task):
    root, text = task
    run_one(epath.Path(root), config_lib.from_json(json.loads(text)))


def wanted_runs(names, genres, datasets, teacher=''):
    """{(table, column, row): the configs of its runs} for the cells that some tables need."""
    tables.check_names(names, genres, datasets)
    runs_of_cells = {
        cell: runs_of(tables.TABLES[cell[0]], *cell[1:])
        for cell in tables.wanted_cells(names, genres, datasets)
    }
    same_teacher.replace((config for configs in runs_of_cells.values() for config in configs), teacher)
    return runs_of_cells


def index_by_runs(stored_results: dict) -> dict:
    """Indexes cells by the names of their runs, {names: result}; tables may share cells.

    Args:
      stored_results: {table: {column: {row: result or None}}}, from a file of errors or by `make`.
    """
    results = [
        result for columns in stored_results.values() for rows in columns.values() for result in rows.values()
    ]
    return {tuple(result['runs']): result for result in results if result and 'runs' in result}


def results_of(
    root: epath.Path,
    cell_runs,
    stored_cells: dict,
    only_show: bool,
    processes: int,
    shard: jobs.Shard | None = None,
) -> list:
    """The results of some cells, in order; None for each that is missing, and for all with a shard.

    Args:
      root: folder of all runs.
      cell_runs: the configs of the runs of each cell.
      stored_cells: by `index_by_runs`; these cells need no runs in `root`.
      only_show: whether to run nothing.
      processes: how many runs at once.
      shard: the part of the runs to run; None for all of them.

    Raises:
      UserError: raised by a run, or cells were trained on different data or had different public teachers.
    """
    cell_runs = list(cell_runs)
    names = [tuple(run_names(configs)) for configs in cell_runs]
    if not only_show:
        needed = [configs for name, configs in zip(names, cell_runs, strict=True) if name not in stored_cells]
        needed = share_of(root, [config for configs in needed for config in configs], shard)
        _check_current_data(root, zip(names, cell_runs, strict=True), stored_cells, needed)
        _check_current_teacher(root, zip(names, cell_runs, strict=True), stored_cells, needed)
        run_missing(root, needed, processes)
    if shard:
        return [None] * len(cell_runs)
    results = [
        _prefer_runs(read_cell(root, configs), stored_cells.get(name))
        for name, configs in zip(names, cell_runs, strict=True)
    ]
    same_data.check(
        (same_data.part_of(configs[0]), name[0], cell.get('data', ''))
        for name, configs, cell in zip(names, cell_runs, results, strict=True)
        if cell
    )
    same_teacher.check(
        (same_teacher.part_of(configs[0]), name[0], cell.get(PUBLIC_TEACHER, ''))
        for name, configs, cell in zip(names, cell_runs, results, strict=True)
        if cell
    )
    return results


def _prefer_runs(cell, stored_cell):
    """A cell from its runs, with the sensitivity check of the stored one; without runs the stored one."""
    if cell and stored_cell and stored_cell.get('on_test'):
        return cell | {'on_test': stored_cell['on_test']}
    return cell or stored_cell


def _check_current_teacher(root, named_runs, stored_cells, needed):
    """Refuses to run missing cells with another public teacher than that of the finished ones."""
    missing = [config for config in needed if not has_result(root, config)]
    parts = {same_teacher.part_of(config) for config in missing} - {''}
    known = []
    for name, configs in named_runs if parts else ():
        part = same_teacher.part_of(configs[0])
        if part in parts:
            known.append((part, name[0], stored_cells.get(name, {}).get(PUBLIC_TEACHER, '')))
            known += [
                (part, run_name(config), same_teacher.fingerprint_of_run(config, run_folder(root, config)))
                for config in configs
            ]
    same_teacher.check_current(same_teacher.check(known), missing)


def _check_current_data(root, named_runs, stored_cells, needed):
    """Refuses to run missing cells on other data than those of the finished ones."""
    missing = [config for config in needed if not has_result(root, config)]
    parts, digests = {same_data.part_of(config) for config in missing}, {}
    for name, configs in named_runs:
        part = same_data.part_of(configs[0])
        if part in parts and part not in digests:
            folders = [run_folder(root, config) for config in configs if has_result(root, config)]
            digest = stored_cells.get(name, {}).get('data', '') or (
                same_data.digest_of_run(folders[0]) if folders else ''
            )
            digests |= same_data.check([(part, name[0], digest)])
    same_data.check_current(digests, missing)


def cells_of_other_runs(results: dict, stored_results: dict) -> list[tuple[str, str, str]]:
    """(table, column, row) of stored cells whose runs are not those of the tables: options have changed.

    Args:
      results: by `make`.
      stored_results: the ones passed to `make`.
    """
    return [
        (name, column, row)
        for name, columns in results.items()
        for column, rows in columns.items()
        for row, result in rows.items()
        if (stored_cell := stored_results.get(name, {}).get(column, {}).get(row))
        and (result is None or result['runs'] != stored_cell.get('runs'))
    ]


def make(
    names,
    genres,
    datasets,
    root: epath.Path,
    only_show: bool,
    processes: int = 1,
    stored_results: dict = types.MappingProxyType({}),
    shard: jobs.Shard | None = None,
    teacher: str = '',
) -> dict:
    """Runs the missing cells of some tables.

    Args:
      names: of the tables.
      genres, datasets: the columns to keep.
      root: folder of all runs.
      only_show: whether to run nothing.
      processes: how many runs at once.
      stored_results: from a file of errors, by errors.read. A cell of the same runs is taken from it if they
        are not in `root`; they may have been run on another machine.
      shard: the part of the runs to run, without results; None for all of them.
      teacher: the location of a public checkpoint, in place of that of the tables' configs.

    Returns:
      {table: {column: {row: result or None}}}, including the tables that derived ones are computed from

    Raises:
      UserError: an unknown table, genre or data set, or raised by a run.
    """
    runs_of_cells = wanted_runs(names, genres, datasets, teacher)
    stored_cells = index_by_runs(stored_results)
    if not only_show:
        same_teacher.check_choices(
            (*_choice_of(*cell, config), config)
            for cell, configs in runs_of_cells.items()
            if tuple(run_names(configs)) not in stored_cells
            for config in configs
            if same_teacher.has_public_teacher(config) and not has_result(root, config)
        )
    results_of_cells = results_of(root, runs_of_cells.values(), stored_cells, only_show, processes, shard)
    results = {}
    for (name, column, row), result in zip(runs_of_cells, results_of_cells, strict=True):
        results.setdefault(name, {}).setdefault(column, {})[row] = result
        if result and row in tables.TABLES[name].chosen_by:
            # The row may share its runs with the usual row, whose trials are of another search.
            results[name][column][row] = {key: result[key] for key in result if key != 'on_test'}
    return results


class PlannedRun(NamedTuple):
    """The cost of a run."""

    cell: tuple[str, str, str]  # the first table, column and row that need it
    has_result: bool
    step_operations: float  # in one step, of all seeds together
    steps: int
    seeds: int

    def operations(self) -> float:
        """The operations of the whole run."""
        return self.step_operations * self.steps


def plan(
    names, genres, datasets, root: epath.Path, stored_results: dict = types.MappingProxyType({})
) -> list[PlannedRun]:
    """The runs that `make` needs for the same arguments, each once, with their cost; runs nothing.

    Raises:
      UserError: an unknown name, a table with runs on other data than known images, or no device.
    """
    platform.start()
    planned, counts, stored_cells = {}, {}, index_by_runs(stored_results)
    for cell, configs in wanted_runs(names, genres, datasets).items():
        is_stored = tuple(run_names(configs)) in stored_cells
        for config in configs:
            folder = run_folder(root, config)
            if folder in planned:
                continue
            if config.dataset.name not in images.KNOWN_SIZES:
                raise UserError(
                    f'--dry_run counts runs on {", ".join(images.KNOWN_SIZES)}; table {cell[0]} has runs on '
                    f'{config.dataset.name}. Leave it out of --tables, or --dry_run out.'
                )
            config_lib.check(config)
            key = _key_of_step(config)
            if key not in counts:
                counts[key] = _image_operations(config)
            is_finished = is_stored or has_result(root, config)
            planned[folder] = PlannedRun(cell, is_finished, counts[key], config.num_steps, config.num_seeds)
    return list(planned.values())
