"""Ratings of your own, from a CSV or TSV of users, items, ratings and times, by the protocol of ratings.py.

Ids are any text. Ratings are in order of (time, user id, item id), ids in the order of their text. Further
columns say what an item is: text as a bag of words, or categories, of which a cell may hold several. What a
teacher and what a student are trained on is a filter on such a column.
"""

import array
import datetime
import difflib
import functools
import math
import re
from typing import NamedTuple

import numpy as np

from td_jax.data import paths, ratings, table
from td_jax.data.base import Source
from td_jax.errors import UserError

# What examples and inputs call the ids of users and items.
FIELDS = 'user', 'item'
# Values that a refusal lists.
SHOWN = 20
LARGEST = float(np.finfo(np.float32).max)


def load(config, task) -> Source:
    """Reads the ratings and cuts them for a task.

    Inputs: {'user': [batch] rows, 'item': [batch] rows, column of words or categories: [batch, values], a bag
    whose weights add up to 1}; labels: ratings as the file has them.

    Args:
      config: `config.dataset`, for the file, its columns, the split, which is the same for teacher and
        student, and the out-of-vocabulary rates.
      task: `config.dataset` or `config.teacher.dataset`, for the filter.

    Raises:
      UserError: a file that cannot be read or says something else, columns that contradict each other, or a
        filter that no rating passes.
    """
    path = paths.given(config.path, 'a CSV or TSV of ratings', is_folder=False)
    columns = _columns(config, task)
    stat = path.stat()
    read = _read(path, (stat.mtime, stat.length), tuple(columns))
    is_chosen = _is_chosen(path, read, task, config.separator)
    rated = ratings.Ratings(
        ratings.Column(FIELDS[0], config.user_column, read.user, read.user_ids),
        ratings.Column(FIELDS[1], config.item_column, read.item, read.item_ids),
        read.labels,
    )
    what = f'filter_value {task.filter_value!r}' if task.filter_value else f'path {config.path}'
    parts = ratings.cut(rated, config, is_chosen, f'dataset.{what}')
    # {name of an input: (the values of each item, in how many items one has to be)}
    values = {
        name: ([_words(text) for text in read.texts[name]], config.min_title_word_count)
        for name in config.words
    }
    for name in config.categories:
        values[name] = [_values(text, config.separator) for text in read.texts[name]], 1
    shown = read.item[parts[0]]
    bags = {name: ratings.bags_of(of_items, shown, fewest) for name, (of_items, fewest) in values.items()}
    source = ratings.source_of(f'{path.name} {task.filter_value or "all"}', rated, parts, bags, config)
    others = [name for name in read.header if name not in [column for _, column in columns]]
    said = f'{path.name} has columns that are not read: {", ".join(others)}' if others else ''
    return source._replace(said=said)


def _words(text):
    """The words of a text, runs of letters, digits and apostrophes, in lower case."""
    return re.findall(r"[\w']+", text.lower())


def _values(text, separator):
    """The values in a cell, each once."""
    parts = text.split(separator) if separator else [text]
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _columns(config, task):
    """(knob, column) of each that is read; refuses those that contradict each other."""
    found = [
        ('dataset.user_column', config.user_column),
        ('dataset.item_column', config.item_column),
        ('dataset.rating_column', config.rating_column),
        ('dataset.timestamp_column', config.timestamp_column),
    ]
    about = [(f'dataset.{knob}', name) for knob in ('words', 'categories') for name in config[knob]]
    for knob, name in about:
        if not re.fullmatch(r'\w+', name) or name in FIELDS:
            raise UserError(
                f'{knob} names the column {name!r}, which cannot be the name of an input: those are of '
                f'letters, digits and underscores, and not {" or ".join(FIELDS)}; rename it in the file.'
            )
    if bool(task.filter_column) != bool(task.filter_value):
        raise UserError(
            f'dataset.filter_column is {task.filter_column!r} and dataset.filter_value is '
            f'{task.filter_value!r}; set both, or neither.'
        )
    found += about
    # A filter may be on a column that is an input, too.
    if task.filter_column and task.filter_column not in [name for _, name in about]:
        found.append(('dataset.filter_column', task.filter_column))
    knob_of = {}
    for knob, name in found:
        if name in knob_of:
            raise UserError(f'{knob_of[name]} and {knob} both name the column {name!r}; it has one meaning.')
        knob_of[name] = knob
    return found


class _Read(NamedTuple):
    """What a file has, in order of time, with users and items numbered from 0 in the order of their ids."""

    header: list[str]
    user: np.ndarray  # [ratings] int32
    item: np.ndarray  # [ratings] int32
    labels: np.ndarray  # [ratings] float32
    user_ids: np.ndarray  # [users] text
    item_ids: np.ndarray  # [items] text
    texts: dict[str, list[str]]  # {column: [items], the cell of each}


@functools.lru_cache(maxsize=2)
def _read(path, stamp, columns) -> _Read:
    """Reads a file; `stamp` is when it was written and how long it is, so that another one is read anew."""
    user_column, item_column, rating_column, time_column, *about = (name for _, name in columns)
    numbers = {}, {}  # of users and items, by id, in order of their first line
    found = array.array('i'), array.array('i')
    labels, times = array.array('f'), array.array('d')
    texts = []  # [items], (line, cells) of each
    rows = table.rows(path, columns)
    _, header = next(rows)
    time_of = None
    for line, (user, item, rating, time, *cells) in rows:
        for i, (raw, name) in enumerate(((user, user_column), (item, item_column))):
            if not raw:
                raise UserError(f'{path}, line {line}: {name} is empty.')
            found[i].append(numbers[i].setdefault(raw, len(numbers[i])))
        labels.append(_rating(path, line, rating_column, rating))
        time_of = time_of or (_seconds if _is_number(time) else _date)
        times.append(time_of(path, line, time_column, time))
        if found[1][-1] == len(texts):
            texts.append((line, cells))
        elif texts[found[1][-1]][1] != cells:
            _refuse_two(path, line, item, about, texts[found[1][-1]], cells)
    if not labels:
        raise UserError(f'{path} has a first line and no ratings.')
    (users, user), (items, item) = (_in_order(numbers[i], found[i]) for i in range(2))
    order = np.lexsort((item, user, np.asarray(times)))
    by_item = [texts[numbers[1][raw]][1] for raw in items]
    return _Read(
        header,
        user[order],
        item[order],
        np.asarray(labels, np.float32)[order],
        np.array(users),
        np.array(items),
        {name: [cells[i] for cells in by_item] for i, name in enumerate(about)},
    )


def _in_order(numbers, column):
    """Ids in the order of their text, and a column of their numbers in that order."""
    ids = sorted(numbers)
    place = np.empty(len(ids), np.int32)
    place[[numbers[raw] for raw in ids]] = np.arange(len(ids))
    return ids, place[np.asarray(column)]


def _rating(path, line, name, text):
    if not _is_number(text) or abs(float(text)) > LARGEST:
        raise UserError(f'{path}, line {line}: {name} is {text!r:.60}; it must be a finite number.')
    return float(text)


def _is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _seconds(path, line, name, text):
    if not _is_number(text):
        raise UserError(
            f'{path}, line {line}: {name} is {text!r:.60}; it must be a number, as in the rows before.'
        )
    return float(text)


def _date(path, line, name, text):
    """Seconds since 1970 of a date; one that says no time zone is in UTC."""
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(
            f'{path}, line {line}: {name} is {text!r:.60}; it must be a number, or a date such as '
            '2024-05-31T10:00:00, the same kind in all rows.'
        ) from error
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return date.timestamp()


def _refuse_two(path, line, item, about, first, cells):
    """Refuses an item that is said to be two things."""
    before, known = first
    place = next(i for i, cell in enumerate(cells) if cell != known[i])
    raise UserError(
        f'{path}, line {line}: {about[place]} of {item!r:.60} is {cells[place]!r:.60}, but '
        f'{known[place]!r:.60} in line {before}; an item has one.'
    )


def _is_chosen(path, read, task, separator):
    """[items] bool, which items a task is about."""
    if not task.filter_column:
        return np.ones(len(read.item_ids), bool)
    values = [_values(text, separator) for text in read.texts[task.filter_column]]
    is_chosen = np.array([task.filter_value in own for own in values])
    if not is_chosen.any():
        known = sorted({value for own in values for value in own})
        nearest = difflib.get_close_matches(task.filter_value, known, n=1)
        hint = f' Did you mean {nearest[0]}?' if nearest else ''
        more = f' and {len(known) - SHOWN} more' if len(known) > SHOWN else ''
        raise UserError(
            f'dataset.filter_value {task.filter_value!r} is not in the column {task.filter_column} of '
            f'{path}.{hint} It has {", ".join(known[:SHOWN])}{more}.'
        )
    return is_chosen
