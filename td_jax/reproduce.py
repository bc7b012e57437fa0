"""The paper's tables: runs what is missing, and shows the paper's numbers next to ours.

    python -m td_jax.reproduce --tables=3 --genres=Drama,War --workdir=runs/tables

Every cell is a run in a folder of its own, so this may be interrupted and called again.

    python -m td_jax.reproduce --tables=3 --workdir=runs/tables --errors=errors.npz
    python -m td_jax.reproduce --tables=3 --from_errors=errors.npz

The first also keeps what every interval of the table is computed from, the second computes them again. Cells
that the file has already are not run again: it resumes what another machine has done. With
--figures=FOLDER either draws a figure of each table, and with --forest=FILE.svg one forest plot of all. With
--baseline=ROW all rows are compared with that one. With --on_test the first adds a sensitivity
check: what selecting hyperparameters on the test set would give.
"""

import sys

from absl import flags

from td_jax import command_line
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import cells, comparison, errors, figures, forest, jobs, on_test, render, tables


def _check_effects(flag, is_given, others):
    """Refuses flags, {name: value}, that have no effect with another one."""
    for other, value in others.items():
        if is_given and value:
            raise UserError(f'--{other} has no effect with --{flag}; leave one of them out.')


def _cells_in(target):
    """The cells that a file of errors has, none where it is not there yet."""
    if not target:
        return {}
    workdir.check_target('--errors', target)
    return errors.read(target) if target.exists() else {}


def _keep(target, there, results):
    """Writes results to the file that has had `there`, if one is named, and says what is taken out of it."""
    if not target:
        return
    if others := cells.cells_of_other_runs(results, there):
        table, column, row = others[0]
        print(
            f'td_jax: {target} had {len(others)} of these cells, such as table {table}, {column}, {row}, '
            'from runs with other options than those of today; they are not used, and are removed from it.',
            file=sys.stderr,
        )
    errors.write(target, errors.merge(there, results))


def _check_pictures(names, folder, plot, baseline):
    """Refuses a folder of figures, or the file of a forest plot, that cannot be made; either may be None."""
    if folder:
        figures.check(names, folder, baseline)
    if plot:
        forest.check(names, plot)


def _draw(names, results, folder, plot, baseline):
    """Draws what `_check_pictures` has checked."""
    if folder:
        figures.draw_all(names, results, folder, baseline)
    if plot:
        forest.draw(names, results, plot, baseline)


def main():
    names = flags.DEFINE_list('tables', None, f'Tables to make: {", ".join(tables.TABLES)}.')
    genres = flags.DEFINE_list('genres', ','.join(tables.GENRES), 'MovieLens: only these genres.')
    datasets = flags.DEFINE_list('datasets', ','.join(tables.IMAGES), 'Images: only these columns.')
    folder = flags.DEFINE_string('workdir', None, 'Folder of all runs; the same command resumes.')
    only_show = flags.DEFINE_bool('only_show', False, 'Run nothing; mark missing cells.')
    dry_run = flags.DEFINE_bool(
        'dry_run', False, 'Run nothing; print the runs of the image tables, their operations and their time.'
    )
    count = flags.DEFINE_integer(
        'jobs', 1, 'Runs at a time, each on its share of the cores; 0: one on each core.', lower_bound=0
    )
    kept = flags.DEFINE_string(
        'errors',
        None,
        'A file of cells and what their intervals are computed from; cells that it has are not run again.',
    )
    drawn = flags.DEFINE_string('figures', None, 'A folder that gets a figure of each table.')
    plotted = flags.DEFINE_string(
        'forest', None, 'An SVG that gets one forest plot of all tables, a panel for each setting.'
    )
    beside = flags.DEFINE_string(
        'baseline', None, "The row that the others are compared with, in place of a table's own."
    )
    read = flags.DEFINE_list('from_errors', None, 'Show tables from such files alone, without runs.')
    with_test = flags.DEFINE_bool(
        'on_test',
        False,
        'Sensitivity check: also run all completed trials of td_jax.tune on the test set.',
    )
    tflops = flags.DEFINE_float(
        'device_tflops',
        100.0,
        'For --dry_run: 1e12 operations per second that are reached on average.',
        lower_bound=1e-6,
    )

    def command():
        columns = genres.value, datasets.value
        tables.check_names(names.value, *columns)
        comparison.check_baseline(names.value, beside.value)
        _check_effects('from_errors', read.value, {'on_test': with_test.value, 'errors': kept.value})
        _check_effects(
            'dry_run',
            dry_run.value,
            {
                'on_test': with_test.value,
                'figures': drawn.value,
                'forest': plotted.value,
                'baseline': beside.value,
            },
        )
        pictures = [flag.value and workdir.resolve(flag.value) for flag in (drawn, plotted)]
        _check_pictures(names.value, *pictures, beside.value)
        if read.value:
            results = errors.read_tables(map(workdir.resolve, read.value), names.value, *columns)
        else:
            results = made(columns)
        if results is None:
            return
        print(render.make(names.value, results, *columns, beside.value))
        _draw(names.value, results, *pictures, beside.value)

    def made(columns):
        """The results of runs, also written to their folder; None where only a plan was asked for."""
        if not folder.value:
            raise UserError('--workdir is missing.')
        root, target = workdir.resolve(folder.value), kept.value and workdir.resolve(kept.value)
        there, trials = _cells_in(target), {}
        if with_test.value:
            trials = on_test.candidates(names.value, *columns)
        if dry_run.value:
            print(render.render_plan(cells.plan(names.value, *columns, root, there), tflops.value))
            return None
        processes = 1 if only_show.value else jobs.prepare(count.value, root)
        results = cells.make(names.value, *columns, root, only_show.value, processes, there)
        on_test.add(results, trials, root, only_show.value, processes)
        if not only_show.value:
            text = render.make(names.value, results, *columns)
            # Nothing may have been run, where a file of errors has all.
            workdir.make_folder('workdir', root)
            workdir.write(root / f'tables_{"_".join(names.value)}.md', text)
        _keep(target, there, results)
        return results

    command_line.run(command, required=('tables', 'genres', 'datasets'))


if __name__ == '__main__':
    main()
