"""A run that several tests look at."""

import pytest

from td_jax.training.run import train


@pytest.fixture(scope='module', autouse=True)
def programs_of_module(shared_programs):
    """All of these tests are of td_jax's own models and methods."""


@pytest.fixture(scope='module')
def td_config(small_config):
    """A run with all that may differ between two starts: dropout, noise, moments, an odd epoch."""
    return small_config(
        optimizer__weight_decay=0.1,
        model__dropout=0.2,
        communication__dropout=0.1,
        td__noise_std=0.1,
        batch_size=9,
    )


@pytest.fixture(scope='module')
def finished(td_config, tmp_path_factory):
    """The workdir of a finished run of td_config; copy it before anything is done to it."""
    folder = tmp_path_factory.mktemp('runs') / 'finished'
    train(td_config, folder)
    return folder
