"""A sensitivity check, not a result: the scores with hyperparameters selected on the test set.

Every trial of a search that was trained to the end is run like the cell of a table. Each cell then has the
trial with the best mean on the test split.
"""

from etils import epath

from td_jax.errors import UserError
from td_jax.reproduction import cells, same_teacher, tables, tuning
from td_jax.training import evaluation


def candidates(names, genres, datasets, teacher: str = '') -> dict:
    """{(table, column, row): the configs of the runs of each trial}, for cells that a search decides.

    Args:
      names: of the tables.
      genres, datasets: the columns to keep.
      teacher: as for `cells.make`.

    Raises:
      UserError: an unknown name, or a choice without a record of its trials.
    """
    tables.check_names(names, genres, datasets)
    runs = {}
    for name, column, row in tables.wanted_cells(names, genres, datasets):
        table = tables.TABLES[name]
        # Ablations, controls and rows of other searches are left out.
        special_rows = (table.copied, table.compute_matched_to, table.hyperparameters_of, table.chosen_by)
        if set(table.rows[row]) != {'method'} or any(row in rows for rows in special_rows):
            continue
        module, tuned_for = cells.module_of(table, column), cells.tuned_name(table, row)
        setting = cells.setting(cells.cell_config(table, column, row))
        choices = cells.read_tuned(module).get(setting, {})
        record = choices.get(cells.SEARCHED, {}).get(tuned_for)
        if record is None:
            raise UserError(
                f'td_jax/configs/tuned/{module}.json does not say from which trials {tuned_for} under '
                f'{setting} was chosen; td_jax.tune with --methods={tuned_for} writes them.'
            )
        others = {key: values for key, values in choices.items() if key != cells.SEARCHED}
        runs[name, column, row] = [
            cells.runs_of(table, column, row, {setting: {**others, tuned_for: trial['values']}})
            for trial in record['completed']
        ]
    same_teacher.replace(
        (config for trials in runs.values() for configs in trials for config in configs), teacher
    )
    return runs


def add(results: dict, trials: dict, root: epath.Path, only_show: bool, processes: int, shard=None):
    """Adds `on_test` to cells: 'values', 'seeds' and 'mean' of the best trial, and the number of 'trials'.

    A cell that has it already for the same runs keeps it; a trial whose runs are those of a cell is not run
    again.

    Args:
      results: {table: {column: {row: result or None}}}, by cells.make; is changed.
      trials: by `candidates`.
      root: folder of all runs.
      only_show: whether to run nothing; a cell with a missing trial then gets no `on_test`.
      processes: how many runs at once.
      shard: the part of the runs to run, without results; None for all of them.

    Raises:
      UserError: raised by a run.
    """
    run_names = {cell: [cells.run_names(configs) for configs in of_cell] for cell, of_cell in trials.items()}
    trials = {
        (name, column, row): of_cell
        for (name, column, row), of_cell in trials.items()
        if ((results[name][column][row] or {}).get('on_test') or {}).get('runs')
        != run_names[name, column, row]
    }
    # The chosen trial is a cell of the table, whose runs may be on another machine.
    stored_cells = cells.index_by_runs(results)
    trial_runs = [configs for of_cell in trials.values() for configs in of_cell]
    results_of_trials = iter(cells.results_of(root, trial_runs, stored_cells, only_show, processes, shard))
    for (name, column, row), of_cell in trials.items():
        trial_results = [next(results_of_trials) for _ in of_cell]
        cell = results[name][column][row]
        if cell is None or not trial_results or None in trial_results:
            continue
        means = {number: result['mean'] for number, result in enumerate(trial_results)}
        number, _ = tuning.best(means, evaluation.LESS_IS_BETTER[cell['metric']])
        cell['on_test'] = {key: trial_results[number][key] for key in ('values', 'seeds', 'mean')}
        cell['on_test'] |= {'trials': len(trial_results), 'runs': run_names[name, column, row]}
