"""A folder of images per class: how files are split, decoded and refused."""

import hashlib
import json

import numpy as np
import PIL.Image
import pytest
from etils import epath

from td_jax.configs import images as images_config
from td_jax.data import base, decoding, folders, images
from td_jax.devices import memory
from td_jax.errors import UserError
from td_jax.predicting import reading
from td_jax.training.run import train
from tests import forked

SIDE = 8


def make_picture(number, height=SIDE, width=SIDE):
    """An image of one colour, which encodes a number."""
    return np.full((height, width, 3), (number, 255 - number, 7), np.uint8)


def write_folder(folder, counts, suffix='.png', first=0):
    """Writes {class: count} images and returns {file within the folder: number}."""
    numbers = {}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            file, number = f'{name}/{i:03}{suffix}', first + len(numbers)
            PIL.Image.fromarray(make_picture(number)).save(folder / file)
            numbers[file] = number
    return numbers


def make_config(folder, **changes):
    config = images_config.get_config()
    settings = {'path': str(folder), 'image_size': SIDE, 'min_crop_area': 1.0, 'labelled_by': 'first'}
    config.dataset.update({**settings, **changes})
    return config


def load(folder, **changes):
    config = make_config(folder, **changes)
    return folders.load(config.dataset, config.dataset)


def read_numbers(examples):
    """[(number, label)] of the examples, sorted by number."""
    pixels = examples['image']
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, pixels[:, :1, :1] * np.ones((1, SIDE, SIDE, 1), np.uint8))
    assert np.all(pixels[..., 0].astype(int) + pixels[..., 1] == 255)
    return sorted(zip(pixels[:, 0, 0, 0].tolist(), examples['labels'].tolist(), strict=True))


def order_by_hash(numbers, name):
    """The numbers of a class's files, in order of the hashes of CLASS/FILE."""
    files = [file for file in numbers if file.startswith(f'{name}/')]
    return [numbers[f] for f in sorted(files, key=lambda f: hashlib.sha256(f.encode()).hexdigest())]


# --- Which files are what --------------------------------------------------------------------------

COUNTS = {'cat': 20, 'ant': 14, 'bee': 4}


@pytest.mark.parametrize(
    ('split', 'cuts'),
    [
        # Test: 1 of 14 images, 2 of 20, 1 of 4. Validation: 1 of the 13 left, 2 of 18, 1 of 3.
        ('test', {'ant': (0, 1, 14), 'bee': (0, 1, 4), 'cat': (0, 2, 20)}),
        ('validation', {'ant': (1, 2, 14), 'bee': (1, 2, 4), 'cat': (2, 4, 20)}),
    ],
)
def test_a_tenth_of_each_class_is_cut_off_by_the_hashes_of_names(tmp_path, split, cuts):
    numbers = write_folder(tmp_path / 'own', COUNTS)
    source = load(tmp_path / 'own', split=split)
    assert source.label_names == ('ant', 'bee', 'cat')
    assert source.name == 'own ant, bee, cat'
    train, evaluation = [], []
    for label, (name, (start, cut, stop)) in enumerate(cuts.items()):
        order = order_by_hash(numbers, name)
        evaluation += [(number, label) for number in order[start:cut]]
        train += [(number, label) for number in order[cut:stop]]
    assert read_numbers(source.evaluation) == sorted(evaluation)
    assert read_numbers(source.train) == sorted(train)
    base.check(source)


def test_the_same_names_in_every_class_are_not_all_cut_off(tmp_path):
    numbers = write_folder(tmp_path, {'a': 10, 'b': 10, 'c': 10, 'd': 10})
    first = {
        min(file for file, n in numbers.items() if n == order_by_hash(numbers, name)[0])[2:]
        for name in 'abcd'
    }
    assert len(first) > 1


@pytest.mark.parametrize('split', ['test', 'validation'])
def test_train_and_test_are_taken_as_they_are(tmp_path, split):
    train = write_folder(tmp_path / 'train', {'cat': 12, 'ant': 3})
    test = write_folder(tmp_path / 'test', {'ant': 1, 'cat': 2}, first=100)
    source = load(tmp_path, split=split)
    if split == 'test':
        assert read_numbers(source.train) == [(n, int(file.startswith('cat'))) for file, n in train.items()]
        assert read_numbers(source.evaluation) == [(n, int(f.startswith('cat'))) for f, n in test.items()]
    else:
        # A tenth of 12 and of 3, at least one.
        held_out = [(order_by_hash(train, 'cat')[0], 1), (order_by_hash(train, 'ant')[0], 0)]
        assert read_numbers(source.evaluation) == sorted(held_out)
        assert len(source.train['labels']) == 13


def test_what_is_not_read_is_reported(tmp_path):
    write_folder(tmp_path / 'own', {'a': 5, 'b': 5})
    for folder in ('__MACOSX', '.ipynb_checkpoints', 'b/deeper'):
        (tmp_path / 'own' / folder).mkdir()
    hidden = ['.DS_Store', 'a/._000.png', '__MACOSX/000.png', '.ipynb_checkpoints/000.png']
    for file in (*hidden, 'a/notes.txt', 'b/scan.heic', 'LICENSE', 'b/deeper/000.png', '000.png'):
        (tmp_path / 'own' / file).write_text('x')
    source = load(tmp_path / 'own')
    assert source.label_names == ('a', 'b')
    assert source.note == (
        'own holds what is not read: 000.png, LICENSE, a/notes.txt, b/deeper/, b/scan.heic, 4 hidden'
    )
    assert load(write_halves(tmp_path / 'halves')).note == 'halves holds what is not read: val/'


def write_halves(folder):
    for part in ('train', 'test', 'val'):
        write_folder(folder / part, {'a': 3, 'b': 3})
    return folder


def test_classes_and_how_many_of_each(tmp_path):
    numbers = write_folder(tmp_path, {'a': 10, 'b': 10, 'c': 10})
    source = load(tmp_path, classes=(2, 0), examples_per_class=3)
    assert source.label_names == ('c', 'a')
    expected = [(n, label) for label, name in enumerate('ca') for n in order_by_hash(numbers, name)[1:4]]
    assert read_numbers(source.train) == sorted(expected)
    assert len(source.evaluation['labels']) == 2


# --- What is decoded -------------------------------------------------------------------------------


def test_images_of_any_size_colours_and_format_become_one_size(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    stored = {
        'a/wide.PNG': make_picture(10, 3, 30),
        'a/large.bmp': make_picture(20, 50, 40),
        'b/grey.png': np.full((9, 9), 77, np.uint8),
        'b/small.gif': make_picture(0, 2, 2)[..., 0],
    }
    for file, pixels in stored.items():
        PIL.Image.fromarray(pixels).save(tmp_path / file)
    source = load(tmp_path)
    loaded = np.concatenate([source.train['image'], source.evaluation['image']])
    assert loaded.shape == (4, SIDE, SIDE, 3)
    colours = {tuple(image[3, 3]) for image in loaded}
    assert colours == {(10, 245, 7), (20, 235, 7), (77, 77, 77), (0, 0, 0)}


def test_files_become_the_same_pixels_in_memory_streamed_and_predicted(tmp_path):
    """Files with an orientation, a palette, transparency or 16 bits, and of several formats."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    colours = PIL.Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    alpha = PIL.Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 4), np.uint8))
    grey = PIL.Image.fromarray(rng.integers(0, 65536, (SIDE, SIDE), np.uint16))
    stored = {
        **{'a/turned.jpg': (colours, {'exif': exif}), 'a/palette.bmp': (colours.quantize(9), {})},
        **{'a/clear.png': (alpha, {}), 'b/grey.png': (grey, {}), 'b/ink.jpg': (colours.convert('CMYK'), {})},
        **{'b/scan.tif': (colours, {}), 'b/web.webp': (alpha, {})},
    }
    for file, (image, options) in stored.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        image.save(tmp_path / file, **options)
    files = [epath.Path(tmp_path / file) for file in stored]
    expected = [decoding.decode(file.read_bytes()) for file in files]
    in_memory, streamed = load(tmp_path), load(tmp_path, kept_gb=0.0, mirror_rate=0.0)
    joined = np.concatenate([in_memory.train['image'], in_memory.evaluation['image']])
    assert_same_images(joined, expected)
    ((examples, mask),) = streamed.evaluation.open(2, 0, 1)
    of_training = take_steps(streamed, 0, 1, streamed.train.count)['image']
    assert_same_images(np.concatenate([of_training, examples['image'][mask == 1]]), expected)
    for source in (in_memory, streamed):
        np.testing.assert_array_equal(reading.read_pixels(files, source.picture), expected)


def assert_same_images(actual, expected):
    """Asserts that both hold the same images, in any order."""
    np.testing.assert_array_equal(*(sorted(np.array(images).tolist()) for images in (actual, expected)))


def test_random_crops_of_a_stream_are_of_the_image_as_it_is_shown(tmp_path):
    """Turned upright, its left half is dark and its right half is light."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    pixels = np.repeat(np.repeat([[[0], [200]]], 20, axis=1), 30, axis=0).repeat(3, axis=2).astype(np.uint8)
    upright = PIL.Image.fromarray(pixels)
    for name in ('a/0.png', 'a/1.png', 'b/0.png', 'b/1.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        upright.transpose(PIL.Image.Transpose.ROTATE_270).save(tmp_path / name, exif=exif)
    source = load(tmp_path, kept_gb=0.0, min_crop_area=0.3, mirror_rate=0.0)
    crops = take_steps(source, 0, 4, 4)['image'].astype(int)
    assert np.ptp(crops, axis=1).max() == 0  # no row differs from another
    assert np.diff(crops, axis=2).min() >= 0
    assert len(np.unique(crops.sum(axis=(1, 2, 3)))) > 4


def test_what_is_kept_is_read_once_and_varied_by_a_step(tmp_path):
    write_folder(tmp_path, {'a': 5, 'b': 5})
    source, again = load(tmp_path), load(tmp_path)
    assert again.train['image'].base is source.train['image'].base
    assert np.shares_memory(again.train['image'], source.train['image'])
    inputs = source.inputs(source.tables, source.train, None)['image']
    np.testing.assert_allclose(inputs, source.train['image'] / 127.5 - 1, atol=1e-6)
    assert source.picture.is_rounded
    assert source.picture.view.side == SIDE


def test_a_stream_has_the_same_images(tmp_path):
    numbers = write_folder(tmp_path, {'a': 21, 'b': 12})
    in_memory, streamed = load(tmp_path), load(tmp_path, kept_gb=0.0)
    assert streamed.name == in_memory.name
    assert streamed.label_names == in_memory.label_names
    count = len(in_memory.train['labels'])
    assert (streamed.train.count, streamed.train.host_bytes) == (count, 8 * count)
    parts = [streamed.evaluation.open(2, part, 2) for part in range(2)]
    batches = [batch for part in parts for batch in part]
    joined = {
        name: np.concatenate([examples[name][mask == 1] for examples, mask in batches])
        for name in ('image', 'labels')
    }
    assert read_numbers(joined) == read_numbers(in_memory.evaluation)
    # One row per step over two epochs: each has every image once, in an order of its own.
    epochs = take_steps(streamed, 0, 2 * count, 1)
    first, second = ({name: a[i : i + count] for name, a in epochs.items()} for i in (0, count))
    assert read_numbers(first) == read_numbers(second) == read_numbers(in_memory.train)
    assert not np.array_equal(first['image'], second['image'])
    assert len(numbers) == count + len(in_memory.evaluation['labels'])
    # A stream continues at any step, and each process sees its rows of the batch.
    rest = take_steps(streamed, 5, 4, 6)
    np.testing.assert_array_equal(rest['image'], take_steps(streamed, 0, 9, 6)['image'][30:])
    np.testing.assert_array_equal(take_steps(streamed, 5, 1, 6, slice(2, 4))['image'], rest['image'][2:4])


def take_steps(source, step, steps, batch_size, rows=None):
    stream = source.train.open(3, step, batch_size, rows or slice(0, batch_size))
    batches = [next(stream) for _ in range(steps)]
    stream.close()
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_a_stream_may_be_of_some_classes(tmp_path):
    numbers = write_folder(tmp_path, {'a': 6, 'b': 6, 'c': 6})
    source = load(tmp_path, kept_gb=0.0, classes=(2, 0), examples_per_class=2)
    assert (source.train.count, source.evaluation.count) == (4, 2)
    expected = [(n, label) for label, name in enumerate('ca') for n in order_by_hash(numbers, name)[1:3]]
    assert read_numbers(take_steps(source, 0, 1, 4)) == sorted(expected)


def test_what_is_kept_is_by_size_and_the_same_for_every_task(tmp_path):
    write_folder(tmp_path, {'a': 5, 'b': 5})
    size = 10 * SIDE * SIDE * 3
    assert isinstance(load(tmp_path, kept_gb=size / 1e9).train, dict)
    for classes in ((), (0,)):
        assert not isinstance(load(tmp_path, kept_gb=(size - 1) / 1e9, classes=classes).train, dict)


# --- What is refused -------------------------------------------------------------------------------


def assert_refused(folder, message, **changes):
    with pytest.raises(UserError, match=message) as error_info:
        load(folder, **changes)
    assert '\n' not in str(error_info.value)


@pytest.mark.parametrize(
    ('counts', 'split', 'message'),
    [
        (
            {'a': 5, 'b': 1},
            'test',
            r'/b has 1 image; with dataset\.split=test a class takes 2 at the least\.$',
        ),
        (
            {'a': 5, 'b': 2},
            'validation',
            r'/b has 2 images; with dataset\.split=validation a class takes 3 at',
        ),
        ({'a': 5, 'b': 0}, 'test', r'/b has no images; read are \.jpg, '),
        ({'a': 5}, 'test', r'^dataset\.path .* has 1 class; it must be a folder of images, with'),
        ({}, 'test', r'^dataset\.path .* has no class; it must be a folder of images, with'),
        ({'train/a': 5, 'train/b': 5}, 'test', r'^dataset\.path .* has train and no test; it must be'),
        ({'test/a': 5, 'test/b': 5}, 'test', r'^dataset\.path .* has test and no train; it must be'),
        (
            {'train/a': 2, 'train/b': 2, 'train/c': 2, 'test/a': 1, 'test/b': 1},
            'test',
            r'/train has the class c, which .*/test has not; both need all\.',
        ),
        (
            {'train/a': 2, 'train/b': 2, 'test/a': 1, 'test/b': 1, 'test/c': 1},
            'test',
            r'/test has the class c, which .*/train has not',
        ),
        (
            {'train/a': 1, 'train/b': 2, 'test/a': 1, 'test/b': 1},
            'validation',
            r'/train/a has 1 image; with dataset\.split=validation a class takes 2',
        ),
        ({'train/a': 1, 'train/b': 2, 'test/a': 1, 'test/b': 0}, 'test', r'/test/b has no images'),
    ],
)
def test_a_folder_that_is_laid_out_otherwise_is_refused(tmp_path, counts, split, message):
    write_folder(tmp_path, counts)
    assert_refused(tmp_path, message, split=split)


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / 'file').write_text('x')
    assert_refused('', r'^dataset\.path is empty; name a folder of images')
    assert_refused(tmp_path / 'gone', r'^dataset\.path .*gone is not there; name a folder')
    assert_refused(tmp_path / 'file', r'^dataset\.path .*file is a file; name a folder of images')


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    write_folder(tmp_path, {'a': 2, 'b': 2})

    def deny_access(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(folders, '_list_class', deny_access)
    assert_refused(tmp_path, r'^dataset\.path .* cannot be read: Permission denied\.$')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'classes': (0, 2)}, r'^dataset\.classes is \(0, 2\); own has different numbers from 0 to 1\.'),
        ({'classes': (1, 1)}, r'^dataset\.classes is \(1, 1\)'),
        ({'examples_per_class': 5}, r'^dataset\.examples_per_class is 5; only 4 training images of a class'),
    ],
)
@pytest.mark.parametrize('kept_gb', [0.0, 1.0])
def test_classes_and_examples_that_are_not_there_are_refused(tmp_path, changes, message, kept_gb):
    write_folder(tmp_path / 'own', {'a': 5, 'b': 6})
    assert_refused(tmp_path / 'own', message, kept_gb=kept_gb, **changes)


def cut_file(folder):
    path = folder / 'b' / '003.jpg'
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:700])


UNREADABLE = {
    'empty': lambda folder: (folder / 'b' / '003.jpg').write_bytes(b''),
    'text': lambda folder: (folder / 'b' / '003.jpg').write_text('<html>not found</html>'),
    'a folder': lambda folder: (folder / 'b' / '003.jpg').mkdir(),
    'gone': lambda folder: (folder / 'b' / '003.jpg').symlink_to(folder / 'nowhere'),
    'cut short': cut_file,
}


@pytest.mark.parametrize('name', UNREADABLE)
@pytest.mark.parametrize('kept_gb', [0.0, 1.0])
def test_an_image_that_cannot_be_read_is_refused_by_name(tmp_path, name, kept_gb):
    write_folder(tmp_path, {'a': 3, 'b': 3}, suffix='.jpg')
    UNREADABLE[name](tmp_path)
    if (name, kept_gb) == ('cut short', 0.0):
        # The file begins as an image does, so a stream only notices when it decodes it.
        with pytest.raises(
            UserError, match=r'/b/003\.jpg cannot be decoded \(image file is truncated[^\n]+\)\.$'
        ):
            take_steps(load(tmp_path, kept_gb=kept_gb), 0, 8, 1)
        return
    assert_refused(tmp_path, r'/b/003\.jpg', kept_gb=kept_gb)


def test_a_teachers_classes_are_reported_as_its_own(tmp_path):
    write_folder(tmp_path / 'own', {'a': 20, 'b': 20})
    config = make_config(tmp_path / 'own')
    config.update_from_flattened_dict({**SMALL, 'method': 'td', 'teacher.dataset.classes': (0, 7)})
    with pytest.raises(UserError, match=r'^teacher\.dataset\.classes is \(0, 7\); own has different numbers'):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_images_that_do_not_fit_are_refused_with_the_way_out(tmp_path, monkeypatch):
    write_folder(tmp_path / 'own', {'a': 20, 'b': 20})
    monkeypatch.setattr(memory, 'of_machine', lambda: 1000)
    message = r'dataset\.kept_gb is 2\.0 and the images take 0\.0 GB, .* lower dataset\.kept_gb'
    assert_refused(tmp_path / 'own', message)
    monkeypatch.undo()
    config = make_config(tmp_path / 'own', image_size=32)
    config.update_from_flattened_dict({**SMALL, 'dataset.image_size': 32})
    monkeypatch.setattr(memory, 'of_device', lambda device: 100_000)
    with pytest.raises(UserError, match=r'this run needs .*\(data 0\.0, .*: lower dataset\.kept_gb'):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


# --- A run -----------------------------------------------------------------------------------------

SMALL = {
    **{'method': 'supervised', 'num_seeds': 1, 'num_steps': 40, 'batch_size': 8, 'eval_batch_size': 8},
    **{'dataset.image_size': SIDE, 'dataset.min_crop_area': 1.0, 'optimizer.learning_rate': 0.01},
    **{'model.initial': 'random', 'model.layers': 1, 'model.split': 1},
    **{'model.width': 8, 'model.mlp': 8, 'model.heads': 2},
}


def write_coloured(folder):
    """Two classes that are easy to distinguish, and one file that is no image."""
    write_folder(folder, {'dark things': 30})
    write_folder(folder, {'lights': 30}, first=150)
    (folder / 'README').write_text('mine')
    return folder


def test_a_run_from_the_command_line(tmp_path):
    flags = [f'--config.{key}={value}' for key, value in SMALL.items()]
    flags += [f'--config.dataset.path={write_coloured(tmp_path / "own")}']
    command = ['-m', 'td_jax.main', '--config=configs/images.py', f'--workdir={tmp_path / "run"}', *flags]
    completed = forked.run(command)
    assert completed.returncode == 0, completed.stderr
    assert 'own holds what is not read: README\n' in completed.stderr
    assert 'supervised on own dark things, lights: test accuracy 1.0000' in completed.stdout
    assert json.loads((tmp_path / 'run' / 'result.json').read_text())['values'] == [1.0]


@pytest.mark.long
def test_a_run_on_a_stream(tmp_path):
    config = make_config(write_coloured(tmp_path / 'own'))
    config.update_from_flattened_dict({**SMALL, 'dataset.kept_gb': 0.0})
    assert train(config, tmp_path / 'run')['values'] == [1.0]


def test_a_data_set_that_is_read_first_is_not_counted_without(tmp_path):
    config = make_config(tmp_path)
    with pytest.raises(
        UserError, match=r'^dataset\.name images is known when it is read; known without data:'
    ):
        images.abstract_source(config.dataset, config.dataset)
