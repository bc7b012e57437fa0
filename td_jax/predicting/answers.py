"""Predicts tables of ids and images with the student of a finished run, and recommends items to a user."""

import csv
import io
import itertools

import jax
import numpy as np
from etils import epath

from td_jax import text_tables
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.predicting import program, reading
from td_jax.training import finished as finished_runs
from td_jax.training import train_step

# Examples per batch.
ROWS, IMAGES = 1024, 32
# The most unknown ids that the summary names.
NAMED = 3
USER = 'user'


def predict(folder: epath.Path, input_path: epath.Path, output: epath.Path, seed_index: int = 0) -> str:
    """Predicts the ids or images in a file or a folder, and writes a CSV.

    For ids, it has their columns, the prediction, and `unknown`: the columns whose id was not in the training
    data and is predicted like any unknown one. For images, it has the file, the most probable class with its
    probability, and the probability of each class.

    Args:
      folder: workdir of a finished run.
      input_path: a CSV or TSV of ids; an image, or a folder of images.
      output: the CSV, which must not exist yet.
      seed_index: which of the run's seeds, counted from 0.

    Returns:
      a summary of a few lines

    Raises:
      UserError: no finished run, or a file that cannot be read or written.
    """
    _check_output(output)
    run = finished_runs.load(folder, seed_index)
    if run.source.ids:
        header, rows, messages = _predict_table(run, input_path)
    elif run.source.picture:
        header, rows, messages = _predict_images(run, input_path)
    else:
        raise UserError(
            f'the data set of {folder}, {run.source.name}, says nothing of ids or images to predict.'
        )
    _write(output, header, rows)
    return '\n'.join([str(output), *messages])


def recommend(
    folder: epath.Path, user: str, count: int, output: epath.Path | None = None, seed_index: int = 0
) -> str:
    """Recommends the items with the highest predicted ratings of a user.

    The candidates are the items of the training data that the user has not rated there.

    Args:
      folder: workdir of a finished run.
      user: the id.
      count: the most items.
      output: a CSV to write as well, which must not exist yet; or None.
      seed_index: which of the run's seeds, counted from 0.

    Returns:
      a table as text

    Raises:
      UserError: no finished run, a run without users, or a file that cannot be written.
    """
    if output:
        _check_output(output)
    run = finished_runs.load(folder, seed_index)
    source = run.source
    if USER not in source.ids or len(source.ids) != 2:
        raise UserError(f'--user is for a recommender, and {folder} is of {source.name}; use --input.')
    users = source.ids[USER]
    ((field, items),) = ((name, ids) for name, ids in source.ids.items() if name != USER)
    (number,) = program.look_up_ids(users, [user])
    # A caller's own data set may have no pairs, but examples.
    pairs = source.pairs or source.train
    rated = pairs[field][pairs[USER] == number]
    offered = np.setdiff1d(np.flatnonzero(items.is_known), rated).astype(np.int32)
    ratings = _compute_ratings(
        run, {users.column: np.full(len(offered), number, np.int32), items.column: offered}
    )
    # Equal ratings keep the order of the items.
    best = np.argsort(-ratings, kind='stable')[:count]
    (label,) = source.label_names
    header = [users.column, items.column, label]
    rows = [[user, items.raw[offered[i]], f'{ratings[i]:.6f}'] for i in best]
    messages = []
    if not rows:
        messages.append(
            f'{users.column} {user:.60} has rated all {len(np.unique(rated))} that training shows: there is '
            'nothing left to recommend.'
        )
    if number == program.UNKNOWN or not users.is_known[number]:
        messages.append(
            f'{users.column} {user:.60} is unknown to the student: these are for anybody it does not know.'
        )
    if output:
        _write(output, header, rows)
        messages.append(str(output))
    return '\n'.join([*text_tables.align([header[1:], *(row[1:] for row in rows)]), *messages])


def _predict_table(run, path):
    """Predicts a table of ids: (header, rows, messages)."""
    source = run.source
    table = reading.read_table(path, [ids.column for ids in source.ids.values()])
    numbers, unknown = {}, [[] for _ in table.lines]
    for ids in source.ids.values():
        numbers[ids.column] = id_numbers = program.look_up_ids(ids, table.columns[ids.column])
        is_known = np.append(ids.is_known, False)[id_numbers]  # UNKNOWN is the last
        for row in np.flatnonzero(~is_known):
            unknown[row].append(ids.column)
    ratings = _compute_ratings(run, numbers)
    header = [*table.columns, *source.label_names, 'unknown']
    columns = [*table.columns.values(), [f'{x:.6f}' for x in ratings], [' '.join(names) for names in unknown]]
    messages = [
        f'{len(table.lines)} rows, {sum(map(bool, unknown))} with an id that the student does not know'
    ]
    unknown_ids = [
        f'{name} {table.columns[name][row]:.60} (line {table.lines[row]})'
        for row, names in enumerate(unknown)
        for name in names
    ]
    if unknown_ids:
        others = f' and {len(unknown_ids) - NAMED} more' if len(unknown_ids) > NAMED else ''
        messages[0] += f': {", ".join(unknown_ids[:NAMED])}{others}'
    if table.others:
        messages.append(f'columns that are not read: {", ".join(table.others)}')
    messages += table.notes
    return header, zip(*columns, strict=True), messages


def _compute_ratings(run, numbers):
    """Computes the ratings [rows] of numbers {column: [rows]}."""
    student = _make_program(run)
    (label,) = student.outputs
    compute = jax.jit(student.run)
    count = len(next(iter(numbers.values())))
    batches = [np.zeros(0, np.float32)]
    for rows in reading.split_batches(count, ROWS):
        inputs = {name: _pad_rows(array[rows], min(count, ROWS)) for name, array in numbers.items()}
        batches.append(np.asarray(compute(inputs)[label])[: rows.stop - rows.start])
    return np.concatenate(batches)


def _predict_images(run, path):
    """Predicts an image or a folder of images: (header, rows, messages)."""
    student = _make_program(run)
    files, left_out = reading.find_images(path)
    compute, paths, batches = jax.jit(student.of_pixels), list(files.values()), []
    for rows in reading.split_batches(len(paths), IMAGES):
        pixels = _pad_rows(reading.read_pixels(paths[rows], student.picture), min(len(paths), IMAGES))
        batches.append(np.asarray(compute(pixels)['probabilities'])[: rows.stop - rows.start])
    batches = np.concatenate(batches)
    header = ['file', 'class', 'probability', *(f'p({label})' for label in student.labels)]
    rows = (
        [
            name,
            student.labels[np.argmax(probabilities)],
            f'{probabilities.max():.6f}',
            *(f'{x:.6f}' for x in probabilities),
        ]
        for name, probabilities in zip(files, batches, strict=True)
    )
    messages = [f'{len(files)} image{"s" if len(files) > 1 else ""}']
    return header, rows, messages + [f'not read: {left_out}'] * bool(left_out)


def _make_program(run):
    return program.make_program(run.student, run.params[train_step.STUDENT], run.source)


def _pad_rows(array, size):
    """Pads an array with copies of its first row, so that all batches have one compiled program."""
    return np.concatenate([array, np.repeat(array[:1], size - len(array), axis=0)])


def _check_output(output):
    workdir.check_target('--output', output)
    if workdir.is_there(output):
        raise UserError(f'{output} is there already; delete it or choose another --output.')


def _write(path, header, rows):
    text = io.StringIO(newline='')
    csv.writer(text, lineterminator='\n').writerows(itertools.chain([header], rows))
    workdir.write(path, text.getvalue())
