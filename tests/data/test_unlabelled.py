"""Training examples without labels: which are taken, and how they are read."""

import numpy as np
import PIL.Image
import pytest

from td_jax.configs import digits as digits_config
from td_jax.configs import images as images_config
from td_jax.configs import movielens as movielens_config
from td_jax.data import base, description, images, movielens, unlabelled
from td_jax.errors import UserError
from td_jax.training import assembly
from tests.conftest import RATED


def load(config):
    """The student's data of a config."""
    source = assembly.load_source(config, config.dataset)
    base.check(source)
    return source


def make_digits_config(**changes):
    config = digits_config.get_config()
    config.dataset.update({'unlabelled': 'rest', **changes})
    return config


@pytest.fixture
def photos(tmp_path):
    """A folder of 30 images in each of two classes, pixels of one number each."""
    for number in range(60):
        folder = tmp_path / 'photos' / 'ab'[number // 30]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f'{number}.png')
    return tmp_path / 'photos'


def make_folder_config(photos, **changes):
    config = images_config.get_config()
    config.dataset.update({'path': str(photos), 'image_size': 4, 'examples_per_class': 5})
    config.dataset.update({'unlabelled': 'rest', **changes})
    config.model.patch = config.teacher.model.patch = 4
    return config


@pytest.fixture
def some_config(request, photos):
    return make_digits_config() if request.param == 'digits' else make_folder_config(photos)


BOTH = pytest.mark.parametrize('some_config', ['digits', 'folder'], indirect=True)


@BOTH
@pytest.mark.parametrize('labelled_by', ['seed', 'first'])
def test_the_rest_is_what_has_no_label(some_config, labelled_by):
    some_config.dataset.labelled_by = labelled_by
    source = load(some_config)
    everything = np.arange(base.count(source.train.examples))
    assert source.unlabelled.count == len(everything) - source.train.count
    rows_by_seed = []
    for number in (1, 2):
        rows = source.train.rows(number), source.unlabelled.rows(number)
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), everything)
        rows_by_seed.append(rows)
    assert np.array_equal(rows_by_seed[0][1], rows_by_seed[1][1]) == (labelled_by == 'first')
    # The labelled examples and their order do not change.
    plain_config = some_config.copy_and_resolve_references()
    plain_config.dataset.unlabelled = ''
    plain = load(plain_config)
    own = base.take(source.train.examples, source.train.rows(1))
    expected = plain.train if labelled_by == 'first' else base.take(plain.train.examples, plain.train.rows(1))
    for name, array in expected.items():
        np.testing.assert_array_equal(own[name], array)
    # They are an option of training, so the data are the same.
    if labelled_by == 'seed':
        assert description.digest(description.describe(source)) == description.digest(
            description.describe(plain)
        )


def test_a_number_takes_the_lowest_lots_by_hand(monkeypatch):
    """The lowest lots of all classes together; those of the validation slice come last."""
    monkeypatch.setattr(base, 'derive_seed', lambda number, name: (number, name) == (9, 'labelled') and 123)
    labels, places = np.array([0, 1, 0, 1, 0, 1, 1]), np.array([0, 1, 2, 3, 5, 7, 8])
    # Class 0 has the lots 125, 40 and 149; class 1 has 9, 34, 51 and 151.
    for held_back, expected in (([], [3, 5, 0, 4, 6]), ([3, 4], [5, 0, 6, 3, 4])):
        pool = base.make_labelled_pool({'labels': labels}, 1, places, np.isin(np.arange(7), held_back))
        assert pool.rows(9).tolist() == [1, 2]
        assert pool.rest(9).tolist() == expected
        config = make_digits_config(unlabelled='3').dataset
        source = base.Source('own', pool, {}, 'classification', (), {}, (), None)
        assert unlabelled.add(source, config).unlabelled.rows(9).tolist() == sorted(expected[:3])


def test_a_search_has_the_examples_of_training_for_the_test():
    images_of = {}
    for split in ('validation', 'test'):
        source = load(make_digits_config(unlabelled='100', split=split))
        rows = source.unlabelled.rows(3)
        images_of[split] = {image.tobytes() for image in source.train.examples['image'][rows]}
    assert len(images_of['test']) > 90
    assert images_of['validation'] == images_of['test']


@pytest.fixture
def more_photos(tmp_path):
    """Images without labels, one in a subfolder, and what is no image."""
    folder = tmp_path / 'more'
    (folder / 'inside').mkdir(parents=True)
    PIL.Image.fromarray(np.full((6, 9, 3), 51, np.uint8)).save(folder / 'b.png')
    PIL.Image.fromarray(np.full((7, 5), 102, np.uint8)).save(folder / 'inside' / 'a.png')
    (folder / 'notes.txt').write_text('none')
    return folder


def test_images_of_a_folder_are_resized_as_those_with_labels(photos, more_photos):
    source = load(make_folder_config(photos, unlabelled=str(more_photos)))
    assert source.unlabelled.count == 2
    expected = np.array([51, 102], np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(source.unlabelled.examples['image'], expected)
    assert source.note.endswith('more holds what is not read: notes.txt')
    # A teacher with another resolution gets its own images of them.
    config = make_folder_config(photos, unlabelled=str(more_photos))
    config.teacher.dataset.image_size = 8
    fields = load(config).unlabelled.examples
    assert {name: array.shape for name, array in fields.items()} == {
        'image': (2, 4, 4, 3),
        'teacher_image': (2, 8, 8, 3),
    }
    # A changed file is noticed.
    before = description.describe(source)
    PIL.Image.fromarray(np.full((6, 9, 3), 52, np.uint8)).save(more_photos / 'b.png')
    now = description.describe(load(make_folder_config(photos, unlabelled=str(more_photos))), [before])
    assert description.differences(before, now) == ['examples without labels: other content']


def test_digits_of_a_folder_are_as_a_prediction_reads_them(more_photos):
    source = load(make_digits_config(unlabelled=str(more_photos)))
    np.testing.assert_allclose(
        source.unlabelled.examples['image'], np.array([[0.2], [0.4]]) * np.ones((1, 64)), rtol=1e-6
    )


def test_images_that_are_kept_in_their_size_get_others_of_that_size(more_photos):
    config = images_config.get_config()
    config.dataset.update({'name': 'cifar10', 'unlabelled': str(more_photos), 'image_size': 8})
    small_images = {'image': np.zeros((3, 16, 16, 3), np.uint8), 'labels': np.array([0, 1, 0])}
    source = images.source_in_memory(
        'cifar10',
        ('a', 'b'),
        (small_images, small_images),
        config.dataset,
        config.dataset,
        contents=(),
        held_back=0,
    )
    examples = unlabelled.add(source, config.dataset).unlabelled.examples
    assert examples['image'].shape == (2, 16, 16, 3)
    assert examples['image'][1].min() == examples['image'][1].max() == 102


def make_ratings_config(monkeypatch, value):
    monkeypatch.setattr(movielens, 'read_ratings', lambda *size: RATED)
    config = movielens_config.get_config()
    config.dataset.update({'genre': 'all', 'unlabelled': value, 'split_by': 'time'})
    return config


def test_pairs_of_ratings_are_those_that_nobody_rated(monkeypatch):
    """Users 0 and 1 and movies 0 to 2 are known; user 1 has not rated movie 2."""
    source = load(make_ratings_config(monkeypatch, '1'))
    pairs = source.unlabelled.examples
    assert {name: array.tolist() for name, array in pairs.items()} == {'user': [1], 'movie': [2]}
    assert {name: array.dtype for name, array in pairs.items()} == {
        name: array.dtype for name, array in source.train.items() if name != 'labels'
    }
    with pytest.raises(UserError, match=r'takes 2 examples, but 1 pairs of known .* a number from 1 to 1\.$'):
        load(make_ratings_config(monkeypatch, '2'))
    with pytest.raises(UserError, match=r'^dataset\.unlabelled is rest, which is for classes; of ratings'):
        load(make_ratings_config(monkeypatch, 'rest'))


def test_drawn_pairs_are_different_and_unrated():
    known = np.array([True, True, False, True, True, True, True])
    ids = {
        'user': base.Ids('user', np.arange(7).astype(str), known),
        'item': base.Ids('item', np.arange(7).astype(str), known),
    }
    rng = np.random.default_rng(1)
    train = {name: rng.choice(np.flatnonzero(known), 12).astype(np.int32) for name in ids}
    # An evaluation may have unknown ids, which are not drawn.
    evaluation = {'user': np.array([0, 2], np.int32), 'item': np.array([6, 1], np.int32)}
    source = base.Source('own', train, evaluation, 'regression', (), {}, (), None, ids=ids)
    rated = {*zip(*map(np.ndarray.tolist, train.values()), strict=True), (0, 6)}
    everything = {(u, i) for u in np.flatnonzero(known) for i in np.flatnonzero(known)} - rated
    config = movielens_config.get_config().dataset
    for count in (1, 5, len(everything)):
        config.unlabelled = str(count)
        pairs = unlabelled.add(source, config).unlabelled.examples
        drawn_pairs = list(zip(*map(np.ndarray.tolist, pairs.values()), strict=True))
        assert len(set(drawn_pairs)) == count
        assert set(drawn_pairs) <= everything
    # A few pairs are spread over users and items.
    config.unlabelled = '12'
    pairs = unlabelled.add(source, config).unlabelled.examples
    assert all(len(set(column.tolist())) > 3 for column in pairs.values())


def test_pairs_of_a_table_are_read_without_their_ratings(monkeypatch, tmp_path):
    path = tmp_path / 'pairs.csv'
    path.write_text('movie_id,rating,user_id\n302,not a number,7\nnew,,196\n')
    source = load(make_ratings_config(monkeypatch, str(path)))
    # Ids are numbered in order; the number after the last stands for an unknown id.
    pairs = {name: array.tolist() for name, array in source.unlabelled.examples.items()}
    assert pairs == {'user': [2, 0], 'movie': [1, 4]}
    assert source.note == 'pairs.csv has columns that are not read: rating'
    path.write_text('movie_id,user_id\n302,\n')
    with pytest.raises(UserError, match=r'pairs\.csv, line 2: user_id is empty\.$'):
        load(make_ratings_config(monkeypatch, str(path)))
    path.write_text('movie_id,user_id\n')
    with pytest.raises(UserError, match=r'pairs\.csv has a first line and no pairs\.$'):
        load(make_ratings_config(monkeypatch, str(path)))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'examples_per_class': 0},
            'is rest, but all training examples of digits .* set dataset.examples_per',
        ),
        (
            {'unlabelled': '9999'},
            r'takes 9999 examples, but dataset.examples_per_class leaves \d+ .* from 1 to',
        ),
        ({'unlabelled': '0'}, r'takes 0 examples, but .*; name a number from 1 to \d+\.$'),
        ({'unlabelled': '9' * 5000}, r'has 5000 digits; name fewer examples\.$'),
        (
            {'unlabelled': 'no/folder'},
            "no/folder is not there; name 'rest', a number of examples, or a folder",
        ),
        ({'unlabelled': '-3'}, "-3 is not there; name 'rest'"),
        ({'unlabelled': '.'}, 'has no images in it; name'),
    ],
)
def test_what_cannot_be_is_refused(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f'^dataset.unlabelled .*{message}'):
        load(make_digits_config(**changes))


def test_a_stream_is_refused(photos):
    with pytest.raises(
        UserError, match=r'^dataset\.unlabelled is rest, .* photos a, b is streamed: raise dataset\.kept_gb'
    ):
        load(make_folder_config(photos, kept_gb=0.0))


def test_what_a_caller_brings_has_the_fields_of_its_training_examples():
    examples = {'x': np.zeros((4, 2), np.float32), 'labels': np.zeros(4, np.int32)}
    source = base.Source(
        'own', examples, examples, 'classification', ('a', 'b'), {}, (), lambda tables, x, key: {'x': x['x']}
    )

    def check(fields, count=3):
        base.check(source._replace(unlabelled=base.Unlabelled(count, fields)))

    check({'x': np.zeros((3, 2), np.float32)})
    for fields, message in (
        ({'x': np.zeros((3, 5), np.float32)}, r'x is float32 \[5\], but float32 \[2\] in those with labels'),
        ({'y': np.zeros((3, 2), np.float32)}, r'x is not there, but float32 \[2\]'),
        ({'x': np.zeros((2, 2), np.float32)}, 'x has 2 rows, but count is 3'),
        ({'x': np.full((3, 2), np.nan, np.float32)}, 'x of row 0 holds nan'),
    ):
        with pytest.raises(UserError, match=f'^dataset own, examples without labels: {message}'):
            check(fields)
    with pytest.raises(UserError, match='brings no examples without labels'):
        config = make_digits_config(unlabelled='folder', name='mine').dataset
        unlabelled.add(source, config)


def test_a_teacher_has_no_examples_without_labels():
    config = make_digits_config()
    config.teacher.dataset.examples_per_class = 5
    assert assembly.load_source(config, config.teacher.dataset).unlabelled is None
    config.method = 'supervised'
    assert load(config).unlabelled is None
