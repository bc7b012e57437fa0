"""A run that several test files use."""

import pytest

from td_jax.training.run import train


@pytest.fixture(scope='module', autouse=True)
def programs_of_module(shared_programs):
    """Shares programs, because these tests use only td_jax's own models and methods."""


@pytest.fixture(scope='module')
def td_config(small_config):
    """A run with everything that an interruption could change: dropout, noise, moments, a partial epoch."""
    return small_config(
        optimizer__weight_decay=0.1,
        model__dropout=0.2,
        communication__dropout=0.1,
        td__noise_std=0.1,
        batch_size=9,
    )


@pytest.fixture(scope='module')
def finished(td_config, tmp_path_factory):
    """The workdir of a finished run of td_config; copy it before changing it."""
    folder = tmp_path_factory.mktemp('runs') / 'finished'
    train(td_config, folder)
    return folder
