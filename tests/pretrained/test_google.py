"""The .npz of google-research/vision_transformer, and every kind of invalid file."""

import pathlib

import jax
import numpy as np
import pytest

from td_jax import pretrained
from td_jax.errors import UserError
from td_jax.models import vit
from td_jax.pretrained import fit, google
from td_jax.pretrained.architecture import Architecture, parameter_shapes

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NPZ, PRE_LOGITS = GOLDEN / 'vit_tiny.npz', GOLDEN / 'vit_tiny_prelogits.npz'
BARE, CLASSIFIER = GOLDEN / 'hf_vit_tiny', GOLDEN / 'hf_vit_tiny_classifier'
SIZES = vit.Sizes(width=48, layers=6, mlp=96, heads=4)
BLOCK = 'Transformer/encoderblock_0'


def read_arrays(path):
    with np.load(path) as file:
        return dict(file)


def test_architectures_are_read_from_the_shapes(checkpoints, flat):
    google = Architecture(SIZES, 8, 32, 10, 'gelu_tanh', 1e-6, False)
    assert checkpoints[NPZ].architecture == google
    assert checkpoints[PRE_LOGITS].architecture == google._replace(num_outputs=37, pre_logits=True)
    hugging_face = google._replace(activation='gelu', num_outputs=0, pre_logits=True)
    assert checkpoints[BARE].architecture == hugging_face
    assert checkpoints[CLASSIFIER].architecture == hugging_face._replace(num_outputs=7, pre_logits=False)
    for checkpoint in checkpoints.values():
        params = flat(checkpoint.params)
        assert {name: x.shape for name, x in params.items()} == parameter_shapes(checkpoint.architecture)
        assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
        assert checkpoint.unused == ()
    assert 'head_layer' not in checkpoints[BARE].params


def rename_to_old(values):
    """Renames modules as in files from before Linen, which number all modules of a block together."""
    new = {
        'LayerNorm_1': 'LayerNorm_2',
        'MultiHeadDotProductAttention_0': 'MultiHeadDotProductAttention_1',
        'MlpBlock_0': 'MlpBlock_3',
    }
    for name in list(values):
        parts = [new.get(part, part) for part in name.split('/')]
        values['/'.join(parts)] = values.pop(name)


def test_the_older_names_are_read_alike(checkpoints, change_npz):
    checkpoint = pretrained.read(change_npz(rename_to_old, PRE_LOGITS))
    assert 'MlpBlock_3' in str(list(read_arrays(checkpoint.location)))
    assert checkpoint.architecture == checkpoints[PRE_LOGITS].architecture
    assert checkpoint.unused == ()
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, checkpoints[PRE_LOGITS].params)


def test_a_head_of_21843_is_read_and_replaced_for_other_labels(change_npz, initial):
    def change(values):
        values['head/kernel'] = np.ones((48, 21843), np.float16)
        values['head/bias'] = np.zeros(21843, np.float16)

    checkpoint = pretrained.read(change_npz(change))
    assert checkpoint.architecture.num_outputs == 21843
    assert checkpoint.params['head_layer']['kernel'].dtype == np.float32
    params, report = fit.fit(checkpoint, initial(checkpoint.architecture))
    assert report.initialised == report.unused == ()
    assert (params['head_layer']['kernel'] == 1).all()
    params, report = fit.fit(checkpoint, initial(checkpoint.architecture, num_outputs=10))
    assert set(report.initialised) == set(report.unused) == {'head_layer/kernel', 'head_layer/bias'}
    assert (params['head_layer']['kernel'] == 7).all()
    assert params['head_layer']['kernel'].shape == (48, 10)


def remove_head(values):
    del values['head/kernel'], values['head/bias']


def zero_head(values):
    values['head/kernel'][:] = 0


def empty_head(values):
    values['head/kernel'], values['head/bias'] = np.zeros((48, 0), np.float32), np.zeros(0, np.float32)


@pytest.mark.parametrize('change', [remove_head, zero_head, empty_head])
def test_a_head_that_was_never_trained_is_none(change_npz, change, initial):
    checkpoint = pretrained.read(change_npz(change))
    assert checkpoint.architecture.num_outputs == 0
    assert 'head_layer' not in checkpoint.params
    params, report = fit.fit(checkpoint, initial(checkpoint.architecture, num_outputs=10))
    assert set(report.initialised) == {'head_layer/kernel', 'head_layer/bias'}
    assert (params['head_layer']['kernel'] == 7).all()
    assert set(report.unused) == (set() if change is remove_head else {'head/kernel', 'head/bias'})


@pytest.mark.parametrize(
    'key',
    [
        'embedding/kernel',
        'embedding/bias',
        'cls',
        'Transformer/posembed_input/pos_embedding',
        'Transformer/encoder_norm/scale',
        f'{BLOCK}/LayerNorm_0/bias',
        f'{BLOCK}/LayerNorm_1/scale',
        f'{BLOCK}/MultiHeadDotProductAttention_0/query/kernel',
        f'{BLOCK}/MlpBlock_0/Dense_0/kernel',
        'Transformer/encoderblock_3/MlpBlock_0/Dense_1/bias',
        'pre_logits/kernel',
        'pre_logits/bias',
        'head/kernel',
        'head/bias',
    ],
)
def test_a_missing_key_is_named(change_npz, key):
    path = PRE_LOGITS if key.startswith('pre_logits') else NPZ
    with pytest.raises(UserError, match=rf'{key} is missing'):
        pretrained.read(change_npz(lambda values: values.pop(key), path))


@pytest.mark.parametrize('norm', [0, 1])
def test_a_missing_norm_is_not_taken_for_the_other_one(change_npz, norm):
    def change(values):
        for leaf in ('scale', 'bias'):
            del values[f'{BLOCK}/LayerNorm_{norm}/{leaf}']

    with pytest.raises(UserError, match=rf'LayerNorm_{norm}/\w+ is missing'):
        pretrained.read(change_npz(change))


def test_a_missing_block_is_named(change_npz):
    def change(values):
        for name in [name for name in values if '_2/' in name]:
            del values[name]

    with pytest.raises(UserError, match=r'encoderblock_2/\S+ is missing'):
        pretrained.read(change_npz(change))


@pytest.mark.parametrize(
    ('key', 'shape', 'text'),
    [
        ('embedding/kernel', (8, 8, 1, 48), r'embedding/kernel is \[8, 8, 1, 48\]'),
        ('embedding/kernel', (1, 1, 1024, 48), r'\[patch, patch, 3, width\]'),
        ('embedding/kernel', (192, 48), 'it has 4 axes'),
        ('cls', (1, 1, 47), r'cls is \[1, 1, 47\]; .* \[1, 1, 48\]'),
        (f'{BLOCK}/MlpBlock_0/Dense_1/kernel', (48, 96), r'Dense_1/kernel is \[48, 96\]; .* \[96, 48\]'),
        (f'{BLOCK}/MultiHeadDotProductAttention_0/key/bias', (48,), 'key/bias is .* it has 2 axes'),
        (
            f'{BLOCK}/MultiHeadDotProductAttention_0/query/kernel',
            (48, 5, 12),
            '5 attention heads do not divide',
        ),
        ('Transformer/posembed_input/pos_embedding', (1, 16, 48), r'\[1, 16, 48\] .* square grid'),
        ('Transformer/posembed_input/pos_embedding', (1, 1, 48), 'square grid'),
        ('Transformer/posembed_input/pos_embedding', (1, 0, 48), 'none of them empty'),
    ],
)
def test_a_wrong_shape_is_named(change_npz, key, shape, text):
    with pytest.raises(UserError, match=text):
        pretrained.read(change_npz(lambda values: values.update({key: np.zeros(shape, np.float32)})))


def test_numbers_of_another_kind_are_refused(change_npz):
    with pytest.raises(UserError, match='cls is of int32'):
        pretrained.read(change_npz(lambda values: values.update(cls=values['cls'].astype(np.int32))))


def test_what_is_written_has_the_names_shapes_and_values_of_the_original(tmp_path):
    for name in ('vit_tiny.npz', 'vit_tiny_prelogits.npz'):
        checkpoint = pretrained.read(str(GOLDEN / name))
        google.write(tmp_path / name, checkpoint.architecture, checkpoint.params)
        with np.load(GOLDEN / name) as theirs, np.load(tmp_path / name) as ours:
            assert sorted(ours) == sorted(theirs)
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key, strict=True)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('key', ['cls', 'head/bias', f'{BLOCK}/MlpBlock_0/Dense_1/kernel'])
def test_numbers_that_are_none_are_named(change_npz, key, value):
    def change(values):
        values[key].reshape(-1)[-3:] = value

    with pytest.raises(UserError, match=rf'{key} holds 3 numbers of \d+ that are NaN or infinite'):
        pretrained.read(change_npz(change))


def test_numbers_that_float32_does_not_hold_are_named(change_npz):
    with pytest.raises(UserError, match='cls holds 48 numbers of 48'):
        pretrained.read(change_npz(lambda values: values.update(cls=np.full((1, 1, 48), 1e300))))
