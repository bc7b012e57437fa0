"""MovieLens: the split and the inputs, against the ratings as TFDS has them."""

import collections
import functools
import itertools
import re
import socket

import jax
import numpy as np
import pytest

from td_jax.configs import movielens as movielens_config
from td_jax.data import movielens, prepared
from td_jax.errors import UserError

# Ratings in the first 90% and in the last 10%, by genre; the eight densest in the paper's order.
COUNTS = {
    'all': (90_000, 10_000),
    'Drama': (35_771, 4_124),
    'Comedy': (26_898, 2_934),
    'Action': (23_120, 2_469),
    'Thriller': (19_648, 2_224),
    'Romance': (17_478, 1_983),
    'Adventure': (12_475, 1_278),
    'Sci-Fi': (11_527, 1_203),
    'War': (8_459, 939),
}


def load(genre='all', split='test', **changes):
    config = movielens_config.get_config()
    config.dataset.update({'genre': genre, 'split': split, **changes})
    return movielens.load(config.dataset, config.dataset)


def compute_inputs(source, examples, key=None):
    return jax.tree.map(np.asarray, source.inputs(source.tables, examples, key))


@functools.cache
def read_raw_ratings():
    """(timestamp, user id, movie id, rating, title) of every rating, read and sorted by Python."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def get_value(feature):
        return getattr(feature, feature.WhichOneof('kind')).value[0]

    fields = ('timestamp', 'user_id', 'movie_id', 'user_rating', 'movie_title')
    files = tfds.builder('movielens/100k-ratings').info.splits['train'].filepaths
    batches = tf.data.TFRecordDataset([str(file) for file in files]).batch(4096).as_numpy_iterator()
    records = itertools.chain.from_iterable(batches)
    features = (tf.train.Example.FromString(record).features.feature for record in records)
    rows = ([get_value(feature[field]) for field in fields] for feature in features)
    return sorted((time, int(user), int(movie), *rest) for time, user, movie, *rest in rows)


# --- The real ratings ------------------------------------------------------------------------------


@pytest.mark.usefixtures('movielens_data')
@pytest.mark.parametrize('genre', COUNTS)
def test_ratings_of_each_genre_are_counted(genre):
    source = load(genre)
    assert (len(source.train['labels']), len(source.evaluation['labels'])) == COUNTS[genre]


@pytest.mark.usefixtures('movielens_data')
def test_the_validation_slice_is_the_last_tenth_of_training():
    test_run, validation_run = load(), load(split='validation')
    assert len(validation_run.train['labels']) == 81_000
    assert len(validation_run.evaluation['labels']) == 9_000
    for field in ('user', 'movie', 'labels'):
        joined = np.concatenate([validation_run.train[field], validation_run.evaluation[field]])
        np.testing.assert_array_equal(joined, test_run.train[field])


@pytest.mark.usefixtures('movielens_data')
def test_examples_are_in_order_of_time_then_user_then_movie():
    _, users, movies, ratings, titles = zip(*read_raw_ratings(), strict=True)
    source = load()
    columns = {
        name: np.concatenate([source.train[name], source.evaluation[name]])
        for name in ('user', 'movie', 'labels')
    }
    np.testing.assert_array_equal(np.unique(users)[columns['user']], users)
    np.testing.assert_array_equal(np.unique(movies)[columns['movie']], movies)
    np.testing.assert_array_equal(columns['labels'], ratings)
    assert set(columns['labels']) == {1, 2, 3, 4, 5}
    by_library = movielens.read_ratings('100k')
    assert [by_library.titles[movie] for movie in columns['movie']] == [title.decode() for title in titles]


@pytest.mark.usefixtures('movielens_data')
def test_what_training_never_saw_is_out_of_vocabulary():
    source = load()
    inputs = compute_inputs(source, source.evaluation)
    assert np.sum(inputs['user'] == 0) == 7_114
    assert len(np.unique(source.evaluation['user'][inputs['user'] == 0])) == 76
    assert np.sum(inputs['movie'] == 0) == 128
    # The same from the ratings themselves.
    train, evaluation = read_raw_ratings()[:90_000], read_raw_ratings()[90_000:]
    for column, name in ((1, 'user'), (2, 'movie')):
        known = {rating[column] for rating in train}
        is_new = np.array([rating[column] not in known for rating in evaluation])
        np.testing.assert_array_equal(inputs[name] == 0, is_new)


@pytest.mark.usefixtures('movielens_data')
@pytest.mark.parametrize(('genre', 'split'), [('all', 'test'), ('War', 'test'), ('War', 'validation')])
def test_the_vocabulary_is_that_of_the_tasks_own_training(genre, split):
    source = load(genre, split)
    inputs = compute_inputs(source, source.train)
    for name in ('user', 'movie'):
        # Every row from 1 on occurs in training; row 0 is for unknown ids.
        np.testing.assert_array_equal(np.unique(inputs[name]), np.arange(1, source.vocabularies[name]))
        # Each known id has one row.
        pairs = set(zip(source.train[name].tolist(), inputs[name].tolist(), strict=True))
        assert len(pairs) == source.vocabularies[name] - 1 == len(np.unique(source.train[name]))
    assert np.sum(inputs['title_words'].sum(axis=0)[1:] == 0) == 0


@pytest.mark.usefixtures('movielens_data')
def test_movies_are_distinguished_by_id_and_not_by_title():
    ratings = movielens.read_ratings('100k')
    assert len(ratings.titles) == 1_682
    movies_of = collections.defaultdict(set)
    for _, _, movie, _, title in read_raw_ratings():
        movies_of[title.decode()].add(movie)
    shared = {title for title, movies in movies_of.items() if len(movies) > 1}
    assert len(shared) == 18
    assert {t for t, count in collections.Counter(ratings.titles).items() if count > 1} == shared
    rows = load().tables['movie_rows']
    for title in shared:
        rows_of_title = [
            rows[movie] for movie, name in enumerate(ratings.titles) if name == title and rows[movie]
        ]
        assert len(set(rows_of_title)) == len(rows_of_title)


@pytest.mark.usefixtures('movielens_data')
def test_bags_add_up_to_one():
    source = load('Comedy')
    comedy = movielens.read_ratings('100k').genre_names.index('Comedy')
    for examples in (source.train, source.evaluation):
        inputs = compute_inputs(source, examples)
        for name in ('title_words', 'genres'):
            assert inputs[name].shape == (len(examples['labels']), source.vocabularies[name])
            np.testing.assert_allclose(inputs[name].sum(axis=1), 1, rtol=1e-5)
        # A movie of k genres has 1/k of each.
        np.testing.assert_allclose(inputs['genres'].max(1) * (inputs['genres'] > 0).sum(1), 1, rtol=1e-5)
        assert np.all(inputs['genres'][:, comedy] > 0)


@pytest.mark.usefixtures('movielens_data')
def test_a_key_hides_ids_at_their_rates_and_nothing_else():
    source = load(user_oov_rate=0.3, movie_oov_rate=0.07)
    plain = compute_inputs(source, source.train)
    varied = compute_inputs(source, source.train, jax.random.key(3))
    hidden = {name: varied[name] == 0 for name in ('user', 'movie')}
    # 90,000 draws: four standard deviations are below 0.0062.
    np.testing.assert_allclose([hidden['user'].mean(), hidden['movie'].mean()], [0.3, 0.07], atol=0.0062)
    np.testing.assert_allclose((hidden['user'] & hidden['movie']).mean(), 0.3 * 0.07, atol=0.002)
    for name, mask in hidden.items():
        np.testing.assert_array_equal(varied[name][~mask], plain[name][~mask])
    for name in ('title_words', 'genres'):
        np.testing.assert_array_equal(varied[name], plain[name])
    other = compute_inputs(source, source.train, jax.random.key(4))
    assert np.any(other['user'] != varied['user'])


@pytest.mark.usefixtures('movielens_data')
@pytest.mark.parametrize(('rate', 'hidden'), [(0.0, False), (0.999999, True)])
def test_rates_at_their_ends(rate, hidden):
    source = load('War', user_oov_rate=rate, movie_oov_rate=rate)
    varied = compute_inputs(source, source.evaluation, jax.random.key(0))
    plain = compute_inputs(source, source.evaluation)
    for name in ('user', 'movie'):
        np.testing.assert_array_equal(varied[name], 0 * plain[name] if hidden else plain[name])


@pytest.mark.usefixtures('movielens_data')
def test_a_teacher_reads_a_students_examples_with_its_own_rows():
    teacher, student = load(), load('War')
    student_inputs, teacher_inputs = (
        compute_inputs(student, student.evaluation),
        compute_inputs(teacher, student.evaluation),
    )
    np.testing.assert_array_equal(student_inputs['genres'], teacher_inputs['genres'])
    # The teacher has a row of its own for every user of its training period, the student for its own.
    known = sorted({user for _, user, *_ in read_raw_ratings()[:90_000]})
    users = np.unique([user for _, user, *_ in read_raw_ratings()])[student.evaluation['user']]
    expected = [known.index(user) + 1 if user in known else 0 for user in users]
    np.testing.assert_array_equal(teacher_inputs['user'], expected)
    assert np.sum(teacher_inputs['user'] == 0) < np.sum(student_inputs['user'] == 0)


@pytest.mark.usefixtures('movielens_data')
def test_a_genre_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(UserError, match=r"dataset\.genre 'Dramma' is not known.*all.*Action.*Western"):
        load('Dramma')


@pytest.mark.usefixtures('movielens_data')
@pytest.mark.parametrize('genre', ['IMAX', '(no genres listed)'])
def test_a_genre_without_ratings_is_refused(genre):
    with pytest.raises(UserError, match='has no ratings in the training part'):
        load(genre)


# --- By hand, without data -------------------------------------------------------------------------


@functools.cache
def make_small_ratings(size):
    """20 ratings of user 0, then 2 of user 1; movies 0 and 1 in turn, of which 1 alone is a War movie."""
    return movielens.Ratings(
        user=np.array([0] * 20 + [1] * 2, np.int32),
        movie=np.array([0, 1] * 11, np.int32),
        labels=np.arange(22, dtype=np.float32) % 5 + 1,
        user_ids=np.array(['7', '11']),
        movie_ids=np.array(['5', '3']),
        titles=['one', 'two'],
        genres=np.array([[1, 0], [0, 1]], np.float32),
        genre_names=('Drama', 'War'),
    )


def test_units_are_users_and_groups_who_is_known(monkeypatch):
    monkeypatch.setattr(movielens, 'read_ratings', make_small_ratings)
    source = load('War', split_by='time')
    # int(22 * 0.9) is 19: rows 19, 20 and 21 are the test, of which 19 and 21 are of a War movie.
    np.testing.assert_array_equal(source.units, [0, 1])
    np.testing.assert_array_equal(source.groups['known_users'], [True, False])
    np.testing.assert_array_equal(source.groups['unknown_users'], [False, True])
    np.testing.assert_array_equal(compute_inputs(source, source.evaluation)['user'], [1, 0])
    # By user: user 0's last two ratings, and the last one of user 1, whose first, row 20, is no War movie.
    source = load('War', split_by='user')
    np.testing.assert_array_equal(source.evaluation['labels'], [19 % 5 + 1, 21 % 5 + 1])
    np.testing.assert_array_equal(source.groups['known_users'], [True, False])
    source = load(split_by='user')
    np.testing.assert_array_equal(source.units, [0, 0, 1])
    np.testing.assert_array_equal(source.groups['known_users'], [True] * 3)


def test_an_id_that_is_not_in_the_data_has_a_number_of_its_own(monkeypatch):
    monkeypatch.setattr(movielens, 'read_ratings', make_small_ratings)
    source = load('War', split_by='time', min_title_word_count=1)
    users, movies = source.ids['user'], source.ids['movie']
    assert (users.column, users.raw.tolist(), users.is_known.tolist()) == (
        'user_id',
        ['7', '11'],
        [True, False],
    )
    assert (movies.column, movies.raw.tolist()) == ('movie_id', ['5', '3'])
    # Movie 0 is no War movie, so its row is never trained; its title and genres are known.
    assert movies.is_known.tolist() == [False, True]
    inputs = compute_inputs(source, {'user': np.array([0, 1, 2]), 'movie': np.array([0, 1, 2])})
    np.testing.assert_array_equal(inputs['user'], [1, 0, 0])
    np.testing.assert_array_equal(inputs['movie'], [0, 1, 0])
    # `two` is the only known word of a title.
    np.testing.assert_array_equal(inputs['title_words'], [[1, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(inputs['genres'], [[1, 0], [0, 1], [0, 0]])


@pytest.mark.usefixtures('movielens_data')
def test_the_ids_are_those_of_the_ratings():
    source = load()
    first_rows = source.train['user'][:100], source.train['movie'][:100]
    raw_ids = [source.ids[field].raw[rows] for field, rows in zip(('user', 'movie'), first_rows, strict=True)]
    assert list(zip(*raw_ids, strict=True)) == [
        (str(user), str(movie)) for _, user, movie, *_ in read_raw_ratings()[:100]
    ]


@pytest.mark.usefixtures('movielens_data')
def test_each_users_own_last_tenth():
    config = {'split_by': 'user', 'genre': 'all'}
    test_run, validation_run = load(**config), load(split='validation', **config)
    of_user = collections.Counter(user for _, user, *_ in read_raw_ratings())
    expected = [of_user[user] - int(of_user[user] * 0.9) for user in sorted(of_user)]
    np.testing.assert_array_equal(np.bincount(test_run.units), expected)
    assert test_run.groups['known_users'].all()
    # Training of a test run is training and validation of a search.
    both = [validation_run.train, validation_run.evaluation]
    rows = np.concatenate([part['user'] for part in both])
    np.testing.assert_array_equal(np.bincount(rows), np.bincount(test_run.train['user']))


@pytest.mark.usefixtures('movielens_data')
def test_known_users_of_drama():
    """In the temporal split 71% of the test ratings of Drama are by users without a rating in training."""
    source = load('Drama')
    share = source.groups['unknown_users'].mean()
    assert share == pytest.approx(0.71, abs=0.005)
    np.testing.assert_array_equal(source.groups['known_users'], ~source.groups['unknown_users'])
    known = np.isin(source.evaluation['user'], source.train['user'])
    np.testing.assert_array_equal(source.groups['known_users'], known)


def test_data_that_is_missing_says_how_to_get_it(monkeypatch, tmp_path):
    def fail_to_resolve(*args, **kwargs):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', fail_to_resolve)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    # TFDS reads the variable once, when it is imported.
    monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(tmp_path))
    with pytest.raises(UserError) as error_info:
        prepared.builder('movielens/100k-ratings')
    message = str(error_info.value)
    assert str(tmp_path) in message
    assert '`tfds build movielens/100k-ratings`' in message
    assert 'TFDS_DATA_DIR' in message
    assert not list(tmp_path.iterdir())


# --- Invalid ratings -------------------------------------------------------------------------------


def write_and_read_ratings(write_prepared, changes, count=20, size='100k'):
    """Writes ratings, the fourth of them with changed fields, and reads them."""
    import tensorflow_datasets as tfds

    has_people = size in ('100k', '1m')
    features = {
        'user_id': tfds.features.Tensor(shape=(), dtype=np.bytes_),
        'movie_id': tfds.features.Tensor(shape=(), dtype=np.bytes_),
        'movie_title': tfds.features.Tensor(shape=(), dtype=np.bytes_),
        'movie_genres': tfds.features.Sequence(tfds.features.ClassLabel(num_classes=30)),
        'timestamp': np.int64,
        'user_rating': np.float32,
    }
    # Features that are not read, and their values.
    rest = {
        'bucketized_user_age': (np.float32, 1.0),
        'user_gender': (np.bool_, True),
        'user_occupation_label': (np.int64, 1),
        'user_occupation_text': (tfds.features.Text(), 'cook'),
        'user_zip_code': (tfds.features.Text(), '12345'),
    }
    if size == '100k':
        rest['raw_user_age'] = (np.float32, 1.0)
    if has_people:
        features |= {name: feature for name, (feature, _) in rest.items()}
    examples = [
        {
            'user_id': str(number % 4).encode(),
            'movie_id': str(number % 5).encode(),
            'movie_title': f'Film {number % 5} (1990)'.encode(),
            'movie_genres': [number % 5],
            'timestamp': number,
            'user_rating': 1.0 + number % 5,
            **({name: value for name, (_, value) in rest.items()} if has_people else {}),
        }
        for number in range(count)
    ]
    if count:
        examples[3] |= changes
    module, version = 'structured.movielens', '0.1.1'
    write_prepared(movielens.name_of(size), version, module, features, {'train': examples})
    # The function behind the cache, which the other tests fill.
    return movielens.read_ratings.__wrapped__(size)


def test_ratings_that_are_written_are_read(write_prepared):
    ratings = write_and_read_ratings(write_prepared, {'movie_title': 'Amélie'.encode()})
    assert ratings.labels.tolist() == [1.0 + number % 5 for number in range(20)]
    assert ratings.titles[3] == 'Amélie'
    assert ratings.genres.sum() == 5


@pytest.mark.parametrize('size', movielens.SIZES)
def test_every_size_is_read_by_its_name(write_prepared, monkeypatch, size):
    """The lowest rating is half a star in the sizes that have half stars."""
    low, _ = movielens.SIZES[size]
    small_set = write_and_read_ratings(write_prepared, {'user_rating': low}, size=size)
    assert small_set.labels[3] == low
    sizes_read = []
    monkeypatch.setattr(movielens, 'read_ratings', lambda size: sizes_read.append(size) or small_set)
    source = load(movielens=size)
    assert sizes_read == [size]
    assert source.name == f'movielens/{size}-ratings all'
    assert len(source.train['labels']) == 18
    if low == 1:
        with pytest.raises(UserError, match=r'user_rating of row \d+ is 0\.5; it must be from 1 to 5'):
            movielens._check('dataset x', make_half_star_fields(), {}, 1, movielens.SIZES[size])


def make_half_star_fields():
    fields = {'user_id': b'1', 'movie_id': b'2', 'movie_title': b'a', 'user_rating': 0.5}
    return {name: np.array([value]) for name, value in fields.items()}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'user_id': b'anna'}, r"user_id of row \d+ is b'anna'; it must be a whole number in digits"),
        ({'movie_id': b'-3'}, r"movie_id of row \d+ is b'-3'; it must be a whole number in digits"),
        ({'movie_id': b'9' * 30}, r'movie_id of row \d+ is b.9+.* must be a whole number in digits'),
        ({'movie_title': 'Amélie'.encode('latin-1')}, r"movie_title of row \d+ is b'Am\\xe9lie'; .* UTF-8"),
        ({'user_rating': np.nan}, r'user_rating of row \d+ is nan; it must be from 1 to 5'),
        ({'user_rating': np.inf}, r'user_rating of row \d+ is inf; it must be from 1 to 5'),
        ({'user_rating': 0.0}, r'user_rating of row \d+ is 0\.0; it must be from 1 to 5'),
        (
            {'movie_id': b'77', 'movie_genres': [2, 25]},
            r'movie_genres of the movie with id 77 is \[2, 25\]; .* from 0 to 20',
        ),
    ],
)
def test_a_rating_that_is_none_is_refused_by_field_and_row(write_prepared, changes, message):
    with pytest.raises(UserError, match=f'^dataset movielens/100k-ratings: {message}') as error_info:
        write_and_read_ratings(write_prepared, changes)
    assert '\n' not in str(error_info.value)
    row = re.search(r'of row (\d+)', str(error_info.value))
    # TFDS shuffles what it writes.
    assert row is None or 0 <= int(row[1]) < 20


def test_no_ratings_at_all_are_refused(write_prepared):
    with pytest.raises(UserError, match=r'^dataset movielens/100k-ratings [^\n]*$'):
        write_and_read_ratings(write_prepared, {}, count=0)


def test_ratings_that_are_damaged_are_refused(write_prepared):
    write_and_read_ratings(write_prepared, {})
    import tensorflow_datasets as tfds

    place = tfds.builder(movielens.name_of('100k')).data_path
    (file,) = place.glob('*.tfrecord*')
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match=r'^dataset movielens/100k-ratings cannot be read: [^\n]+$'):
        movielens.read_ratings.__wrapped__('100k')


@pytest.mark.parametrize(
    ('original', 'replacement', 'message'),
    [
        ('"20"', '"21"', r'cannot be read: .* 21 .* 20'),
        ('"tfrecord"', '"array_record"', r'in the format array_record; .*--file_format=tfrecord'),
    ],
)
def test_ratings_that_are_not_what_their_folder_says_are_refused(
    write_prepared, original, replacement, message
):
    """Fewer records than the folder says, or another format."""
    write_and_read_ratings(write_prepared, {})
    import tensorflow_datasets as tfds

    file = tfds.builder(movielens.name_of('100k')).data_path / 'dataset_info.json'
    text = file.read_text()
    assert text.count(original) == 1
    file.write_text(text.replace(original, replacement))
    with pytest.raises(UserError, match=message) as error_info:
        movielens.read_ratings.__wrapped__('100k')
    assert '\n' not in str(error_info.value)
