"""The record of a data set: it restores the inputs of a model, and names what differs between two."""

import copy
import hashlib
import json
import pathlib

import jax
import numpy as np
import PIL.Image
import pytest

from td_jax.configs import images as images_config
from td_jax.data import SOURCES, cifar, description, prepared
from td_jax.data.base import Files, LabelledPool, one_example
from td_jax.errors import UserError


@pytest.fixture
def ratings_source(recommender):
    """A Source of ratings, and its config."""
    return recommender.source, recommender.config.dataset


def restore(source, config, task=None):
    """A Source that is restored from JSON and arrays alone."""
    description_json = json.loads(json.dumps(description.describe(source)))
    assert description.is_description(description_json)
    return description.restore(description_json, description.arrays_of(source), config, task or config)


# --- A data set without its examples ---------------------------------------------------------------


def test_every_data_set_is_restored():
    assert description.RESTORED.keys() == SOURCES.keys()


def test_ratings_are_shown_as_they_were(ratings_source):
    source, config = ratings_source
    restored_source = restore(source, config)
    examples = {'user': np.array([0, 1, 2, 3]), 'movie': np.array([4, 3, 1, 0])}
    expected, actual = (
        jax.tree.map(np.asarray, s.inputs(s.tables, examples, None)) for s in (source, restored_source)
    )
    assert list(actual) == list(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert list(restored_source.vocabularies.items()) == list(source.vocabularies.items())
    for field, ids in source.ids.items():
        assert restored_source.ids[field].column == ids.column
        np.testing.assert_array_equal(restored_source.ids[field].raw, ids.raw)
        np.testing.assert_array_equal(restored_source.ids[field].is_known, ids.is_known)
        np.testing.assert_array_equal(restored_source.pairs[field], source.train[field])
    one, other = one_example(source), one_example(restored_source)
    assert {k: (v.shape, v.dtype) for k, v in one.items()} == {
        k: (v.shape, v.dtype) for k, v in other.items()
    }


@pytest.mark.parametrize('size', [32, 16])
def test_images_are_shown_as_they_were(size, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    labels = np.arange(6) % 2
    monkeypatch.setattr(
        cifar,
        'read',
        lambda name: ({'train': pixels, 'test': pixels}, {'train': labels, 'test': labels}, ('a', 'b')),
    )
    config = images_config.get_config()
    config.dataset.update({'name': 'cifar10', 'image_size': size, 'image_mean': (0.1, 0.2, 0.3)})
    source = SOURCES['cifar10'](config.dataset, config.dataset)
    restored_source = restore(source, config.dataset)
    assert restored_source.label_names == ('a', 'b')
    assert restored_source.picture[:2] == source.picture[:2]
    float_pixels = pixels[:, :size, :size].astype(np.float32)
    inputs = [s.picture.inputs(float_pixels)['image'] for s in (source, restored_source)]
    np.testing.assert_array_equal(*inputs)
    # An example is kept at its own size; a model gets one of its input size.
    assert restored_source.inputs((), one_example(restored_source), None)['image'].shape == (1, size, size, 3)
    teacher = config.dataset.copy_and_resolve_references()
    teacher.image_mean = (0.5, 0.5, 0.5)
    other = restore(source, config.dataset, teacher)
    assert not np.allclose(other.picture.inputs(float_pixels)['image'], inputs[0])


def test_examples_are_not_there(ratings_source):
    restored_source = restore(*ratings_source)
    for stream in (restored_source.train, restored_source.evaluation):
        with pytest.raises(UserError, match='are not kept with a run'):
            stream.open(1, 0, 1)


# --- What has changed ------------------------------------------------------------------------------


def make_description(users=('ann', 'bo'), labels=('cat', 'dog'), **content):
    """A description of some ids, classes and parts."""
    return {
        'task': 'classification',
        'ids': {'user': {'column': 'reader', 'raw': list(users)}},
        'label_names': list(labels),
        'content': {'training examples': {'count': 9, 'sha256': 'x'}, **content},
    }


@pytest.mark.parametrize(
    ('now', 'changes'),
    [
        (make_description(), []),
        (make_description(images={'count': 1, 'md5': 'y', 'stamp': 'of today'}), ['images: new']),
        (make_description(users=('ann', 'cy')), ['reader: bo -> cy']),
        (make_description(users=('bo', 'ann')), ['reader: in another order']),
        (make_description(users=('ann',)), ['reader: 1 gone (bo)']),
        (
            make_description(users=('a', 'ann', 'b', 'bo', 'c', 'd')),
            ['reader: 4 added (a, b, c, ...)'],
        ),
        (
            make_description(users=('ann', 'x', 'y'), labels=('dog', 'kitten')),
            ['reader: 2 added (x, y), 1 gone (bo)', 'class: cat -> kitten'],
        ),
        (
            make_description(**{'training examples': {'count': 10, 'sha256': 'y'}}),
            ['training examples: 9 there, 10 here'],
        ),
        (
            make_description(**{'training examples': {'count': 9, 'sha256': 'y'}}),
            ['training examples: other content'],
        ),
        # If the numbers of ids change their meaning, so do all examples.
        (
            make_description(labels=('cat',), **{'training examples': {'count': 9, 'sha256': 'y'}}),
            ['class: 1 gone (dog)'],
        ),
        (
            make_description(TFDS={'text': 'a/1'}, b={}, c={}, d={}),
            ['TFDS: new', 'b: new', 'c: new', 'and 1 more'],
        ),
    ],
)
def test_what_has_changed_is_a_few_words(now, changes):
    assert description.differences(make_description(), now) == changes
    assert (description.digest(make_description()) == description.digest(now)) == (not changes)


def test_long_ids_are_cut():
    (change,) = description.differences(make_description(), make_description(users=('ann', 'b' * 60_000)))
    assert len(change) < 100


def test_when_files_were_touched_is_no_change():
    before, now = (make_description(images={'count': 1, 'md5': 'y', 'stamp': stamp}) for stamp in 'ab')
    assert description.differences(before, now) == []
    assert description.digest(before) == description.digest(now)


def test_every_part_of_ratings_counts(ratings_source):
    source, _ = ratings_source
    before = description.describe(source)
    for path in (('train', 'labels'), ('evaluation', 'user'), ('train', 'movie')):
        part = {**getattr(source, path[0])}
        part[path[1]] = part[path[1]].copy()
        part[path[1]][0] += 1
        now = description.describe(source._replace(**{path[0]: part}))
        (change,) = description.differences(before, now)
        assert change.endswith('examples: other content')
    tables = copy.deepcopy(source.tables)
    tables['bags']['genres'][0, 0] += 1
    assert description.differences(before, description.describe(source._replace(tables=tables))) == [
        'bags/genres: other content'
    ]


def test_what_a_seed_draws_counts(ratings_source):
    source, _ = ratings_source
    pools = [
        source._replace(train=LabelledPool(source.train, 3, lambda number, rows=rows: np.array(rows)))
        for rows in ([1, 2, 4], [1, 2, 5])
    ]
    before, same, now = (description.describe(pool) for pool in (pools[0], *pools))
    assert description.differences(before, same) == []
    assert description.differences(before, now) == ['training examples: other content']


@pytest.mark.parametrize('kept_gb', [1.0, 0.0])
def test_files_of_other_classes_count_where_they_decide_what_is_drawn(tmp_path, kept_gb):
    for i in range(36):
        file = tmp_path / 'abc'[i % 3] / f'{i}.png'
        file.parent.mkdir(exist_ok=True)
        PIL.Image.new('RGB', (4, 4), (i, i, i)).save(file)
    config = images_config.get_config().dataset
    config.update({'path': str(tmp_path), 'image_size': 4, 'classes': (0, 1), 'kept_gb': kept_gb})

    def describe_source():
        return description.describe(SOURCES['images'](config, config))

    for of_each, is_drawn in ((0, False), (3, True)):
        config.update({'examples_per_class': of_each, 'labelled_by': 'seed'})
        before = describe_source()
        assert description.differences(before, describe_source()) == []
        for i in range(20):
            PIL.Image.new('RGB', (4, 4)).save(tmp_path / 'c' / f'more-{i}.png')
        changes = description.differences(before, describe_source())
        assert any(change.startswith('files that a seed draws: ') for change in changes) == is_drawn
        assert bool(changes) == is_drawn
        for i in range(20):
            (tmp_path / 'c' / f'more-{i}.png').unlink()


def test_a_digest_of_arrays_is_of_names_types_shapes_and_elements():
    a = np.arange(6, dtype=np.int32)
    array_sets = [
        {'a': a},
        {'b': a},
        {'a': a.astype(np.int64)},
        {'a': a.reshape(2, 3)},
        {'a': a[::-1]},
        {'a': np.array(list('abc'), object)},
        {'a': np.array(list('abd'), object)},
    ]
    assert len({description.digest_arrays(arrays) for arrays in array_sets}) == len(array_sets)
    assert description.digest_arrays({'a': np.arange(12, dtype=np.int32)[::2]}) == description.digest_arrays(
        {'a': 2 * a}
    )


def test_what_tfds_says_is_what_its_file_says(cifar10_data):
    builder = prepared.builder('cifar10')
    stored = json.loads((pathlib.Path(builder.data_path) / 'dataset_info.json').read_text())
    expected = {'TFDS': f'cifar10/{stored["version"]}'}
    for split in stored['splits']:
        lengths = split['shardLengths']
        digest = hashlib.sha256(' '.join(lengths).encode()).hexdigest()[:8]
        expected[f'split {split["name"]}'] = (
            f'{sum(map(int, lengths))} examples of {split["numBytes"]} bytes in {len(lengths)} files '
            f'({digest})'
        )
    assert prepared.known_by(builder) == expected


def test_files_are_read_for_those_that_are_not_known(ratings_source, tmp_path):
    source = ratings_source[0]._replace(known_by={'images of a': Files(str(tmp_path), ('1', '2'))})
    assert description.files_to_read(source, []) == 2
    assert description.files_to_read(source, [make_description(**{'images of a': {'count': 2}})]) == 0
