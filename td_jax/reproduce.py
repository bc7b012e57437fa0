"""Reproduces the paper's tables: runs the missing cells, and shows the paper's numbers next to ours.

    python -m td_jax.reproduce --tables=3 --genres=Drama,War --workdir=runs/tables

Every cell is a run in a folder of its own, so that the same command resumes after an interruption.

    python -m td_jax.reproduce --tables=3 --workdir=runs/tables --errors=errors.npz
    python -m td_jax.reproduce --tables=3 --from_errors=errors.npz

The first also stores the errors that the intervals of the table are computed from, and the second computes
the intervals again. Cells that the file has are not run again, so that another machine can resume. With
--figures=FOLDER either command draws a figure of each table, and with --forest=FILE.svg one forest plot of
all. With --baseline=ROW all rows are compared with that one. With --on_test the first adds a sensitivity
check: the scores with hyperparameters selected on the test set.

With --shard=I/N several machines share a workdir, and --only_show shows what all of them have done.
"""

import hashlib
import itertools
import sys

from absl import flags

from td_jax import command_line
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import cells, comparison, errors, figures, forest, jobs, on_test, render, tables
from td_jax.training import teacher_outputs

_SHOWN = 'figures', 'forest', 'baseline'
# Flags -> the flags that have no effect with them.
WITHOUT_EFFECT = {
    'from_errors': ('on_test', 'errors', 'teacher_outputs', 'teacher', 'dry_run', 'only_show', 'workdir'),
    'only_show': ('teacher_outputs', 'teacher'),
    'dry_run': ('on_test', 'teacher_outputs', 'teacher', 'only_show', *_SHOWN),
    'shard': ('only_show', 'from_errors', 'dry_run', *_SHOWN),
}
# The most letters of the names of tables in the name of a file, which has at most 255 bytes.
LONGEST = 200


def _read_cells(target):
    """Reads the cells of a file of errors, none if it does not exist yet."""
    if not target:
        return {}
    workdir.check_target('--errors', target)
    return errors.read(target) if workdir.is_there(target) else {}


def _write_cells(target, stored_results, results):
    """Writes results to the file of `stored_results`, if any, and reports cells that are removed from it."""
    if not target:
        return
    if unused_cells := cells.cells_of_other_runs(results, stored_results):
        table, column, row = unused_cells[0]
        print(
            f'td_jax: {target} had {len(unused_cells)} of these cells, such as table {table}, {column}, '
            f'{row}, from runs with other options than those of today; they are not used, and are removed '
            'from it.',
            file=sys.stderr,
        )
    errors.write(target, errors.merge(stored_results, results))


def _check_flags(names):
    """Refuses flags without effect."""
    command_line.refuse_without_effect(WITHOUT_EFFECT)
    for flag in tables.flags_without_columns(names):
        if flags.FLAGS[flag].present:
            raise UserError(f'--{flag} has no effect on --tables={",".join(names)}; leave it out.')
    if flags.FLAGS['device_tflops'].present and not flags.FLAGS['dry_run'].value:
        raise UserError('--device_tflops is for --dry_run; leave it out, or add --dry_run.')


def _file_name(names):
    """The name of the file of some tables; where a file system could not hold it, cut, with a digest."""
    joined = '_'.join(names)
    if len(joined) > LONGEST:
        joined = f'{joined[:LONGEST]}_{hashlib.sha256(joined.encode()).hexdigest()[:10]}'
    return f'tables_{joined}.md'


def _check_figures(names, folder, plot, baseline):
    """Refuses a folder of figures, or a file of a forest plot, that cannot be written; either may be None."""
    if folder:
        figures.check(names, folder, baseline)
    if plot:
        forest.check(names, plot)


def _draw(names, results, folder, plot, baseline):
    """Draws figures and a forest plot after `_check_figures`."""
    if folder:
        figures.draw_all(names, results, folder, baseline)
    if plot:
        forest.draw(names, results, plot, baseline)


def _prepare(count, root, outputs, names, columns):
    """Applies the flags --teacher_outputs and --jobs; returns the number of runs at once."""
    teacher_outputs.use(*(flag.value for flag in outputs))
    configs = itertools.chain(*cells.wanted_runs(names, *columns).values()) if outputs[0].value else ()
    if line := teacher_outputs.describe_unused(configs):
        command_line.print_message(line)
    return jobs.prepare(count, root)


def main():
    names = flags.DEFINE_list('tables', None, f'Tables to make: {", ".join(tables.TABLES)}.')
    genres = flags.DEFINE_list('genres', ','.join(tables.GENRES), 'MovieLens: only these genres.')
    datasets = flags.DEFINE_list('datasets', ','.join(tables.IMAGES), 'Images: only these columns.')
    runs = command_line.define_runs()
    dry_run = flags.DEFINE_bool(
        'dry_run', False, 'Run nothing; print the runs of the image tables, their operations and their time.'
    )
    errors_file = flags.DEFINE_string(
        'errors',
        None,
        'A file of cells and what their intervals are computed from; cells that it has are not run again.',
    )
    figures_folder = flags.DEFINE_string('figures', None, 'A folder that gets a figure of each table.')
    forest_file = flags.DEFINE_string(
        'forest', None, 'An SVG that gets one forest plot of all tables, a panel for each setting.'
    )
    baseline = flags.DEFINE_string(
        'baseline', None, "The row that the others are compared with, in place of a table's own."
    )
    errors_files = flags.DEFINE_list('from_errors', None, 'Show tables from such files alone, without runs.')
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
    outputs, teacher = command_line.define_teacher_outputs(), command_line.define_teacher()

    def command():
        columns = genres.value, datasets.value
        tables.check_names(names.value, *columns)
        comparison.check_baseline(names.value, baseline.value)
        _check_flags(names.value)
        pictures = [flag.value and workdir.resolve(flag.value) for flag in (figures_folder, forest_file)]
        _check_figures(names.value, *pictures, baseline.value)
        if errors_files.value:
            results = errors.read_tables(map(workdir.resolve, errors_files.value), names.value, *columns)
        else:
            results = run_cells(columns)
        if results is None:
            return
        print(render.make(names.value, results, *columns, baseline.value))
        _draw(names.value, results, *pictures, baseline.value)

    def run_cells(columns):
        """Runs the cells and writes their results; returns them, or None for --dry_run and --shard."""
        if not runs.folder.value:
            raise UserError('--workdir is missing.')
        root, only_show = workdir.resolve(runs.folder.value), runs.only_show.value
        target = errors_file.value and workdir.resolve(errors_file.value)
        shard = jobs.read_shard(runs.shard.value)
        stored_results, trials = _read_cells(target), {}
        if with_test.value:
            trials = on_test.candidates(names.value, *columns, teacher.value or '')
        if dry_run.value:
            print(render.render_plan(cells.plan(names.value, *columns, root, stored_results), tflops.value))
            return None
        processes = 1 if only_show else _prepare(runs.count.value, root, outputs, names.value, columns)
        results = cells.make(
            names.value, *columns, root, only_show, processes, stored_results, shard, teacher.value or ''
        )
        on_test.add(results, trials, root, only_show, processes, shard)
        if shard:
            print(
                f'td_jax: the part of --shard={runs.shard.value} is done; --only_show shows the tables.',
                file=sys.stderr,
            )
            return None
        if not only_show:
            text = render.make(names.value, results, *columns)
            # The folder is missing if a file of errors has all cells.
            workdir.make_folder('workdir', root)
            workdir.write(root / _file_name(names.value), text)
        _write_cells(target, stored_results, results)
        return results

    command_line.run(command, required=('tables', 'genres', 'datasets'))


if __name__ == '__main__':
    main()
