"""Finished runs of each kind, and the logits of their students."""

import jax
import numpy as np
import pytest

from td_jax.data import SOURCES, cifar
from td_jax.data import base as data
from td_jax.models import base
from td_jax.training import assembly, train_step
from td_jax.training import finished as finished_runs
from td_jax.training.run import train

NAMES = ('plane', 'car', 'bird')


@pytest.fixture(scope='session')
def mlp_run(small_config, tmp_path_factory):
    """The workdir of a finished TD run between MLPs."""
    folder = tmp_path_factory.mktemp('mlp')
    train(small_config(num_steps=2, teacher__num_steps=1), folder)
    return folder


@pytest.fixture
def images(monkeypatch):
    """Replaces CIFAR by 11 images of each of three classes in both parts."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 11)
    pixels = rng.integers(0, 256, (33, 32, 32, 3), np.uint8)
    parts = {'train': pixels, 'test': pixels[::-1]}, {'train': labels, 'test': labels[::-1]}
    monkeypatch.setattr(cifar, 'read', lambda name: (*parts, NAMES))


@pytest.fixture
def vit_config(small_config):
    """A function (dataset, **changes of config.model) -> the config of a small supervised ViT."""

    def make(dataset=None, **changes):
        model = {'name': 'vit', 'width': 10, 'layers': 2, 'mlp': 7, 'heads': 2, 'patch': 16, **changes}
        return small_config(
            method='supervised',
            num_steps=1,
            dataset__name='cifar10',
            dataset__classes=(2, 0),
            dataset__examples_per_class=0,
            teacher__dataset__classes=(),
            **{f'dataset__{key}': value for key, value in (dataset or {}).items()},
            **{f'model__{key}': value for key, value in model.items()},
        )

    return make


@pytest.fixture
def finished_vit(vit_config, images):
    """A function (compute_dtype, **changes of config.model) -> a run whose student has random numbers."""

    def make(compute_dtype='float32', **changes):
        config = vit_config(**changes)
        config.compute_dtype = compute_dtype
        source = SOURCES['cifar10'](config.dataset, config.dataset)
        model = assembly.build_model(config, config.model, source)
        inputs = source.inputs(source.tables, data.one_example(source), None)
        rng = np.random.default_rng(3)
        params = jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
            jax.eval_shape(model.init, jax.random.key(0), inputs),
        )
        return finished_runs.FinishedRun(config, source, model, {train_step.STUDENT: params})

    return make


@pytest.fixture
def logits_of():
    """A function (finished run, images) -> the logits of its student."""

    def compute(finished, images):
        model, params = finished.student, finished.params[train_step.STUDENT]
        return np.asarray(base.activations(model, params, {'image': images}).logits)

    return compute


@pytest.fixture
def model_images():
    """Five images as inputs of a model."""
    return np.random.default_rng(1).uniform(-1, 1, (5, 32, 32, 3)).astype(np.float32)
