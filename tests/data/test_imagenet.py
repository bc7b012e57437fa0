"""ImageNet as a stream: which examples a step sees, and how they are decoded."""

import collections
import functools
import io
import itertools
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from td_jax.configs import common
from td_jax.data import SOURCES, base, imagenet, images, stream
from td_jax.errors import UserError

# A small data set of several files: 13 records each, the last file of training 2.
TRAIN, EVALUATION, A_FILE = 67, 23, 13


def load(**changes):
    config = common.get_config().dataset
    defaults = {'name': 'imagenet', 'image_size': 16, 'shuffle_buffer': 20}
    config.update({**defaults, **changes})
    return SOURCES['imagenet'](config, config)


def join_batches(source, steps, seed=0, step=0, batch_size=8, rows=None):
    """The batches of several steps, stacked: {name: [steps, rows, ...]}."""
    stream = source.train.open(seed, step, batch_size, rows or slice(0, batch_size))
    steps_batches = [next(stream) for _ in range(steps)]
    stream.close()
    return {name: np.stack([batch[name] for batch in steps_batches]) for name in steps_batches[0]}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def encode(pixels, image_format='JPEG', mode='RGB', **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, image_format, **options)
    return file.getvalue()


def make_smooth_noise(seed, height=24, width=20):
    """An image whose colours change slowly, as in photographs."""
    coarse_pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return np.asarray(
        PIL.Image.fromarray(coarse_pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)
    )


def write_dataset(folder, splits, a_file=A_FILE, file_format='tfrecord', first_label=0):
    """Writes {split: [encoded image, ...]}, labels counting up, where TFDS looks for imagenet2012."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(num_classes=2000),
            'file_name': tfds.features.Text(),
        }
    )
    where = folder / 'imagenet2012' / '5.1.0'
    where.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name='imagenet2012',
        version=tfds.core.Version('5.1.0'),
        data_dir=str(where),
        module_name='tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder',
    )
    writer = tfds.core.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=features), a_file, file_format=file_format
    )
    writer.initialize_splits(list(splits))
    for split, examples in splits.items():
        rows = [
            {'image': io.BytesIO(image), 'label': first_label + number, 'file_name': f'{split}_{number}.JPEG'}
            for number, image in enumerate(examples)
        ]
        writer.add_examples({split: rows})
    writer.close_all()


@pytest.fixture(scope='module')
def dataset_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('several_files')
    write_dataset(
        folder,
        {
            'train': [encode(make_smooth_noise(number)) for number in range(TRAIN)],
            'validation': [encode(make_smooth_noise(1000 + number)) for number in range(EVALUATION)],
        },
    )
    return folder


def look_in(monkeypatch, folder):
    # TFDS reads TFDS_DATA_DIR once, when it is imported.
    monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(folder))


@pytest.fixture
def several_files(monkeypatch, dataset_folder):
    look_in(monkeypatch, dataset_folder)
    return dataset_folder


# --- Which examples a step sees --------------------------------------------------------------------


def test_lanes_divide_a_batch_and_have_a_file_each():
    lanes = stream.lane_count
    assert [lanes(1024, size) for size in (512, 8, 12, 7)] == [16, 8, 4, 1]
    assert [lanes(files, 512) for files in (1, 2, 5, 16, 17)] == [1, 2, 4, 16, 16]


@pytest.mark.usefixtures('several_files')
@pytest.mark.parametrize('batch_size', [8, 6, 7])  # 4, 2 and 1 lanes
def test_a_run_that_continues_sees_the_same(batch_size):
    steps = 24  # 168 examples or more of 67
    whole = join_batches(load(), steps, batch_size=batch_size)
    for step in (1, 9, 23):
        rest = join_batches(load(), steps - step, step=step, batch_size=batch_size)
        assert_same(rest, {name: array[step:] for name, array in whole.items()})


@pytest.mark.usefixtures('several_files')
@pytest.mark.parametrize('cuts', [(0, 4, 8), (0, 2, 4, 6, 8), (0, 1, 3, 8)])
def test_processes_see_the_rows_of_one_batch(cuts):
    whole = join_batches(load(), 3, step=7)
    parts = [
        join_batches(load(), 3, step=7, rows=slice(start, stop)) for start, stop in itertools.pairwise(cuts)
    ]
    joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in whole}
    assert_same(joined, whole)


@pytest.mark.usefixtures('several_files')
def test_an_epoch_has_each_example_once_and_its_own_order():
    # One lane: 67 batches of 7 are seven epochs.
    labels = join_batches(load(), TRAIN, batch_size=7)['labels'].reshape(7, TRAIN)
    for epoch in labels:
        assert sorted(epoch) == list(range(TRAIN))
    assert len({tuple(epoch) for epoch in labels}) == 7


@pytest.mark.usefixtures('several_files')
def test_every_lane_goes_through_its_own_share():
    # Four lanes of 16, 17, 17 and 17 examples, two rows each.
    labels = join_batches(load(), 34)['labels']
    first, *others = labels.reshape(34, 4, 2).swapaxes(0, 1).reshape(4, 68)
    for number, lane in enumerate(others):
        for epoch in lane.reshape(4, 17):
            assert sorted(epoch) == list(range(16 + 17 * number, 33 + 17 * number))
    for epoch in first[:64].reshape(4, 16):
        assert sorted(epoch) == list(range(16))


@pytest.mark.usefixtures('several_files')
def test_the_order_is_that_of_shuffled_files_and_windows():
    files = [range(start, min(start + A_FILE, TRAIN)) for start in range(0, TRAIN, A_FILE)]
    # A window of one record shuffles files alone.
    in_files = join_batches(load(shuffle_buffer=1), TRAIN, batch_size=1)['labels'][:, 0]
    order = list(dict.fromkeys(label // A_FILE for label in in_files))
    assert list(in_files) == [label for file in order for label in files[file]]
    assert order != sorted(order)
    # A larger one has the records of the same files, in another order.
    shuffled = join_batches(load(shuffle_buffer=20), TRAIN, batch_size=1)['labels'][:, 0]
    for start in range(0, TRAIN, 20):
        window = slice(start, start + 20)
        assert sorted(shuffled[window]) == sorted(in_files[window])
        assert list(shuffled[window]) != list(in_files[window])


@pytest.mark.usefixtures('several_files')
def test_the_seed_decides_order_and_variation():
    whole, again = join_batches(load(), 4, seed=1), join_batches(load(), 4, seed=1)
    assert_same(whole, again)
    other = join_batches(load(), 4, seed=2)
    assert not np.array_equal(whole['labels'], other['labels'])
    # An example is cropped differently in the second epoch.
    both_epochs = join_batches(load(), 17)
    labels = both_epochs['labels'].ravel()
    cropped = both_epochs['image'].reshape(136, 16, 16, 3)
    views = collections.defaultdict(set)
    for label, image in zip(labels, cropped, strict=True):
        views[label].add(image.tobytes())
    assert {len(view) for label, view in views.items() if np.sum(labels == label) == 2} == {2}


@pytest.mark.usefixtures('several_files')
def test_the_global_seed_of_tensorflow_decides_nothing():
    """A script may set it, and the process that resumes its run may not."""
    import tensorflow as tf

    whole = join_batches(load(), 9)
    try:
        for global_seed in (1, 2):
            tf.random.set_seed(global_seed)
            assert_same(join_batches(load(), 9), whole)
            # A stream does not change the script's own random numbers.
            drawn = tf.random.uniform([]).numpy()
            tf.random.set_seed(global_seed)
            assert drawn == tf.random.uniform([]).numpy()
    finally:
        tf.random.set_seed(None)


@pytest.mark.usefixtures('several_files')
def test_epochs_that_are_skipped_are_not_read():
    late_batches = join_batches(load(), 2, step=10**12)
    assert late_batches['labels'].shape == (2, 8)
    assert_same(
        join_batches(load(), 1, step=10**12 + 1), {name: array[1:] for name, array in late_batches.items()}
    )


def test_what_is_skipped_is_not_decoded(monkeypatch, tmp_path):
    pixels = [encode(make_smooth_noise(number)) for number in range(6)]
    write_dataset(tmp_path, {'train': [*pixels, b'\xff\xd8\xff no image'], 'validation': pixels})
    look_in(monkeypatch, tmp_path)
    stream = load().train.open(0, 0, 1, slice(0, 1))
    labels_read = []
    with pytest.raises(UserError, match=r'train_6\.JPEG cannot be decoded'):
        labels_read.extend(batch['labels'][0] for batch in stream)
    assert len(labels_read) < 7
    # A stream that starts behind the damaged image gives the rest of the epoch.
    left = 6 - len(labels_read)
    rest = join_batches(load(), left, step=7 - left, batch_size=1)['labels'] if left else np.zeros(0)
    assert sorted([*labels_read, *rest.ravel()]) == list(range(6))


# --- Evaluation ------------------------------------------------------------------------------------


@pytest.mark.usefixtures('several_files')
@pytest.mark.parametrize(('batch_size', 'parts'), [(1, 1), (7, 1), (7, 2), (23, 1), (8, 3), (100, 3)])
def test_evaluation_counts_each_example_once(batch_size, parts):
    source = load()
    assert source.evaluation.count == EVALUATION
    batches_of_parts = [list(source.evaluation.open(batch_size, part, parts)) for part in range(parts)]
    assert {len(part) for part in batches_of_parts} == {math.ceil(math.ceil(EVALUATION / parts) / batch_size)}
    labels = []
    for examples, mask in (batch for part in batches_of_parts for batch in part):
        assert examples['image'].shape == (batch_size, 16, 16, 3)
        assert examples['labels'].dtype == np.int32
        assert mask.shape == (batch_size,)
        labels.extend(examples['labels'][mask == 1])
        assert np.all(examples['image'][mask == 0] == 0)
    assert sorted(labels) == list(range(EVALUATION))


@pytest.mark.usefixtures('several_files')
def test_a_part_without_examples_has_as_many_batches_as_the_others():
    ((examples, mask),) = load().evaluation.open(7, 0, EVALUATION + 1)
    assert examples['image'].shape == (7, 16, 16, 3)
    assert mask.tolist() == [0] * 7


@pytest.mark.usefixtures('imagenet_data')
@pytest.mark.parametrize('parts', [1, 2, 3])
@pytest.mark.parametrize('batch_size', [7, 16, 80, 100])
def test_evaluation_counts_every_real_image(batch_size, parts):
    open_part = load_real().evaluation.open
    total = sum(mask.sum() for part in range(parts) for _, mask in open_part(batch_size, part, parts))
    assert total == load_real().evaluation.count == len(load_plainly('validation')[1])


@pytest.mark.usefixtures('several_files')
def test_the_validation_slice_is_the_last_hundredth_of_training(tmp_path, monkeypatch):
    write_dataset(
        tmp_path,
        {'train': [encode(make_smooth_noise(0))] * 150, 'validation': [encode(make_smooth_noise(0))]},
        a_file=40,
    )
    look_in(monkeypatch, tmp_path)
    source = load(split='validation')
    ((examples, mask),) = source.evaluation.open(8, 0, 1)
    held_out = examples['labels'][mask == 1].tolist()
    assert held_out == [148, 149]
    assert source.train.count == 148
    trained = join_batches(source, 148, batch_size=1)['labels'].ravel()
    assert sorted(trained) == list(range(148))


# --- What is decoded -------------------------------------------------------------------------------


@functools.cache
def load_real(split='test'):
    return load(split=split, min_crop_area=1.0, mirror_rate=0.0, image_size=32)


@functools.cache
def load_plainly(split):
    """(images [32, 32, 3] float32, labels), decoded by TFDS and resized by TensorFlow."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    examples = list(tfds.load('imagenet2012', split=split))
    resized = np.stack([tf.image.resize(example['image'], (32, 32)).numpy() for example in examples])
    return resized, np.array([example['label'].numpy() for example in examples])


@pytest.mark.usefixtures('imagenet_data')
def test_evaluation_sees_whole_images_plainly_resized():
    expected, labels = load_plainly('validation')
    examples, mask = next(load_real().evaluation.open(len(labels), 0, 1))
    assert mask.all()
    np.testing.assert_array_equal(examples['labels'], labels)
    assert np.abs(examples['image'] - expected).max() <= 0.5001
    inputs = load_real().inputs((), examples, None)['image']
    np.testing.assert_array_equal(inputs, images.normalize(examples['image'], (0.5,) * 3, (0.5,) * 3))


def load_resized_by_pil(split):
    """Images [32, 32, 3], decoded by TFDS and resized by PIL, whose bilinear resize smooths."""
    import tensorflow_datasets as tfds

    resized = [
        PIL.Image.fromarray(example['image'].numpy()).resize((32, 32), PIL.Image.Resampling.BILINEAR)
        for example in tfds.load('imagenet2012', split=split)
    ]
    return np.stack([np.asarray(image, np.int32) for image in resized])


@pytest.mark.usefixtures('imagenet_data')
def test_antialiasing_is_that_of_pil():
    """Both round to whole numbers, PIL twice. Without it, images of 32 pixels are far from that."""
    config = {'image_size': 32, 'min_crop_area': 1.0, 'mirror_rate': 0.0}
    smooth = load(split='test', resize='bilinear_antialias', **config)
    expected = load_resized_by_pil('validation[:16]')
    examples, _ = next(smooth.evaluation.open(16, 0, 1))
    assert np.abs(examples['image'] - expected).max() <= 1
    plainly, _ = next(load_real().evaluation.open(16, 0, 1))
    assert np.abs(plainly['image'] - expected).mean() > 5
    # Training resizes in the same way: each image of a step is one of these.
    expected = load_resized_by_pil('train')
    for image in join_batches(smooth, 1)['image'][0]:
        assert np.abs(expected - image).max(axis=(1, 2, 3)).min() <= 1


@pytest.mark.usefixtures('imagenet_data')
def test_a_real_epoch_has_each_image_once():
    resized, labels = load_plainly('train')
    count = load_real().train.count
    assert count == len(labels)
    epoch = join_batches(load_real(), count // 16, batch_size=16)
    # The nearest image is the same one: pixels differ by at most 1, because halves are rounded differently.
    ours = epoch['image'].reshape(count, -1)
    theirs = np.round(resized).astype(np.uint8).reshape(count, -1)
    distance = np.stack([np.abs(theirs[:, ::7].astype(int) - image[::7]).max(axis=1) for image in ours])
    nearest_rows = distance.argmin(axis=1)
    assert distance.min(axis=1).max() <= 1
    np.testing.assert_array_equal(labels[nearest_rows], epoch['labels'].ravel())
    # The sample has a few images twice, which cannot be distinguished.
    copies = [tuple(np.flatnonzero(row <= 1)) for row in distance]
    assert all(len(group) == times for group, times in collections.Counter(copies).items())
    assert not np.array_equal(nearest_rows, np.sort(nearest_rows))


@pytest.mark.usefixtures('imagenet_data')
def test_a_real_run_that_continues_sees_the_same():
    source = load(image_size=24)
    whole = join_batches(source, 17, batch_size=16)  # into the second epoch
    for step in (6, 15, 16):
        assert_same(
            join_batches(source, 17 - step, step=step, batch_size=16),
            {name: array[step:] for name, array in whole.items()},
        )


def test_a_crop_is_the_part_of_the_image_that_its_seed_says():
    import tensorflow as tf

    pixels = make_smooth_noise(0, 60, 80)
    areas, ratios = [], []
    for number in range(40):
        seed = tf.constant([3, number])
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            (60, 80, 3), [[[0.0, 0.0, 1.0, 1.0]]], seed, 0.0, (3 / 4, 4 / 3), (0.3, 1.0)
        )
        (y, x, _), (height, width, _) = begin.numpy(), size.numpy()
        for data, tolerance in ((encode(pixels, quality=95), 1), (encode(pixels, 'PNG'), 0)):
            whole = tf.io.decode_image(data).numpy()
            crop = stream.decode_by_tensorflow(tf.constant(data), seed, 0.3).numpy()
            # At the sides of a crop, libjpeg smooths colours over one pixel less.
            inner = slice(1, -1) if tolerance else slice(None)
            expected = whole[y : y + height, x : x + width]
            assert crop.shape == expected.shape
            np.testing.assert_allclose(
                crop[:, inner].astype(int), expected[:, inner].astype(int), atol=tolerance
            )
        areas.append(height * width / 4800)
        ratios.append(width / height)
    assert 0.28 < min(areas) < 0.5 < max(areas) <= 1
    assert 0.7 < min(ratios) < 0.95
    assert 1.05 < max(ratios) < 1.4


@pytest.mark.usefixtures('several_files')
def test_mirroring_is_by_chance():
    plainly, always, sometimes = (
        join_batches(load(mirror_rate=rate, min_crop_area=1.0), 40)['image'].reshape(320, 16, 16, 3)
        for rate in (0.0, 1.0, 0.25)
    )
    # The order of a resize and a mirror changes how halves are rounded.
    assert np.abs(always.astype(int) - plainly[:, :, ::-1]).max() <= 1
    is_mirrored = np.abs(sometimes.astype(int) - plainly[:, :, ::-1]).max(axis=(1, 2, 3)) <= 1
    is_plain = np.abs(sometimes.astype(int) - plainly).max(axis=(1, 2, 3)) <= 1
    assert np.all(is_mirrored ^ is_plain)
    assert abs(is_mirrored.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 320)


# Name -> (what is stored, how far it may be from what Pillow makes of it: TensorFlow decodes JPEG in the fast
# way, as TFDS does, Pillow in the exact one).
ODD = {
    'grey': (encode(make_smooth_noise(1), mode='L'), 5),
    'cmyk': (encode(make_smooth_noise(2), mode='CMYK', quality=95), 10),
    'png in a file named JPEG': (encode(make_smooth_noise(3), 'PNG'), 0),
    'png with transparency': (encode(make_smooth_noise(4), 'PNG', mode='RGBA'), 0),
    'grey png': (encode(make_smooth_noise(5), 'PNG', mode='L'), 0),
    'gif': (encode(make_smooth_noise(6), 'GIF'), 0),
    'bmp': (encode(make_smooth_noise(7), 'BMP'), 0),
    'progressive': (encode(make_smooth_noise(8), progressive=True), 5),
    'one pixel wide': (encode(make_smooth_noise(9, 30, 1), quality=95), 5),
    'one pixel high': (encode(make_smooth_noise(10, 1, 30), quality=95), 5),
    'one pixel': (encode(make_smooth_noise(11, 1, 1)), 5),
}


@pytest.mark.parametrize('name', ODD)
def test_odd_images_decode_to_three_channels(name):
    import tensorflow as tf

    data, tolerance = ODD[name]
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert('RGB'))
    whole = stream.decode_by_tensorflow(tf.constant(data)).numpy()
    assert whole.dtype == np.uint8
    np.testing.assert_allclose(whole.astype(int), expected.astype(int), atol=tolerance)
    crop = stream.decode_by_tensorflow(tf.constant(data), tf.constant([0, 1]), 0.05).numpy()
    assert crop.ndim == 3
    assert crop.shape[2] == 3
    assert min(crop.shape) >= 1


def test_odd_images_pass_through_the_streams(monkeypatch, tmp_path):
    stored = [data for data, _ in ODD.values()]
    write_dataset(tmp_path, {'train': stored, 'validation': stored}, a_file=4)
    look_in(monkeypatch, tmp_path)
    assert sorted(join_batches(load(), len(stored), batch_size=1)['labels'].ravel()) == list(
        range(len(stored))
    )
    ((examples, _),) = load().evaluation.open(len(stored), 0, 1)
    grey = examples['image'][0].astype(int)
    assert np.abs(grey - grey[..., :1]).max() == 0


# --- What stops --------------------------------------------------------------------------------------


@pytest.mark.parametrize('damaged', [b'\xff\xd8\xff no image', b'', encode(make_smooth_noise(0))[:-300]])
def test_an_image_that_cannot_be_decoded_is_named(monkeypatch, tmp_path, damaged):
    good = [encode(make_smooth_noise(number)) for number in range(3)]
    write_dataset(tmp_path, {'train': [*good, damaged], 'validation': [*good, damaged]})
    look_in(monkeypatch, tmp_path)
    with pytest.raises(UserError) as error_info:
        for _ in load().train.open(0, 0, 1, slice(0, 1)):
            pass
    assert re.fullmatch(
        r'imagenet2012: the image train_3\.JPEG cannot be decoded \(.+\)\.', str(error_info.value)
    )
    with pytest.raises(UserError, match=r'the image validation_3\.JPEG cannot be decoded'):
        list(load().evaluation.open(2, 0, 1))


def test_a_damaged_file_is_reported(monkeypatch, tmp_path):
    write_dataset(
        tmp_path,
        {
            'train': [encode(make_smooth_noise(number)) for number in range(3)],
            'validation': [encode(make_smooth_noise(0))],
        },
    )
    look_in(monkeypatch, tmp_path)
    (file,) = tmp_path.rglob('*train.tfrecord*')
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r'^imagenet2012 cannot be read: [^\n]+\.$'):
        join_batches(load(), 9, batch_size=1)


def test_a_label_that_is_none_is_refused_with_its_image(monkeypatch, tmp_path):
    stored = [encode(make_smooth_noise(number)) for number in range(4)]
    write_dataset(tmp_path, {'train': stored, 'validation': stored}, first_label=997)
    look_in(monkeypatch, tmp_path)
    message = r'^dataset imagenet2012: the label of the image {}_3\.JPEG is 1000; it must be from 0 to 999\.'
    with pytest.raises(UserError, match=message.format('train')):
        join_batches(load(), 9, batch_size=1)
    with pytest.raises(UserError, match=message.format('validation')):
        list(load().evaluation.open(2, 0, 1))


def test_a_split_without_images_is_refused(monkeypatch, tmp_path):
    write_dataset(
        tmp_path, {'train': [encode(make_smooth_noise(number)) for number in range(5)], 'validation': []}
    )
    look_in(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r'^dataset imagenet2012 has no evaluation examples\.$'):
        base.check(load())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'classes': (1, 2)},
            r'^dataset\.classes is \(1, 2\); imagenet is streamed whole: leave it at \(\)\.$',
        ),
        ({'examples_per_class': 5}, r'^dataset\.examples_per_class is 5; .* leave it at 0\.$'),
    ],
)
@pytest.mark.usefixtures('several_files')
def test_parts_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        load(**changes)
    config = common.get_config()
    config.teacher.dataset.update(changes)
    with pytest.raises(UserError, match='^teacher.' + message[1:]):
        imagenet.load(config.dataset, config.teacher.dataset)


def test_another_format_is_refused(monkeypatch, several_files, tmp_path):
    shutil.copytree(several_files, tmp_path, dirs_exist_ok=True)
    (info_file,) = tmp_path.rglob('dataset_info.json')
    info_file.write_text(info_file.read_text().replace('"tfrecord"', '"array_record"'))
    look_in(monkeypatch, tmp_path)
    with pytest.raises(
        UserError, match=r'in the format array_record; .*--file_format=tfrecord'
    ) as error_info:
        load()
    assert '\n' not in str(error_info.value)


@pytest.mark.usefixtures('several_files')
def test_a_source_says_what_it_is():
    source = load(image_size=20)
    assert source.train.count == TRAIN
    assert source.task == 'classification'
    assert len(source.label_names) == 1000
    example = source.train.example
    batch = {name: array[0] for name, array in join_batches(source, 1).items()}
    for name in example:
        assert example[name].shape == (1, *batch[name].shape[1:])
        assert example[name].dtype == batch[name].dtype


LEFT_BEHIND = """
import sys
import tensorflow_datasets as tfds
tfds.core.constants.DATA_DIR = sys.argv[1]
from td_jax.configs import common
from td_jax.data import imagenet

config = common.get_config().dataset
source = imagenet.load(config, config)
unclosed = source.train.open(0, 0, 8, slice(0, 8))
next(unclosed)
closed = source.train.open(0, 5, 8, slice(0, 4))
next(closed)
closed.close()
next(source.evaluation.open(8, 0, 1))
source.train.open(0, 0, 8, slice(0, 8))
print('done')
"""


@pytest.mark.long
def test_streams_that_are_left_behind_do_not_hold_up_the_end(dataset_folder):
    completed = subprocess.run(
        [
            sys.executable,
            '-W',
            'error::ResourceWarning',
            '-c',
            'import td_jax\n' + LEFT_BEHIND,
            str(dataset_folder),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (completed.returncode, completed.stdout) == (0, 'done\n'), completed.stderr
    assert completed.stderr == ''
