"""What knobs that are chosen on the test split would give: how much of a method's gain that alone can make.

It is no result, since the test split is then no test. Every trial of a search that reached its last rung is
run as the cell of a table is, and of each cell the one with the best mean on the test split is taken. Methods
whose searches differ in the number of such trials differ in how much they can gain by it.
"""

from etils import epath

from td_jax.reproduction import cells, tables, tuning
from td_jax.training import evaluation


def candidates(names, genres, datasets, journals: epath.Path) -> dict:
    """{(table, column, row): the configs of the runs of each trial} of the cells with tuned knobs alone.

    Args:
      names: of the tables.
      genres, datasets: the columns to keep.
      journals: folder of the journals of td_jax.tune.

    Raises:
      UserError: an unknown name, or a journal that is not there or damaged.
    """
    tables.check_names(names, genres, datasets)
    trials, found = {}, {}
    for name, column, row in tables.wanted_cells(names, genres, datasets):
        table = tables.TABLES[name]
        # Not a row from which something is taken away, nor a control, nor one of another search.
        of_others = (table.copied, table.as_many_operations_as, table.knobs_of, table.chosen_on)
        if set(table.rows[row]) != {'method'} or any(row in rows for rows in of_others):
            continue
        tuned_for, setting = (
            cells.tuned_name(table, row),
            cells.setting(cells.cell_config(table, column, row)),
        )
        path = journals / f'{setting}-{tuned_for}.journal'
        if path not in trials:
            trials[path] = tuning.trials_in(path)
        chosen = cells.tuned(cells.module_of(table, column)).get(setting, {})
        found[name, column, row] = [
            cells.runs_of(table, column, row, {setting: {**chosen, tuned_for: knobs}})
            for knobs in trials[path]
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
