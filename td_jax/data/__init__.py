"""The data sets, by the name that `config.dataset.name` gives them."""

import functools

from td_jax.data import cifar, digits, folders, imagenet, movielens, ratings_file, tfds_images

# name -> load(config.dataset, task) -> Source
SOURCES = {
    'movielens': movielens.load,
    'ratings': ratings_file.load,
    'digits': digits.load,
    'cifar10': functools.partial(cifar.load, 'cifar10'),
    'cifar100': functools.partial(cifar.load, 'cifar100'),
    'imagenet': imagenet.load,
    'images': folders.load,
    'tfds': tfds_images.load,
}
