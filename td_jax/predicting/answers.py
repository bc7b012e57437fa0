"""What a finished run's student says of a table of ids or of images, and what it would offer a user."""

import csv
import io
import itertools

import jax
import numpy as np
from etils import epath

from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.predicting import program, reading
from td_jax.training import finished as finished_runs
from td_jax.training import train_step

# Examples at once.
ROWS, IMAGES = 1024, 32
# Unknown ids that are named in the summary.
NAMED = 3
USER = 'user'


def predict(folder: epath.Path, given: epath.Path, output: epath.Path, seed_index: int = 0) -> str:
    """Predicts what is in a file or a folder, and writes it as a CSV.

    Of ids it has their columns, the prediction, and `unknown`, the columns whose id the student never saw in
    training: it predicts those as any unknown one. Of images it has the file, its likeliest class with its
    probability, and each class's probability.

    Args:
      folder: workdir of a finished run.
      given: a CSV or TSV of ids; an image, or a folder of images.
      output: the CSV, which must not be there yet.
      seed_index: which of the run's seeds, counted from 0.

    Returns:
      A few lines for a person.

    Raises:
      UserError: no finished run, or a file that cannot be read or written.
    """
    _check_output(output)
    run = finished_runs.load(folder, seed_index)
    if run.source.ids:
        header, rows, said = _of_table(run, given)
    elif run.source.picture:
        header, rows, said = _of_images(run, given)
    else:
        raise UserError(
            f'the data set of {folder}, {run.source.name}, says nothing of ids or images to predict.'
        )
    _write(output, header, rows)
    return '\n'.join([str(output), *said])


def top(
    folder: epath.Path, user: str, count: int, output: epath.Path | None = None, seed_index: int = 0
) -> str:
    """What a recommender predicts a user to like best.

    Chosen from is what training shows, without what the user has rated there.

    Args:
      folder: workdir of a finished run.
      user: the id.
      count: how many, at most.
      output: a CSV that gets them, too, and must not be there yet; or None.
      seed_index: which of the run's seeds, counted from 0.

    Returns:
      A table for a person.

    Raises:
      UserError: no finished run, one that is of no users, or a file that cannot be written.
    """
    if output:
        _check_output(output)
    run = finished_runs.load(folder, seed_index)
    source = run.source
    if USER not in source.ids or len(source.ids) != 2:
        raise UserError(f'--user is for a recommender, and {folder} is of {source.name}; use --input.')
    users = source.ids[USER]
    ((field, items),) = ((name, ids) for name, ids in source.ids.items() if name != USER)
    (number,) = program.numbers_of(users, [user])
    # A caller's own data set may leave them to its examples.
    pairs = source.pairs or source.train
    rated = pairs[field][pairs[USER] == number]
    offered = np.setdiff1d(np.flatnonzero(items.is_known), rated).astype(np.int32)
    ratings = _ratings(run, {users.column: np.full(len(offered), number, np.int32), items.column: offered})
    # Of equal ratings the first comes first.
    best = np.argsort(-ratings, kind='stable')[:count]
    (label,) = source.label_names
    header = [users.column, items.column, label]
    rows = [[user, items.raw[offered[i]], f'{ratings[i]:.6f}'] for i in best]
    said = []
    if not rows:
        said.append(
            f'{users.column} {user:.60} has rated all {len(np.unique(rated))} that training shows: there is '
            'nothing left to recommend.'
        )
    if number == program.UNKNOWN or not users.is_known[number]:
        said.append(
            f'{users.column} {user:.60} is unknown to the student: these are for anybody it does not know.'
        )
    if output:
        _write(output, header, rows)
        said.append(str(output))
    return '\n'.join([_aligned([header[1:], *(row[1:] for row in rows)]), *said])


def _of_table(run, path):
    """(header, rows, what to say) of a table of ids."""
    source = run.source
    table = reading.table(path, [ids.column for ids in source.ids.values()])
    numbers, unknown = {}, [[] for _ in table.lines]
    for ids in source.ids.values():
        numbers[ids.column] = found = program.numbers_of(ids, table.columns[ids.column])
        is_known = np.append(ids.is_known, False)[found]  # UNKNOWN is the last
        for row in np.flatnonzero(~is_known):
            unknown[row].append(ids.column)
    ratings = _ratings(run, numbers)
    header = [*table.columns, *source.label_names, 'unknown']
    columns = [*table.columns.values(), [f'{x:.6f}' for x in ratings], [' '.join(names) for names in unknown]]
    said = [f'{len(table.lines)} rows, {sum(map(bool, unknown))} with an id that the student does not know']
    named = [
        f'{name} {table.columns[name][row]:.60} (line {table.lines[row]})'
        for row, names in enumerate(unknown)
        for name in names
    ]
    if named:
        more = f' and {len(named) - NAMED} more' if len(named) > NAMED else ''
        said[0] += f': {", ".join(named[:NAMED])}{more}'
    if table.others:
        said.append(f'columns that are not read: {", ".join(table.others)}')
    said += table.notes
    return header, zip(*columns, strict=True), said


def _ratings(run, numbers):
    """[rows] of numbers {column: [rows]}."""
    student = _program(run)
    (label,) = student.outputs
    compute = jax.jit(student.run)
    count = len(next(iter(numbers.values())))
    found = [np.zeros(0, np.float32)]
    for rows in reading.in_batches(count, ROWS):
        inputs = {name: _filled(array[rows], min(count, ROWS)) for name, array in numbers.items()}
        found.append(np.asarray(compute(inputs)[label])[: rows.stop - rows.start])
    return np.concatenate(found)


def _of_images(run, path):
    """(header, rows, what to say) of an image or a folder of images."""
    student = _program(run)
    files, left_out = reading.find_images(path)
    compute, paths, found = jax.jit(student.of_pixels), list(files.values()), []
    for rows in reading.in_batches(len(paths), IMAGES):
        pixels = _filled(reading.pixels(paths[rows], student.picture), min(len(paths), IMAGES))
        found.append(np.asarray(compute(pixels)['probabilities'])[: rows.stop - rows.start])
    found = np.concatenate(found)
    header = ['file', 'class', 'probability', *(f'p({label})' for label in student.labels)]
    rows = (
        [name, student.labels[np.argmax(of_one)], f'{of_one.max():.6f}', *(f'{x:.6f}' for x in of_one)]
        for name, of_one in zip(files, found, strict=True)
    )
    said = [f'{len(files)} image{"s" if len(files) > 1 else ""}']
    return header, rows, said + [f'not read: {left_out}'] * bool(left_out)


def _program(run):
    return program.of_student(run.student, run.params[train_step.STUDENT], run.source)


def _filled(array, size):
    """The array with copies of its first row behind it, so that all batches are compiled once."""
    return np.concatenate([array, np.repeat(array[:1], size - len(array), axis=0)])


def _check_output(output):
    workdir.check_target('--output', output)
    if output.exists():
        raise UserError(f'{output} is there already; delete it or choose another --output.')


def _write(path, header, rows):
    text = io.StringIO(newline='')
    csv.writer(text, lineterminator='\n').writerows(itertools.chain([header], rows))
    workdir.write(path, text.getvalue())


def _aligned(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
