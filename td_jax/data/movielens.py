"""MovieLens100k as TFDS stores it, split by time and cut by genre.

The protocol: sort by (timestamp, user id, movie id); the first 90% are for training and the rest is the
test, of all ratings (`split_by` 'time') or of each user's own ('user'); the genre filter comes after the
split. The validation slice is the last tenth of the training part, or, for a higher number of it, one of the
tenths before; training then has what lies before the slice alone. Ids that a task's own training examples
never show share row 0 of their embedding, which training teaches by sending a share of all ids there.
"""

import collections
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.data import base, prepared
from td_jax.data.base import Ids, Source
from td_jax.errors import UserError

NAME = 'movielens/100k-ratings'
TRAIN_SHARE = 0.9
SPLITS_BY = 'time', 'user'
# The highest number of a validation slice; before it, four tenths of the training part are left.
LAST_SLICE = 5
OUT_OF_VOCABULARY = 0
# The lowest and the highest.
RATINGS = 1, 5


def load(config, task) -> Source:
    """Cuts the ratings for a task.

    Inputs: {'user': [batch] rows, 'movie': [batch] rows, 'title_words': [batch, words] and
    'genres': [batch, genres], bags whose weights add up to 1}; labels: ratings from 1 to 5.

    Args:
      config: `config.dataset`, for the split, which is the same for teacher and student, the
        out-of-vocabulary rates and the title words.
      task: `config.dataset` or `config.teacher.dataset`, for the genre.

    Raises:
      UserError: a genre that is unknown or has no ratings, or data that is not prepared.
    """
    ratings = read_ratings()
    if task.genre not in ('all', *ratings.genre_names):
        known = ', '.join(ratings.genre_names)
        raise UserError(f'dataset.genre {task.genre!r} is not known; choose all, or one of: {known}.')
    train, evaluation = _split(ratings.user, config)
    if task.genre != 'all':
        has_genre = ratings.genres[ratings.movie, ratings.genre_names.index(task.genre)] > 0
        train, evaluation = train[has_genre[train]], evaluation[has_genre[evaluation]]
    for rows, part in ((train, 'training'), (evaluation, config.split)):
        if not len(rows):
            raise UserError(f'dataset.genre {task.genre!r} has no ratings in the {part} part.')

    user_rows, num_users = _vocabulary(ratings.user[train], len(ratings.user_ids))
    movie_rows, num_movies = _vocabulary(ratings.movie[train], len(ratings.titles))
    title_words = _title_bags(ratings.titles, ratings.movie[train], config.min_title_word_count)
    genres = ratings.genres / np.maximum(ratings.genres.sum(axis=1, keepdims=True), 1)
    examples = {'user': ratings.user, 'movie': ratings.movie, 'labels': ratings.labels}
    rates = config.user_oov_rate, config.movie_oov_rate
    is_known = user_rows[ratings.user[evaluation]] != OUT_OF_VOCABULARY
    return Source(
        name=f'{NAME} {task.genre}',
        train={name: array[train] for name, array in examples.items()},
        evaluation={name: array[evaluation] for name, array in examples.items()},
        task='regression',
        label_names=('rating',),
        vocabularies={
            'user': num_users,
            'movie': num_movies,
            'title_words': title_words.shape[1],
            'genres': ratings.genres.shape[1],
        },
        # The last of each is of a user or a movie that is not in the data: no rows of their own, a title of
        # unknown words and no genres.
        tables={
            'user_rows': np.append(user_rows, np.int32(OUT_OF_VOCABULARY)),
            'movie_rows': np.append(movie_rows, np.int32(OUT_OF_VOCABULARY)),
            'title_words': np.vstack([title_words, _unknown_words(title_words)]),
            'genres': np.vstack([genres, np.zeros_like(genres[:1])]),
        },
        inputs=functools.partial(_inputs, rates=rates),
        units=ratings.user[evaluation],
        groups={'known_users': is_known, 'unknown_users': ~is_known},
        ids={
            'user': Ids('user_id', ratings.user_ids, user_rows != OUT_OF_VOCABULARY),
            'movie': Ids('movie_id', ratings.movie_ids, movie_rows != OUT_OF_VOCABULARY),
        },
    )


def _inputs(tables, examples, key, *, rates):
    """User and movie numbers -> what a model is given; with a key, some ids go out of vocabulary.

    A movie whose id is hidden keeps its title and genres, as a new one would have them.
    """
    user = jnp.asarray(tables['user_rows'])[examples['user']]
    movie = jnp.asarray(tables['movie_rows'])[examples['movie']]
    if key is not None:
        chance = jax.random.uniform(key, (2, *user.shape), jnp.float32)
        user = jnp.where(chance[0] < rates[0], OUT_OF_VOCABULARY, user)
        movie = jnp.where(chance[1] < rates[1], OUT_OF_VOCABULARY, movie)
    return {
        'user': user,
        'movie': movie,
        'title_words': jnp.asarray(tables['title_words'])[examples['movie']],
        'genres': jnp.asarray(tables['genres'])[examples['movie']],
    }


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
def read_ratings() -> Ratings:
    """Reads the ratings through TFDS.

    Raises:
      UserError: they are not prepared and cannot be downloaded, or hold what they must not.
    """
    builder = prepared.builder(NAME)
    columns = collections.defaultdict(list)
    movie_genres = {}
    with prepared.reading(NAME):
        for batch in builder.as_dataset(split='train').ragged_batch(4096):
            for field in ('user_id', 'movie_id', 'movie_title', 'timestamp', 'user_rating'):
                columns[field].append(batch[field].numpy())
            # What belongs to a movie is looked up by its id: 18 titles belong to more than one.
            movie_genres.update(zip(columns['movie_id'][-1], batch['movie_genres'].to_list(), strict=True))
    if not columns:
        raise UserError(f'dataset {NAME} has no ratings. Prepare it anew.')
    table = {field: np.concatenate(parts) for field, parts in columns.items()}
    genre_names = tuple(builder.info.features['movie_genres'].feature.names)
    _check(table, movie_genres, len(genre_names))

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


def _check(table, movie_genres, num_genres):
    """Refuses ratings that cannot be read as what they are meant to be; names the field and the first row."""
    name = f'dataset {NAME}'
    for field in ('user_id', 'movie_id'):
        # Eighteen digits are an int64.
        is_right = np.array([value.isdigit() and len(value) <= 18 for value in table[field]])
        base.refuse_rows(name, field, table[field], is_right, 'a whole number in digits')
    is_right = np.array([_is_utf8(title) for title in table['movie_title']])
    base.refuse_rows(name, 'movie_title', table['movie_title'], is_right, 'text in UTF-8')
    low, high = RATINGS
    is_right = (table['user_rating'] >= low) & (table['user_rating'] <= high)
    base.refuse_rows(name, 'user_rating', table['user_rating'], is_right, f'from {low} to {high}')
    for movie, genres in movie_genres.items():
        if not all(0 <= genre < num_genres for genre in genres):
            raise UserError(
                f'{name}: movie_genres of the movie with id {movie.decode()} is {genres}; they must be '
                f'from 0 to {num_genres - 1}. Mend or prepare the data set anew.'
            )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _split(users, config):
    """Row numbers of (training, evaluation), in order of time.

    Args:
      users: [ratings], who gave each, in order of time.
      config: `config.dataset`.
    """
    if config.split_by == 'time':
        # All ratings are one series.
        users = np.zeros(len(users), np.int32)
    counts = np.bincount(users)
    start, stop = _evaluated(counts, config.split, config.validation_slice)
    # Each rating's place among its user's own, from 0.
    order = np.argsort(users, kind='stable')
    place = np.empty(len(users), np.int64)
    place[order] = np.arange(len(users)) - (np.cumsum(counts) - counts)[users[order]]
    is_evaluated = (place >= start[users]) & (place < stop[users])
    return np.flatnonzero(place < start[users]), np.flatnonzero(is_evaluated)


def _evaluated(counts, split, validation_slice):
    """Where what is evaluated begins and ends in series of some lengths: [series], [series].

    What lies before is for training. All validation slices of a series are as long as its last one.
    """
    test_start = (counts * TRAIN_SHARE).astype(int)
    if split == 'test':
        return test_start, counts
    length = test_start - (test_start * TRAIN_SHARE).astype(int)
    stop = np.maximum(test_start - validation_slice * length, 0)
    return np.maximum(stop - length, 0), stop


def _vocabulary(numbers, count):
    """Numbers seen in training -> ([count] row of each number, rows), unseen ones out of vocabulary."""
    seen = np.unique(numbers)
    rows = np.full(count, OUT_OF_VOCABULARY, np.int32)
    rows[seen] = 1 + np.arange(len(seen))
    return rows, len(seen) + 1


def _unknown_words(bags):
    """The bag, [1, words], of a title of which no word is known."""
    bag = np.zeros_like(bags[:1])
    bag[0, OUT_OF_VOCABULARY] = 1
    return bag


def _title_bags(titles, movies, min_count):
    """[movies, words]: each title's words by share; words that few seen movies have share column 0."""
    words_of = [re.findall(r"[a-z0-9']+", title.lower()) for title in titles]
    counts = collections.Counter(word for i in np.unique(movies) for word in set(words_of[i]))
    kept = sorted(word for word, count in counts.items() if count >= min_count)
    column = {word: 1 + i for i, word in enumerate(kept)}
    bags = np.zeros((len(titles), len(kept) + 1), np.float32)
    for row, words in enumerate(words_of):
        for word in words:
            bags[row, column.get(word, OUT_OF_VOCABULARY)] += 1 / len(words)
    return bags
