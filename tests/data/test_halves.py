"""The two halves of a test set: the content of an image decides which half it belongs to."""

import hashlib

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from td_jax import config as config_lib
from td_jax.configs import digits as digits_config
from td_jax.configs import images as images_config
from td_jax.configs import movielens as movielens_config
from td_jax.data import base, digits, folders, imagenet
from td_jax.errors import UserError
from td_jax.training.run import train

PARTS = 'all', 'development', 'held_out'


def compute_half(content):
    """0 or 1: the last bit of a digest, as `sha256sum` prints it."""
    return int(hashlib.sha256(content).hexdigest()[-1], 16) % 2


def load_digits_part(part, split='test', classes=(5, 6)):
    config = digits_config.get_config()
    config.dataset.classes, config.dataset.split, config.dataset.test_part = classes, split, part
    return digits.load(config.dataset, config.dataset)


def test_each_image_of_the_digits_is_of_the_half_that_its_content_says():
    everything, *halves = map(load_digits_part, PARTS)
    images, _ = sklearn.datasets.load_digits(return_X_y=True)
    of_image = {
        image.astype(np.float32).tobytes(): compute_half(image.astype(np.uint8).tobytes()) for image in images
    }
    counts = []
    for half, source in enumerate(halves):
        images_bytes = [(16 * image).tobytes() for image in source.evaluation['image']]
        assert {of_image[image] for image in images_bytes} == {half}
        assert source.name.startswith(everything.name) and source.name != everything.name
        np.testing.assert_array_equal(source.train.examples['image'], everything.train.examples['image'])
        counts.append(base.count(source.evaluation))
    assert sum(counts) == base.count(everything.evaluation)
    assert min(counts) > 0.4 * sum(counts)
    # A search evaluates on the validation slice, whatever the half.
    everything_of_search, held_out = (
        load_digits_part('all', 'validation'),
        load_digits_part('held_out', 'validation'),
    )
    assert held_out.name == everything_of_search.name
    np.testing.assert_array_equal(held_out.evaluation['image'], everything_of_search.evaluation['image'])


def write_classes(folder):
    """Writes two classes with twenty test images each; returns {number of an image: its half}."""
    halves = {}
    for part, count in (('train', 2), ('test', 20)):
        for name in ('a', 'b'):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                number = len(halves)
                file = folder / part / name / f'{i}.png'
                PIL.Image.fromarray(np.full((6, 6, 3), (number, 1, 2), np.uint8)).save(file)
                halves[number] = compute_half(file.read_bytes())
    return halves


def load_folder_part(folder, part, **changes):
    config = images_config.get_config()
    config.dataset.update({'path': str(folder), 'test_part': part, **changes})
    return folders.load(config.dataset, config.dataset)


@pytest.mark.parametrize('size', [4, 6])
def test_the_half_of_a_file_is_that_of_its_bytes_whatever_size_it_is_shown_in(tmp_path, size):
    halves = write_classes(tmp_path)
    numbers = []
    for part in PARTS:
        source = load_folder_part(tmp_path, part, image_size=size)
        numbers.append(set(source.evaluation['image'][:, 0, 0, 0].tolist()))
    everything, development, held_out = numbers
    assert len(everything) == 40
    assert development == {number for number in everything if halves[number] == 0}
    assert held_out == everything - development
    assert min(len(development), len(held_out)) > 10
    assert source.name.endswith('a, b, held-out half of the test')


def test_what_is_streamed_is_refused(tmp_path):
    write_classes(tmp_path)
    with pytest.raises(
        UserError, match=r'^dataset\.test_part is held_out, .* leave it at all, or raise dataset'
    ):
        load_folder_part(tmp_path, 'held_out', image_size=4, kept_gb=0.0)
    config = images_config.get_config()
    config.dataset.name, config.dataset.test_part = 'imagenet', 'development'
    with pytest.raises(
        UserError, match=r'^dataset\.test_part is .* but imagenet is streamed: leave it at all\.$'
    ):
        imagenet.load(config.dataset, config.dataset)


def test_ratings_have_no_images():
    config = movielens_config.get_config()
    config.dataset.test_part = 'held_out'
    with pytest.raises(
        UserError, match=r'^dataset\.test_part is held_out, .* dataset\.name is movielens; leave'
    ):
        config_lib.check(config)


def test_a_run_on_a_half_is_another_run_and_says_so(small_config, tmp_path):
    configs = {
        part: small_config(method='supervised', num_steps=2, dataset__test_part=part) for part in PARTS
    }
    assert len({config_lib.digest(config) for config in configs.values()}) == 3
    result = train(configs['held_out'], tmp_path)
    assert result['dataset'] == 'digits 5, 6, 7, 8, 9, held-out half of the test'
    with pytest.raises(UserError, match=r'dataset\.test_part \(held_out there, development here\)'):
        train(configs['development'], tmp_path)
