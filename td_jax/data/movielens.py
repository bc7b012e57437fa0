"""MovieLens as TFDS stores it, by the protocol of td_jax.data.ratings and cut by genre.

The order of ratings is that of (timestamp, user id, movie id).
"""

import collections
import functools
import re
from typing import NamedTuple

import numpy as np

from td_jax.data import base, prepared, ratings
from td_jax.data.base import Source
from td_jax.errors import UserError

# {size of MovieLens in TFDS, a value of `config.dataset.movielens`: (lowest, highest rating)}
SIZES = {'100k': (1, 5), '1m': (1, 5), '20m': (0.5, 5), '25m': (0.5, 5), 'latest-small': (0.5, 5)}

# {field that is read of a rating, in addition to the genres of its movie: type in the records}
FIELDS = {
    'user_id': 'string',
    'movie_id': 'string',
    'movie_title': 'string',
    'timestamp': 'int64',
    'user_rating': 'float32',
}


def name_of(size: str) -> str:
    """The name of a size's ratings in TFDS."""
    return f'movielens/{size}-ratings'


def load(config, task) -> Source:
    """Cuts the ratings for a task.

    Inputs: {'user': [batch] rows, 'movie': [batch] rows, 'title_words': [batch, words] and
    'genres': [batch, genres], bags whose weights add up to 1}; labels: ratings as SIZES has them.

    Args:
      config: `config.dataset`, for the size, the split, which is the same for teacher and student, the
        out-of-vocabulary rates and the title words.
      task: `config.dataset` or `config.teacher.dataset`, for the genre.

    Raises:
      UserError: a genre that is unknown or has no ratings, or data that is not prepared.
    """
    dataset = read_ratings(config.movielens)
    if task.genre not in ('all', *dataset.genre_names):
        known = ', '.join(dataset.genre_names)
        raise UserError(f'dataset.genre {task.genre!r} is not known; choose all, or one of: {known}.')
    rating_columns = ratings.Ratings(
        ratings.Column('user', 'user_id', dataset.user, dataset.user_ids),
        ratings.Column('movie', 'movie_id', dataset.movie, dataset.movie_ids),
        dataset.labels,
    )
    is_chosen = np.ones(len(dataset.movie_ids), bool)
    if task.genre != 'all':
        is_chosen = dataset.genres[:, dataset.genre_names.index(task.genre)] > 0
    parts = ratings.cut(rating_columns, config, is_chosen, f'dataset.genre {task.genre!r}')
    words = [_split_words(title) for title in dataset.titles]
    genres = dataset.genres / np.maximum(dataset.genres.sum(axis=1, keepdims=True), 1)
    bags = {
        'title_words': ratings.bags_of(words, dataset.movie[parts[0]], config.min_title_word_count),
        # A movie that is not in the data has none.
        'genres': np.vstack([genres, np.zeros_like(genres[:1])]),
    }
    return ratings.source_of(f'{name_of(config.movielens)} {task.genre}', rating_columns, parts, bags, config)


def _split_words(title):
    return re.findall(r"[a-z0-9']+", title.lower())


class Ratings(NamedTuple):
    """All ratings in order of time, with users and movies numbered from 0 in the order of their ids."""

    user: np.ndarray  # [ratings]
    movie: np.ndarray  # [ratings]
    labels: np.ndarray  # [ratings]
    user_ids: np.ndarray  # [users] text
    movie_ids: np.ndarray  # [movies] text
    titles: list[str]  # [movies]
    genres: np.ndarray  # [movies, genres], 1 where a movie has the genre
    genre_names: tuple[str, ...]


@functools.cache
def read_ratings(size: str) -> Ratings:
    """Reads the ratings of a size, a name of SIZES, that TFDS has prepared.

    Raises:
      UserError: they are not prepared and cannot be downloaded, or hold what they must not.
    """
    # Imported here, as TFDS is: it takes seconds to start.
    import tensorflow as tf

    name = name_of(size)
    builder = prepared.builder(name)
    prepared.check_format(builder)
    fields = {field: tf.io.FixedLenFeature((), dtype) for field, dtype in FIELDS.items()}
    fields['movie_genres'] = tf.io.RaggedFeature('int64')
    columns = collections.defaultdict(list)
    movie_genres = {}
    with prepared.errors_as_user_error(name):
        split = builder.info.splits['train']
        records = tf.data.TFRecordDataset([str(file) for file in split.filepaths])
        records = records.apply(tf.data.experimental.assert_cardinality(split.num_examples))
        # In batches: reading one by one, as TFDS does, takes twenty times as long.
        for batch in records.batch(4096).map(lambda batch: tf.io.parse_example(batch, fields)):
            for field in FIELDS:
                columns[field].append(batch[field].numpy())
            # What belongs to a movie is looked up by its id: 18 titles belong to more than one.
            movie_genres.update(zip(columns['movie_id'][-1], batch['movie_genres'].to_list(), strict=True))
    if not columns:
        raise UserError(f'dataset {name} has no ratings. Prepare it anew.')
    table = {field: np.concatenate(parts) for field, parts in columns.items()}
    genre_names = tuple(builder.info.features['movie_genres'].feature.names)
    _check(f'dataset {name}', table, movie_genres, len(genre_names), SIZES[size])

    users, movies = table['user_id'].astype(int), table['movie_id'].astype(int)
    order = np.lexsort((movies, users, table['timestamp']))
    user_ids, user = np.unique(users[order], return_inverse=True)
    movie_ids, first, movie = np.unique(movies[order], return_index=True, return_inverse=True)
    genres = np.zeros((len(movie_ids), len(genre_names)), np.float32)
    for row, movie_id in enumerate(movie_ids):
        genres[row, movie_genres[str(movie_id).encode()]] = 1
    return Ratings(
        user.astype(np.int32),
        movie.astype(np.int32),
        table['user_rating'][order],
        user_ids.astype(str),
        movie_ids.astype(str),
        [title.decode() for title in table['movie_title'][order][first]],
        genres,
        genre_names,
    )


def _check(name, table, movie_genres, num_genres, limits):
    """Refuses ratings with invalid values; names the field and the first row."""
    for field in ('user_id', 'movie_id'):
        # Numbers of eighteen digits fit in an int64.
        is_right = np.array([value.isdigit() and len(value) <= 18 for value in table[field]])
        base.refuse_rows(name, field, table[field], is_right, 'a whole number in digits')
    is_right = np.array([_is_utf8(title) for title in table['movie_title']])
    base.refuse_rows(name, 'movie_title', table['movie_title'], is_right, 'text in UTF-8')
    low, high = limits
    is_right = (table['user_rating'] >= low) & (table['user_rating'] <= high)
    base.refuse_rows(name, 'user_rating', table['user_rating'], is_right, f'from {low} to {high}')
    for movie, genres in movie_genres.items():
        if not all(0 <= genre < num_genres for genre in genres):
            raise UserError(
                f'{name}: movie_genres of the movie with id {movie.decode()} is {genres}; they must be '
                f'from 0 to {num_genres - 1}. Repair the data set, or prepare it anew.'
            )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
