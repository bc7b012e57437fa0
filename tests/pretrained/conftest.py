"""Checkpoints, and changed copies of them."""

import json
import pathlib
import shutil

import flax
import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from td_jax import pretrained
from td_jax.pretrained import weights
from td_jax.pretrained.architecture import build_module

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NPZ, PRE_LOGITS = GOLDEN / 'vit_tiny.npz', GOLDEN / 'vit_tiny_prelogits.npz'
BARE, CLASSIFIER = GOLDEN / 'hf_vit_tiny', GOLDEN / 'hf_vit_tiny_classifier'


def _arrays(path):
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope='session')
def initial():
    """A function (architecture, image_size, **its changes) -> a tree as `init` would make it.

    All values are 7, which no checkpoint holds, so that copied values can be recognised.
    """

    def make(architecture, image_size=None, **changes):
        architecture = architecture._replace(image_size=image_size or architecture.image_size, **changes)
        module = build_module(architecture, split=0)
        image = np.zeros((1, architecture.image_size, architecture.image_size, 3), np.float32)
        tree = jax.eval_shape(module.init, jax.random.key(0), {'image': image})['params']
        return jax.tree.map(lambda x: np.full(x.shape, 7.0, np.float32), tree)

    return make


@pytest.fixture(scope='session')
def flat():
    """A function (tree) -> {name: leaf}."""

    def make(tree):
        return flax.traverse_util.flatten_dict(tree, sep='/')

    return make


@pytest.fixture(scope='session')
def checkpoints():
    """The four checkpoints, read once; no test changes them."""
    return {path: pretrained.read(str(path)) for path in (NPZ, PRE_LOGITS, BARE, CLASSIFIER)}


@pytest.fixture
def change_npz(tmp_path):
    """A function (change, path) -> a copy of an .npz whose arrays went through `change`."""

    def make(change, path=NPZ):
        values = _arrays(path)
        change(values)
        np.savez(tmp_path / 'changed.npz', **values)
        return str(tmp_path / 'changed.npz')

    return make


@pytest.fixture
def change_folder(tmp_path):
    """A function (change, path) -> a changed copy of a Hugging Face folder; `change` also gets the config."""

    def make(change, path=BARE):
        shutil.copytree(path, tmp_path / 'changed')
        values, config = load_file(path / 'model.safetensors'), json.loads((path / 'config.json').read_text())
        change(values, config)
        save_file(
            {key: np.ascontiguousarray(x) for key, x in values.items()},
            tmp_path / 'changed/model.safetensors',
        )
        (tmp_path / 'changed/config.json').write_text(json.dumps(config))
        return str(tmp_path / 'changed')

    return make


@pytest.fixture
def write_in_parts():
    """A function (folder, new one) -> its copy with four files of arrays, as save_pretrained writes them."""

    def write(source, folder):
        arrays = load_file(source / weights.FILE)
        size = sum(array.nbytes for array in arrays.values())
        parts = huggingface_hub.split_state_dict_into_shards_factory(
            arrays,
            get_storage_size=lambda array: array.nbytes,
            filename_pattern='model{suffix}.safetensors',
            max_shard_size=size // 3,
        )
        folder.mkdir()
        shutil.copy(source / 'config.json', folder)
        for name, keys in parts.filename_to_tensors.items():
            save_file({key: arrays[key] for key in keys}, folder / name, metadata={'format': 'pt'})
        index = {'metadata': parts.metadata, 'weight_map': parts.tensor_to_filename}
        (folder / weights.INDEX).write_text(json.dumps(index, indent=2))
        return folder

    return write
