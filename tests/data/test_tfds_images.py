"""Images of TFDS by name: data sets that the tests write in its format, and what is refused."""

import io

import numpy as np
import PIL.Image
import pytest

from td_jax.configs import images as images_config
from td_jax.data import base, prepared, tfds_images
from td_jax.errors import UserError

SIDE = 6
NAME = 'own_flowers'


def make_picture(number, height=SIDE, width=SIDE, channels=3):
    """An image of one colour, which encodes a number."""
    return np.full((height, width, channels), number, np.uint8)


@pytest.fixture
def write(write_prepared):
    """A function ({part: count}, ...) that writes numbered images of three alternating classes."""
    import tensorflow_datasets as tfds

    def write_images(counts, shape=(None, None, 3), label=lambda number: number % 3, name=NAME, **more):
        features = {
            'image': tfds.features.Image(shape=shape, encoding_format='png'),
            'label': tfds.features.ClassLabel(names=['rose', 'tulip', 'daisy']),
            'file_name': tfds.features.Text(),
            **more,
        }
        splits, number = {}, 0
        for part, count in counts.items():
            splits[part] = []
            for _ in range(count):
                # Of different sizes, if the feature does not fix the size.
                size = (SIDE, SIDE) if shape[0] else (SIDE + number % 3, SIDE + number % 2)
                image = make_picture(number, *size, shape[2])
                example = {'image': image, 'label': label(number), 'file_name': f'{part}_{number}.png'}
                splits[part].append({**example, **{key: 0 for key in more if key != 'image'}})
                number += 1
        return write_prepared(name, '1.0.0', 'image_classification.own', features, splits)

    return write_images


def load(**changes):
    config = images_config.get_config()
    defaults = {
        'name': 'tfds',
        'tfds': NAME,
        'image_size': SIDE,
        'min_crop_area': 1.0,
        'labelled_by': 'first',
    }
    config.dataset.update({**defaults, **changes})
    return tfds_images.load(config.dataset, config.dataset)


def read_numbers(examples):
    """{number: label} of the examples."""
    pixels = examples['image']
    np.testing.assert_array_equal(pixels, pixels[:, :1, :1, :1] * np.ones(pixels.shape[1:], np.uint8))
    return dict(zip(pixels[:, 0, 0, 0].tolist(), examples['labels'].tolist(), strict=True))


TRAIN, REST, MORE = range(100), range(100, 107), range(107, 112)


@pytest.mark.parametrize(
    ('parts', 'split', 'train', 'evaluation'),
    [
        (('train', 'test', 'validation'), 'test', [*TRAIN, *MORE], REST),
        (('train', 'test', 'validation'), 'validation', TRAIN, MORE),
        (('train', 'test'), 'test', TRAIN, REST),
        (('train', 'test'), 'validation', range(90), range(90, 100)),
        (('train', 'validation'), 'test', TRAIN, REST),
        (('train', 'validation'), 'validation', range(90), range(90, 100)),
        (('train',), 'test', range(90), range(90, 100)),
        (('train',), 'validation', range(81), range(81, 90)),
    ],
)
@pytest.mark.parametrize('kept_gb', [0.0, 1.0])
def test_what_is_trained_on_and_what_is_evaluated(write, parts, split, train, evaluation, kept_gb):
    write(dict(zip(parts, (100, 7, 5), strict=False)))
    source = load(split=split, kept_gb=kept_gb)
    # The number decides the class; TFDS keeps the order of the examples.
    if kept_gb:
        assert read_numbers(source.train) == {number: number % 3 for number in train}
        assert read_numbers(source.evaluation) == {number: number % 3 for number in evaluation}
        assert source.name == 'own_flowers rose, tulip, daisy'
        base.check(source)
        return
    assert (source.train.count, source.evaluation.count) == (len(train), len(evaluation))
    ((examples, mask),) = source.evaluation.open(100, 0, 1)
    examples = base.take(examples, mask == 1)
    assert read_numbers(examples) == {number: number % 3 for number in evaluation}
    assert source.label_names == ('rose', 'tulip', 'daisy')


def test_squares_of_one_size_are_kept_as_they_are(write):
    write({'train': 20, 'test': 4}, shape=(SIDE, SIDE, 1))
    source = load(image_size=24, min_crop_area=0.5)
    assert source.train['image'].shape == (20, SIDE, SIDE, 3)
    assert not source.picture.is_rounded
    assert source.inputs(source.tables, source.train, None)['image'].shape == (20, 24, 24, 3)


def test_other_images_are_kept_at_the_size_that_a_model_is_shown(write):
    write({'train': 20, 'test': 4})
    source = load(image_size=24)
    assert source.train['image'].shape == (20, 24, 24, 3)
    assert source.picture.is_rounded


def test_classes_of_what_is_kept(write):
    write({'train': 20, 'test': 6})
    source = load(classes=(2, 0), examples_per_class=2)
    assert source.label_names == ('daisy', 'rose')
    assert read_numbers(source.train) == {0: 1, 2: 0, 3: 1, 5: 0}
    assert sorted(source.evaluation['labels'].tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize('parts', [('train', 'test', 'validation'), ('train', 'test'), ('train',)])
def test_a_seed_draws_the_same_for_a_search(write, parts):
    """Whether the validation examples are a part of their own or cut from training."""
    write(dict(zip(parts, (40, 6, 9), strict=False)))
    tested, searched = (
        load(split=split, examples_per_class=3, labelled_by='seed').train for split in ('test', 'validation')
    )
    assert base.count(searched.examples) < base.count(tested.examples)
    for number in range(5):
        actual, expected = (read_numbers(base.take(t.examples, t.rows(number))) for t in (searched, tested))
        assert actual == expected
        assert sorted(actual.values()) == 3 * [0] + 3 * [1] + 3 * [2]


def test_a_stream_trains_on_all(write):
    write({'train': 20, 'test': 6})
    source = load(kept_gb=0.0)
    batch_iterator = source.train.open(0, 0, 10, slice(0, 10))
    batches = [next(batch_iterator) for _ in range(2)]
    batch_iterator.close()
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert read_numbers(joined) == {number: number % 3 for number in range(20)}
    with pytest.raises(UserError, match=r'^dataset\.classes is \(1,\); own_flowers is streamed whole'):
        load(kept_gb=0.0, classes=(1,))


def test_a_benchmark_without_labels_of_its_test_is_refused(write):
    write({'train': 20, 'test': 6}, label=lambda number: number % 3 if number < 20 else -1)
    for kept_gb, where in (
        (0.0, 'own_flowers-test.*: label of row 0'),
        (1.0, 'the label of the image test_'),
    ):
        with pytest.raises(
            UserError, match=rf'^dataset own_flowers.*{where}.* is -1; it must be from 0 to 2'
        ):
            load(kept_gb=kept_gb)
    assert len(load(split='validation').evaluation['labels']) == 2


def test_a_name_that_tfds_does_not_have_is_refused_with_the_nearest():
    message = r'^TFDS has no data set oxford_flower102 \([^\n]+\); did you mean oxford_flowers102\?$'
    with pytest.raises(UserError, match=message):
        load(tfds='oxford_flower102')
    with pytest.raises(
        UserError, match=r'^TFDS has no data set cifar10_corrupted/none \([^\n]+ version 1\.0\.0\)?\.?[^\n]*$'
    ):
        load(tfds='cifar10_corrupted/none')
    with pytest.raises(UserError, match=r'^dataset\.tfds is empty; name a data set of TFDS, such as '):
        load(tfds='')


@pytest.mark.parametrize(
    'name',
    [
        *('huggingface:mnist', 'kaggle:cats/cats', 'own_flowers/data_dir=/tmp/theirs'),
        *('own_flowers/plain/data_dir=gs://theirs/data', 'own_flowers:1.0.0/a=1', 'os.path', 'https://a/b'),
        *('../own_flowers', '/tmp/own_flowers', 'own_flowers/..', 'own_flowers/a/b', 'own_flowers\n', 'a b'),
        *('-x', 'own_flowers:experimental_latest', 'größe'),
    ],
)
def test_only_names_of_data_sets_reach_tfds(name, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, 'builder', lambda *arguments: pytest.fail('it was asked for'))
    message = r'^dataset\.tfds .* is no name of a data set of TFDS; write NAME'
    with pytest.raises(UserError, match=message) as error_info:
        load(tfds=name)
    assert len(str(error_info.value).splitlines()) == 1


def test_files_of_a_folder_that_a_name_leads_to_import_nothing(write, tmp_path, monkeypatch):
    """TFDS would import the class that features.json names, from any folder."""
    description = write({'train': 4}) / 'features.json'
    text = description.read_text()
    kind = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'
    assert kind in text
    description.write_text(text.replace(kind, 'imported_by_a_name.Feature'))
    (tmp_path / 'imported_by_a_name.py').write_text("raise SystemExit('this ran')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(tmp_path / 'mine'))
    with pytest.raises(UserError, match='is no name of a data set of TFDS'):
        load(tfds=f'own_flowers/data_dir={tmp_path}')


def test_every_name_of_tfds_is_one():
    """TFDS parses each into a name, a config and a version, and nothing else."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    names = tfds.list_builders(with_community_datasets=False)
    assert len(names) > 300
    examples = ['cifar10_1/v4:1.0.0', 'a/b+c-d.e:1.*.*', 'movielens/100k-ratings', 'wikipedia/20230601.en']
    for name in [*names, *examples]:
        assert prepared._NAME.fullmatch(name), name
        parsed, settings = naming.parse_builder_name_kwargs(name)
        assert not parsed.namespace and settings.keys() <= {'config', 'version'}


def test_what_is_no_data_set_of_images_of_one_class_is_refused(write):
    import tensorflow_datasets as tfds

    write({'train': 4}, kind=tfds.features.ClassLabel(num_classes=2))
    message = (
        r'^dataset\.tfds own_flowers is no data set of images of one class each: .* 2 is of the kind ClassL'
    )
    with pytest.raises(UserError, match=message):
        load()


def test_a_data_set_without_a_part_for_training_is_refused(write):
    write({'test': 4})
    with pytest.raises(UserError, match=r'^dataset\.tfds own_flowers has no part train; it has test\.$'):
        load()


def test_an_image_that_cannot_be_decoded_is_refused_by_name(write_prepared):
    import tensorflow_datasets as tfds

    good = io.BytesIO()
    PIL.Image.fromarray(make_picture(5)).save(good, 'PNG')
    stored = [good.getvalue(), good.getvalue()[:40]]
    features = {
        'image': tfds.features.Image(encoding_format='png'),
        'label': tfds.features.ClassLabel(num_classes=2),
        'id': tfds.features.Text(),
    }
    examples = [{'image': io.BytesIO(stored[i == 3]), 'label': i % 2, 'id': f'picture {i}'} for i in range(5)]
    write_prepared(NAME, '1.0.0', 'own', features, {'train': examples, 'test': examples[:2]})
    with pytest.raises(UserError, match=r'^own_flowers: the image picture 3 cannot be decoded \([^\n]+\)\.$'):
        load()
