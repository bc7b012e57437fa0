"""States of a checkpoint against those of its own implementation."""

import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from td_jax.models import base, vit
from td_jax.pretrained import fit
from td_jax.pretrained.architecture import build_module

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NPZ, PRE_LOGITS = GOLDEN / 'vit_tiny.npz', GOLDEN / 'vit_tiny_prelogits.npz'
BARE, CLASSIFIER = GOLDEN / 'hf_vit_tiny', GOLDEN / 'hf_vit_tiny_classifier'
SIZES = vit.Sizes(width=48, layers=6, mlp=96, heads=4)
# name -> (checkpoint, expected states, side of the images).
CASES = {
    'npz': (NPZ, GOLDEN / 'vit_tiny.expected.npz', 32),
    'npz with pre-logits': (PRE_LOGITS, GOLDEN / 'vit_tiny_prelogits.expected.npz', 32),
    'npz at 48 pixels': (PRE_LOGITS, GOLDEN / 'vit_tiny_prelogits_at48.expected.npz', 48),
    'hf with pooler': (BARE, BARE / 'expected.npz', 32),
    'hf with classifier': (CLASSIFIER, CLASSIFIER / 'expected.npz', 32),
}


def read_arrays(path):
    with np.load(path) as file:
        return dict(file)


def assert_close(actual, expected):
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('case', CASES)
def test_every_state_is_the_originals(checkpoints, case, initial):
    path, expected_path, side = CASES[case]
    expected = read_arrays(expected_path)
    checkpoint = checkpoints[path]
    architecture = checkpoint.architecture
    assert architecture.sizes == SIZES
    params, report = fit.fit(checkpoint, initial(architecture, side))
    assert report.resized == (('pos_embedding',) if side == 48 else ())
    assert report.unused == ()
    inputs = {'image': expected['images']}
    compared_keys = set()

    def compare(key, value):
        if key in expected:
            assert_close(value, expected[key])
            compared_keys.add(key)

    for split in range(SIZES.layers + 1):
        model = base.from_module(build_module(architecture, split))
        s = model.lower(params, inputs)
        compare(f'hidden_states.{split}', s)
        compare(f'Transformer.encoderblock_{split - 1}', s)
        e = model.upper(params, s)
        compare('last_hidden_state', e)
        compare('Transformer.encoder_norm', e)
        compare('logits', model.head(params, e))
    patches = vit.cut_patches(expected['images'], 8)
    embedded = patches @ params['embedding']['kernel'] + params['embedding']['bias']
    compare('embedding', embedded.reshape(len(embedded), side // 8, side // 8, -1))
    compare('pos_embedding', params['pos_embedding'])
    token = np.asarray(e[:, 0])
    if architecture.pre_logits and side == 32:  # At 48 pixels the original was run without it.
        layer = params['pre_logits_layer']
        token = token @ layer['kernel'] + layer['bias']  # The original stores it before the tanh.
    compare('pre_logits', token)
    assert compared_keys == expected.keys() - {'images'}


@pytest.mark.parametrize('case', ['npz', 'hf with classifier'])
def test_the_other_gelu_would_be_noticed(checkpoints, case):
    path, expected_path, _ = CASES[case]
    expected, checkpoint = read_arrays(expected_path), checkpoints[path]
    other = {'gelu': 'gelu_tanh', 'gelu_tanh': 'gelu'}[checkpoint.architecture.activation]
    model = base.from_module(build_module(checkpoint.architecture._replace(activation=other), 6))
    s = np.asarray(model.lower(checkpoint.params, {'image': expected['images']}))
    key = 'hidden_states.6' if path == CLASSIFIER else 'Transformer.encoderblock_5'
    assert np.abs(s - expected[key]).max() > 1e-4


def test_the_pooler_is_the_dense_before_the_head(checkpoints, initial):
    raw, architecture = load_file(BARE / 'model.safetensors'), checkpoints[BARE].architecture
    tree, report = fit.fit(checkpoints[BARE], initial(architecture, num_outputs=48))
    assert set(report.initialised) == {'head_layer/bias', 'head_layer/kernel'}
    tree['head_layer'] = {'kernel': np.eye(48, dtype=np.float32), 'bias': np.zeros(48, np.float32)}
    model = base.from_module(build_module(architecture._replace(num_outputs=48), 0))
    e = read_arrays(BARE / 'expected.npz')['last_hidden_state']
    expected = np.tanh(e[:, 0] @ raw['pooler.dense.weight'].T + raw['pooler.dense.bias'])
    assert_close(model.head(tree, e), expected)
