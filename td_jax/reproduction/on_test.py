"""What knobs that are chosen on the test split would give: how much of a method's gain that alone can make.

It is no result, since the test split is then no test. Every trial of a search that reached its last rung is
run as the cell of a table is, and of each cell the one with the best mean on the test split is taken. Methods
whose searches differ in the number of such trials differ in how much they can gain by it.
"""

from etils import epath

from td_jax.reproduction import cells, tables, tuning
from td_jax.training import evaluation

LESS_IS_BETTER = {metric: less for metric, _, _, less in evaluation.METRICS.values()}


def check(names, genres, datasets, journals: epath.Path):
    """Refuses journals that are not there or are damaged.

    Raises:
      UserError: what `tuning.trials_in` raises, or an unknown table, genre or data set.
    """
    _candidates(names, genres, datasets, journals)


def add(
    results: dict,
    names,
    genres,
    datasets,
    root: epath.Path,
    journals: epath.Path,
    only_show: bool,
    processes: int,
):
    """Adds `on_test` to the results of the cells whose knobs are tuned and nothing else.

    Args:
      results: {table: {column: {row: result or None}}}, as cells.make gives them; is changed. `on_test` is
        {'values', 'seeds', 'mean', 'trials'}: of the best trial its students' metric, and of how many.
      names: of the tables.
      genres, datasets: the columns to keep.
      root: folder of all runs.
      journals: folder of the journals of td_jax.tune.
      only_show: whether to run nothing.
      processes: how many runs at once.

    Raises:
      UserError: a journal that is not there or damaged, or what a run raises.
    """
    candidates = _candidates(names, genres, datasets, journals)
    if not only_show:
        runs = [config for trials in candidates.values() for configs in trials for config in configs]
        cells.run_missing(root, runs, processes)
    for (name, column, row), trials in candidates.items():
        found = [cells.stored(root, configs) for configs in trials]
        cell = results[name][column][row]
        if cell is None or not found or None in found:
            continue
        sign = 1 if LESS_IS_BETTER[cell['metric']] else -1
        chosen = min(found, key=lambda result: sign * result['mean'])
        cell['on_test'] = {key: chosen[key] for key in ('values', 'seeds', 'mean')} | {'trials': len(found)}


def _candidates(names, genres, datasets, journals):
    """{(table, column, row): the configs of the runs of each trial} of the cells that a search was for."""
    tables.check_names(names, genres, datasets)
    found = {}
    for name, column, row in tables.wanted_cells(names, genres, datasets):
        table = tables.TABLES[name]
        if not _is_tuned_alone(table, row):
            continue
        tuned_for, setting = (
            cells.tuned_name(table, row),
            cells.setting(cells.cell_config(table, column, row)),
        )
        teacher = _chosen_teacher(table, column, setting)
        found[name, column, row] = [
            cells.runs_of(table, column, row, {setting: {**teacher, tuned_for: knobs}})
            for knobs in tuning.trials_in(journals / f'{setting}-{tuned_for}.journal')
        ]
    return found


def _is_tuned_alone(table, row):
    """Whether a row is a method or a variant with its knobs, and not one of which something is taken away."""
    return set(table.rows[row]) == {'method'} and not (
        row in table.copied or row in table.as_many_operations_as
    )


def _chosen_teacher(table, column, setting):
    module = table.config if isinstance(table.config, str) else table.config[column]
    chosen = cells.tuned(module).get(setting, {})
    return {key: chosen[key] for key in (tuning.TEACHER,) if key in chosen}
