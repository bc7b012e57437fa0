"""What several tests share."""

import os
import pathlib

import jax
import pytest

from configs import digits

# A shape that broadcasts by accident is an error.
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def movielens_data():
    """Skips a test where the real ratings are not prepared."""
    folder = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
    if not (folder / 'movielens' / '100k-ratings').is_dir():
        pytest.skip(f'movielens/100k-ratings is not prepared in {folder}; set TFDS_DATA_DIR')


@pytest.fixture
def small_config():
    """A function (**changes, keys with __ for dots) -> a config that trains in a second."""

    def make(**changes):
        config = digits.get_config()
        config.num_seeds = 2
        config.num_steps = 6
        config.batch_size = 8
        config.eval_every = config.log_every = config.save_every = 2
        config.model.hidden = (5, 3)
        config.teacher.model.hidden = (7, 11)
        config.teacher.num_steps = 4
        config.communication.hidden = 13
        config.communication.message = 2
        config.update_from_flattened_dict({key.replace('__', '.'): v for key, v in changes.items()})
        return config

    return make
