"""Ratings of your own, from a CSV or TSV of users, items, ratings and times, by the protocol of ratings.py.

Ids are any text. Ratings are in order of (time, user id, item id), ids in the order of their text. A row that
says what an earlier one says, of the same user, item, rating and time, is left out, so that no rating is on
both sides of a split. Further columns say what an item is: text as a bag of words, or categories, of which a
cell may hold several. What a teacher and what a student are trained on is a filter on such a column.
"""

import array
import datetime
import functools
import re
from typing import NamedTuple

import numpy as np

from td_jax.data import file_digest, paths, ratings, table
from td_jax.data.base import Source
from td_jax.errors import UserError, suggest

# The names of users and items in examples and inputs.
FIELDS = 'user', 'item'
# At most so many values are listed in a refusal.
MAX_LISTED = 20
MAX_RATING = float(np.finfo(np.float32).max)


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
    path = paths.resolve(config.path, 'a CSV or TSV of ratings', is_folder=False)
    columns = _list_columns(config, task)
    contents = _read_file(path, file_digest.stamp(path), tuple(columns))
    is_chosen = _select_items(path, contents, task, config.separator)
    rating_columns = ratings.Ratings(
        ratings.Column(FIELDS[0], config.user_column, contents.user, contents.user_ids),
        ratings.Column(FIELDS[1], config.item_column, contents.item, contents.item_ids),
        contents.labels,
    )
    what = f'filter_value {task.filter_value!r}' if task.filter_value else f'path {config.path}'
    parts = ratings.cut(rating_columns, config, is_chosen, f'dataset.{what}')
    # {name of an input: (the values of each item, in how many items a value has to occur)}
    values = {
        name: ([_split_words(text) for text in contents.texts[name]], config.min_title_word_count)
        for name in config.words
    }
    for name in config.categories:
        values[name] = [_split_values(text, config.separator) for text in contents.texts[name]], 1
    train_items = contents.item[parts[0]]
    bags = {
        name: ratings.bags_of(of_items, train_items, min_items)
        for name, (of_items, min_items) in values.items()
    }
    source = ratings.source_of(
        f'{path.name} {task.filter_value or "all"}', rating_columns, parts, bags, config
    )
    ignored = [name for name in contents.header if name not in [column for _, column in columns]]
    notes = [f'{path.name} has columns that are not read: {", ".join(ignored)}'] if ignored else []
    return source._replace(note='; '.join([*notes, *contents.notes]))


def _split_words(text):
    """Splits a text into words: runs of letters, digits and apostrophes, in lower case."""
    return re.findall(r"[\w']+", text.lower())


def _split_values(text, separator):
    """Splits a cell into its values, each once."""
    parts = text.split(separator) if separator else [text]
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _list_columns(config, task):
    """Lists (option, column) of the columns that are read; refuses contradictions."""
    columns = [
        ('dataset.user_column', config.user_column),
        ('dataset.item_column', config.item_column),
        ('dataset.rating_column', config.rating_column),
        ('dataset.timestamp_column', config.timestamp_column),
    ]
    item_columns = [
        (f'dataset.{option}', name) for option in ('words', 'categories') for name in config[option]
    ]
    for option, name in item_columns:
        if not re.fullmatch(r'\w+', name) or name in FIELDS:
            raise UserError(
                f'{option} names the column {name!r}, which cannot be the name of an input: those are of '
                f'letters, digits and underscores, and not {" or ".join(FIELDS)}; rename it in the file.'
            )
    if bool(task.filter_column) != bool(task.filter_value):
        raise UserError(
            f'dataset.filter_column is {task.filter_column!r} and dataset.filter_value is '
            f'{task.filter_value!r}; set both, or neither.'
        )
    columns += item_columns
    # A filter may be on a column that is an input, too.
    if task.filter_column and task.filter_column not in [name for _, name in item_columns]:
        columns.append(('dataset.filter_column', task.filter_column))
    option_of = {}
    for option, name in columns:
        if name in option_of:
            raise UserError(
                f'{option_of[name]} and {option} both name the column {name!r}; it has one meaning.'
            )
        option_of[name] = option
    return columns


class _FileContents(NamedTuple):
    """The content of a file in order of time; users and items are numbered by the order of their ids."""

    header: list[str]
    notes: list[str]  # lines about what may surprise a person
    user: np.ndarray  # [ratings] int32
    item: np.ndarray  # [ratings] int32
    labels: np.ndarray  # [ratings] float32
    # Text, as objects: in an array of type str each id would take the length of the longest.
    user_ids: np.ndarray  # [users]
    item_ids: np.ndarray  # [items]
    texts: dict[str, list[str]]  # {column: [items], the cell of each}


@functools.lru_cache(maxsize=2)
def _read_file(path, stamp, columns) -> _FileContents:
    """Reads a file; `stamp`, by file_digest, is part of the key of the cache: a changed file is read anew."""
    user_column, item_column, rating_column, time_column, *item_columns = (name for _, name in columns)
    numbers = {}, {}  # of users and items, by id, in order of their first line
    number_columns = array.array('i'), array.array('i')
    labels, times, lines = array.array('f'), array.array('d'), array.array('q')
    texts = []  # [items], (row, cells) of each
    rows = table.Rows(path, columns)
    parse_time = None
    for row in rows:
        user, item, rating, time, *cells = row.cells
        for i, (raw, name) in enumerate(((user, user_column), (item, item_column))):
            if not raw:
                raise UserError(f'{path}, {row.place}: {name} is empty.')
            number_columns[i].append(numbers[i].setdefault(raw, len(numbers[i])))
        labels.append(_parse_rating(path, row, rating_column, rating))
        parse_time = parse_time or (_parse_date if table.parse_number(time) is None else _parse_seconds)
        times.append(parse_time(path, row, time_column, time))
        lines.append(row.last)
        if number_columns[1][-1] == len(texts):
            texts.append((row, cells))
        elif texts[number_columns[1][-1]][1] != cells:
            _refuse_two_texts(path, row, item, item_columns, texts[number_columns[1][-1]], cells)
    if not labels:
        raise UserError(f'{path} has a first line and no ratings.')
    (users, user), (items, item) = (_sort_ids(numbers[i], number_columns[i]) for i in range(2))
    # Rows that are equal in all three stay in the order of their lines.
    order = np.lexsort((item, user, np.asarray(times)))
    user, item, times, labels, lines = (
        np.asarray(column)[order] for column in (user, item, times, labels, lines)
    )
    is_repeat = _equals_previous(user) & _equals_previous(item) & _equals_previous(times)
    if contradictions := np.flatnonzero(is_repeat & ~_equals_previous(labels)).tolist():
        first_contradiction = min(contradictions, key=lambda i: lines[i])
        ids = {user_column: users[user[first_contradiction]], item_column: items[item[first_contradiction]]}
        rows_of_pair = slice(first_contradiction - 1, first_contradiction + 1)
        _refuse_two_ratings(path, ids, labels[rows_of_pair], lines[rows_of_pair], len(contradictions) - 1)
    notes = rows.notes()
    if count := int(is_repeat.sum()):
        notes.append(
            f'{path.name} repeats {count} row{"s" if count > 1 else ""} of the same user, item, rating and '
            f'time, left out (first: line {lines[is_repeat].min()})'
        )
    by_item = [texts[numbers[1][raw]][1] for raw in items]
    return _FileContents(
        rows.header,
        notes,
        user[~is_repeat],
        item[~is_repeat],
        labels[~is_repeat],
        np.array(users, object),
        np.array(items, object),
        {name: [cells[i] for cells in by_item] for i, name in enumerate(item_columns)},
    )


def _equals_previous(column):
    """[rows] bool, whether a value equals that of the row before; False in the first row."""
    return np.concatenate([[False], column[1:] == column[:-1]])


def _sort_ids(numbers, column):
    """Sorts ids by their text and renumbers a column of them: (ids, numbers)."""
    ids = sorted(numbers)
    place = np.empty(len(ids), np.int32)
    place[[numbers[raw] for raw in ids]] = np.arange(len(ids))
    return ids, place[np.asarray(column)]


def _parse_rating(path, row, name, text):
    value = table.parse_number(text)
    if value is None or abs(value) > MAX_RATING:
        raise UserError(
            f'{path}, {row.place}: {name} is {text!r:.60}; it must be a finite number such as 4, -0.5 or 1e3.'
        )
    return value


def _parse_seconds(path, row, name, text):
    value = table.parse_number(text)
    if value is None:
        raise UserError(
            f'{path}, {row.place}: {name} is {text!r:.60}; it must be a number, as in the rows before.'
        )
    return value


def _parse_date(path, row, name, text):
    """Converts a date to seconds since 1970; without a time zone it is in UTC."""
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


def _refuse_two_texts(path, row, item, item_columns, first_entry, cells):
    """Refuses an item with two different texts in one column."""
    previous_row, previous_cells = first_entry
    place = next(i for i, cell in enumerate(cells) if cell != previous_cells[i])
    raise UserError(
        f'{path}, {row.place}: {item_columns[place]} of {item!r:.60} is {cells[place]!r:.60}, but '
        f'{previous_cells[place]!r:.60} in {previous_row.place}; an item has one.'
    )


def _refuse_two_ratings(path, ids, labels, lines, others):
    """Refuses two ratings of the same item by the same user at the same time; `others` is how many more."""
    who = ' and '.join(f'{name} {raw!r:.60}' for name, raw in ids.items())
    more = f' ({others} more of this kind)' if others else ''
    raise UserError(
        f'{path}, lines {lines[0]} and {lines[1]}: {who} have the ratings {labels[0]:g} and {labels[1]:g} at '
        f'the same time{more}; delete one of the two.'
    )


def _select_items(path, contents, task, separator):
    """[items] bool, which items a task is about."""
    if not task.filter_column:
        return np.ones(len(contents.item_ids), bool)
    values = [_split_values(text, separator) for text in contents.texts[task.filter_column]]
    is_chosen = np.array([task.filter_value in item_values for item_values in values])
    if not is_chosen.any():
        known = sorted({value for item_values in values for value in item_values})
        more = f' and {len(known) - MAX_LISTED} more' if len(known) > MAX_LISTED else ''
        raise UserError(
            f'dataset.filter_value {task.filter_value!r} is not in the column {task.filter_column} of '
            f'{path}.{suggest(task.filter_value, known)} It has {", ".join(known[:MAX_LISTED]):.1000}{more}.'
        )
    return is_chosen
