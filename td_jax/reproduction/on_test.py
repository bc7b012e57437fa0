"""A sensitivity check, not a result: what hyperparameters selected on the test set would give.

It is not a result, since the test split is then no test. Every trial of a search that was trained to its end
is run as the cell of a table is, and of each cell the one with the best mean on the test split is taken.
"""

from etils import epath

from td_jax.errors import UserError
from td_jax.reproduction import cells, tables, tuning
from td_jax.training import evaluation


def candidates(names, genres, datasets) -> dict:
    """{(table, column, row): the configs of the runs of each trial}, for cells of a search's choice alone.

    Args:
      names: of the tables.
      genres, datasets: the columns to keep.

    Raises:
      UserError: an unknown name, or a choice that does not say which trials it was made of.
    """
    tables.check_names(names, genres, datasets)
    found = {}
    for name, column, row in tables.wanted_cells(names, genres, datasets):
        table = tables.TABLES[name]
        # Not a row from which something is taken away, nor a control, nor one of another search.
        of_others = (table.copied, table.as_many_operations_as, table.knobs_of, table.chosen_by)
        if set(table.rows[row]) != {'method'} or any(row in rows for rows in of_others):
            continue
        module, tuned_for = cells.module_of(table, column), cells.tuned_name(table, row)
        setting = cells.setting(cells.cell_config(table, column, row))
        chosen = cells.tuned(module).get(setting, {})
        record = chosen.get(cells.SEARCHED, {}).get(tuned_for)
        if record is None:
            raise UserError(
                f'td_jax/configs/tuned/{module}.json does not say from which trials {tuned_for} under '
                f'{setting} was chosen; td_jax.tune with --methods={tuned_for} writes them.'
            )
        others = {key: values for key, values in chosen.items() if key != cells.SEARCHED}
        found[name, column, row] = [
            cells.runs_of(table, column, row, {setting: {**others, tuned_for: trial['values']}})
            for trial in record['completed']
        ]
    return found


def add(results: dict, trials: dict, root: epath.Path, only_show: bool, processes: int):
    """Adds `on_test` to cells: {'values', 'seeds', 'mean'} of the best trial, and of how many, 'trials'.

    A cell that has it already, of the same runs, keeps it, and a trial whose runs are those of a cell is not
    run again.

    Args:
      results: {table: {column: {row: result or None}}}, as cells.make gives them; is changed.
      trials: as `candidates` gives them.
      root: folder of all runs.
      only_show: whether to run nothing; a cell of which a trial is missing then has none.
      processes: how many runs at once.

    Raises:
      UserError: what a run raises.
    """
    made_of = {cell: [cells.names_of(configs) for configs in of_cell] for cell, of_cell in trials.items()}
    trials = {
        (name, column, row): of_cell
        for (name, column, row), of_cell in trials.items()
        if ((results[name][column][row] or {}).get('on_test') or {}).get('runs') != made_of[name, column, row]
    }
    # The trial that was chosen is a cell of the table, whose runs may be those of another machine.
    there = cells.by_runs(results)
    wanted = [configs for of_cell in trials.values() for configs in of_cell]
    every = iter(cells.results_of(root, wanted, there, only_show, processes))
    for (name, column, row), of_cell in trials.items():
        found = [next(every) for _ in of_cell]
        cell = results[name][column][row]
        if cell is None or not found or None in found:
            continue
        means = {number: result['mean'] for number, result in enumerate(found)}
        number, _ = tuning.best(means, evaluation.LESS_IS_BETTER[cell['metric']])
        cell['on_test'] = {key: found[number][key] for key in ('values', 'seeds', 'mean')}
        cell['on_test'] |= {'trials': len(found), 'runs': made_of[name, column, row]}
