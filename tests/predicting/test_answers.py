"""Predictions of a student for ids and images, against NumPy."""

import csv

import numpy as np
import PIL.Image
import pytest
from etils import epath

from td_jax.data import SOURCES
from td_jax.errors import UserError
from td_jax.predicting import answers
from td_jax.training import finished as finished_runs
from td_jax.training import train_step
from td_jax.training.run import train


@pytest.fixture
def recommender_run(recommender, monkeypatch):
    """The recommender, which replaces any run that is read."""
    monkeypatch.setattr(finished_runs, 'load', lambda folder, seed_index: recommender)
    return recommender


def read_rows(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


NUMBERS = {'196': 0, 'ann': 1, '7': 2, '242': 0, '302': 1, 'x y': 2, '50': 3}


@pytest.mark.parametrize('at_once', [answers.ROWS, 2])
def test_ratings_of_a_table(recommender_run, rating_by_hand, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(answers, 'ROWS', at_once)
    pairs = [('ann', 'x y'), ('7', '242'), ('196', '50'), ('bob', '302'), ('196', '242'), ('bob', 'none')]
    input_file = tmp_path / 'in.csv'
    input_file.write_text(
        'timestamp,movie_id,user_id\n' + ''.join(f'9,{movie},{user}\n' for user, movie in pairs)
    )
    report = answers.predict(epath.Path('run'), epath.Path(input_file), epath.Path(tmp_path / 'out.csv'))
    rows = read_rows(tmp_path / 'out.csv')
    assert list(rows[0]) == ['user_id', 'movie_id', 'rating', 'unknown']
    assert [(row['user_id'], row['movie_id']) for row in rows] == pairs
    expected = [
        rating_by_hand(recommender_run, NUMBERS.get(user), NUMBERS.get(movie)) for user, movie in pairs
    ]
    np.testing.assert_allclose([float(row['rating']) for row in rows], expected, atol=1e-5)
    # User 7 and movie 50 are in the data, but not in training.
    unknown = ['', 'user_id', 'movie_id', 'user_id', '', 'user_id movie_id']
    assert [row['unknown'] for row in rows] == unknown
    assert report.splitlines() == [
        str(tmp_path / 'out.csv'),
        '6 rows, 4 with an id that the student does not know: user_id 7 (line 3), movie_id 50 (line 4), '
        'user_id bob (line 5) and 2 more',
        'columns that are not read: timestamp',
    ]


def test_the_best_for_a_user_without_what_it_has_rated(recommender_run, rating_by_hand, tmp_path):
    run, target = epath.Path('run'), epath.Path(tmp_path / 'out.csv')
    # Movies 0 to 2 are in training; user 1 has rated 0 and 1 of them, and user 0 all.
    report = answers.recommend(run, 'ann', 10, target)
    rating = rating_by_hand(recommender_run, 1, 2)
    (row,) = read_rows(tmp_path / 'out.csv')
    assert (list(row), row['user_id'], row['movie_id']) == (['user_id', 'movie_id', 'rating'], 'ann', 'x y')
    np.testing.assert_allclose(float(row['rating']), rating, rtol=1e-5)
    assert report.splitlines() == ['movie_id  rating', f'x y       {row["rating"]}', str(target)]
    assert answers.recommend(run, '196', 10).splitlines() == [
        'movie_id  rating',
        'user_id 196 has rated all 3 that training shows: there is nothing left to recommend.',
    ]
    # An unknown user has rated nothing.
    ratings = {name: rating_by_hand(recommender_run, None, NUMBERS[name]) for name in ('242', '302', 'x y')}
    best = sorted(ratings, key=ratings.get, reverse=True)
    for user in ('7', 'bob'):
        _, first, second, note = answers.recommend(run, user, 2).splitlines()
        assert [first[:8].strip(), second[:8].strip()] == best[:2]
        assert note == f'user_id {user} is unknown to the student: these are for anybody it does not know.'


def test_files_that_are_there_stay(recommender_run, tmp_path):
    target = epath.Path(tmp_path / 'out.csv')
    target.write_text('mine')
    for call in (
        lambda: answers.predict(epath.Path('run'), epath.Path('in.csv'), target),
        lambda: answers.recommend(epath.Path('run'), 'ann', 3, target),
    ):
        with pytest.raises(UserError, match=r'out\.csv is there already; delete it or choose another'):
            call()
    assert target.read_text() == 'mine'


# --- Images ----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def digits_run(small_config, tmp_path_factory):
    """The workdir of a finished run on digits."""
    folder = tmp_path_factory.mktemp('digits')
    train(small_config(method='supervised', num_steps=6), folder)
    return folder


def test_classes_of_a_folder_of_images(digits_run, small_config, tmp_path, monkeypatch):
    """Test images as files; the last batch is smaller."""
    monkeypatch.setattr(answers, 'IMAGES', 32)
    config = small_config()
    source = SOURCES['digits'](config.dataset, config.dataset)
    images = source.evaluation['image'][:75].reshape(-1, 8, 8)
    (tmp_path / 'in').mkdir()
    for i, image in enumerate(images):
        PIL.Image.fromarray(np.round(image * 255).astype(np.uint8)).save(tmp_path / 'in' / f'{i:03}.png')
    for name in ('._000.png', 'Thumbs.db'):
        (tmp_path / 'in' / name).write_bytes(b'no image')
    (tmp_path / 'in' / 'loop').symlink_to('.')
    report = answers.predict(
        epath.Path(digits_run), epath.Path(tmp_path / 'in'), epath.Path(tmp_path / 'out.csv'), seed_index=1
    )
    assert report.splitlines() == [
        str(tmp_path / 'out.csv'),
        '75 images',
        'not read: Thumbs.db, loop/, 1 hidden',
    ]
    rows = read_rows(tmp_path / 'out.csv')
    assert list(rows[0]) == ['file', 'class', 'probability', 'p(5)', 'p(6)', 'p(7)', 'p(8)', 'p(9)']
    assert [row['file'] for row in rows] == [f'{i:03}.png' for i in range(75)]
    params = finished_runs.read_parameters(digits_run, 1)[train_step.STUDENT]
    x = np.round(images * 255).reshape(-1, 64) / 255
    for name in ('hidden_layers_0', 'hidden_layers_1', 'output_layer'):
        x = x @ params[name]['kernel'] + params[name]['bias']
        x = x if name == 'output_layer' else np.maximum(x, 0)
    expected = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    shares = [[float(row[f'p({digit})']) for digit in range(5, 10)] for row in rows]
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert [row['class'] for row in rows] == [str(5 + i) for i in expected.argmax(axis=1)]
    np.testing.assert_allclose([float(row['probability']) for row in rows], expected.max(axis=1), atol=1e-5)


def test_a_student_of_images_knows_no_users(digits_run):
    with pytest.raises(UserError, match=r'^--user is for a recommender, and .* is of digits 5, 6, 7'):
        answers.recommend(epath.Path(digits_run), 'ann', 3)


def test_a_data_set_that_says_nothing_of_what_goes_in_is_refused(recommender, tmp_path, monkeypatch):
    run_without_ids = recommender._replace(source=recommender.source._replace(ids={}))
    monkeypatch.setattr(finished_runs, 'load', lambda folder, seed_index: run_without_ids)
    with pytest.raises(UserError, match=r'^the data set of run, movielens.*, says nothing of ids or images'):
        answers.predict(epath.Path('run'), epath.Path('in.csv'), epath.Path(tmp_path / 'out.csv'))
