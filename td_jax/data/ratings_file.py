"""Ratings of your own, from a CSV or TSV of users, items, ratings and times, by the protocol of ratings.py.

Ids are any text. Ratings are in order of (time, user id, item id), ids in the order of their text. A row that
says what an earlier one says, of the same user, item, rating and time, is left out, so that no rating is on
both sides of a split. Further columns say what an item is: text as a bag of words, or categories, of which a
cell may hold several. What a teacher and what a student are trained on is a filter on such a column.
"""

import array
import datetime
import difflib
import functools
import re
from typing import NamedTuple

import numpy as np

from td_jax.data import file_digest, paths, ratings, table
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
    read = _read(path, file_digest.stamp(path), tuple(columns))
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
    unread = [f'{path.name} has columns that are not read: {", ".join(others)}'] if others else []
    return source._replace(note='; '.join([*unread, *read.notes]))


def _words(text):
    """The words of a text, runs of letters, digits and apostrophes, in lower case."""
    return re.findall(r"[\w']+", text.lower())


def _values(text, separator):
    """The values in a cell, each once."""
    parts = text.split(separator) if separator else [text]
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _columns(config, task):
    """(option, column) of each that is read; refuses those that contradict each other."""
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
    notes: list[str]  # what a person may not expect of it
    user: np.ndarray  # [ratings] int32
    item: np.ndarray  # [ratings] int32
    labels: np.ndarray  # [ratings] float32
    # Text, as objects: an array of type str takes the length of the longest id for each.
    user_ids: np.ndarray  # [users]
    item_ids: np.ndarray  # [items]
    texts: dict[str, list[str]]  # {column: [items], the cell of each}


@functools.lru_cache(maxsize=2)
def _read(path, stamp, columns) -> _Read:
    """Reads a file; `stamp` is that of file_digest, so that another one is read anew."""
    user_column, item_column, rating_column, time_column, *about = (name for _, name in columns)
    numbers = {}, {}  # of users and items, by id, in order of their first line
    found = array.array('i'), array.array('i')
    labels, times, lines = array.array('f'), array.array('d'), array.array('q')
    texts = []  # [items], (row, cells) of each
    rows = table.Rows(path, columns)
    time_of = None
    for row in rows:
        user, item, rating, time, *cells = row.cells
        for i, (raw, name) in enumerate(((user, user_column), (item, item_column))):
            if not raw:
                raise UserError(f'{path}, {row.place}: {name} is empty.')
            found[i].append(numbers[i].setdefault(raw, len(numbers[i])))
        labels.append(_rating(path, row, rating_column, rating))
        time_of = time_of or (_date if table.number(time) is None else _seconds)
        times.append(time_of(path, row, time_column, time))
        lines.append(row.last)
        if found[1][-1] == len(texts):
            texts.append((row, cells))
        elif texts[found[1][-1]][1] != cells:
            _refuse_two_texts(path, row, item, about, texts[found[1][-1]], cells)
    if not labels:
        raise UserError(f'{path} has a first line and no ratings.')
    (users, user), (items, item) = (_in_order(numbers[i], found[i]) for i in range(2))
    # Rows that are equal in all three stay in the order of their lines.
    order = np.lexsort((item, user, np.asarray(times)))
    user, item, times, labels, lines = (
        np.asarray(column)[order] for column in (user, item, times, labels, lines)
    )
    is_repeat = _is_as_before(user) & _is_as_before(item) & _is_as_before(times)
    if second := np.flatnonzero(is_repeat & ~_is_as_before(labels)).tolist():
        of_first_line = min(second, key=lambda i: lines[i])
        ids = {user_column: users[user[of_first_line]], item_column: items[item[of_first_line]]}
        rows_of_pair = slice(of_first_line - 1, of_first_line + 1)
        _refuse_two_ratings(path, ids, labels[rows_of_pair], lines[rows_of_pair], len(second) - 1)
    notes = rows.notes()
    if count := int(is_repeat.sum()):
        notes.append(
            f'{path.name} repeats {count} row{"s" if count > 1 else ""} of the same user, item, rating and '
            f'time, left out (first: line {lines[is_repeat].min()})'
        )
    by_item = [texts[numbers[1][raw]][1] for raw in items]
    return _Read(
        rows.header,
        notes,
        user[~is_repeat],
        item[~is_repeat],
        labels[~is_repeat],
        np.array(users, object),
        np.array(items, object),
        {name: [cells[i] for cells in by_item] for i, name in enumerate(about)},
    )


def _is_as_before(column):
    """[rows] bool, whether a value is that of the row before; not in the first."""
    return np.concatenate([[False], column[1:] == column[:-1]])


def _in_order(numbers, column):
    """Ids in the order of their text, and a column of their numbers in that order."""
    ids = sorted(numbers)
    place = np.empty(len(ids), np.int32)
    place[[numbers[raw] for raw in ids]] = np.arange(len(ids))
    return ids, place[np.asarray(column)]


def _rating(path, row, name, text):
    value = table.number(text)
    if value is None or abs(value) > LARGEST:
        raise UserError(
            f'{path}, {row.place}: {name} is {text!r:.60}; it must be a finite number such as 4, -0.5 or 1e3.'
        )
    return value


def _seconds(path, row, name, text):
    value = table.number(text)
    if value is None:
        raise UserError(
            f'{path}, {row.place}: {name} is {text!r:.60}; it must be a number, as in the rows before.'
        )
    return value


def _date(path, row, name, text):
    """Seconds since 1970 of a date; one that says no time zone is in UTC."""
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(
            f'{path}, {row.place}: {name} is {text!r:.60}; it must be a number, or a date such as '
            '2024-05-31T10:00:00, the same kind in all rows.'
        ) from error
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return date.timestamp()


def _refuse_two_texts(path, row, item, about, first, cells):
    """Refuses an item that is said to be two things."""
    before, known = first
    place = next(i for i, cell in enumerate(cells) if cell != known[i])
    raise UserError(
        f'{path}, {row.place}: {about[place]} of {item!r:.60} is {cells[place]!r:.60}, but '
        f'{known[place]!r:.60} in {before.place}; an item has one.'
    )


def _refuse_two_ratings(path, ids, labels, lines, others):
    """Refuses two ratings of the same item by the same user at the same time; `others` is how many more."""
    who = ' and '.join(f'{name} {raw!r:.60}' for name, raw in ids.items())
    more = f' ({others} more of this kind)' if others else ''
    raise UserError(
        f'{path}, lines {lines[0]} and {lines[1]}: {who} have the ratings {labels[0]:g} and {labels[1]:g} at '
        f'the same time{more}; delete one of the two.'
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
            f'{path}.{hint} It has {", ".join(known[:SHOWN]):.1000}{more}.'
        )
    return is_chosen
