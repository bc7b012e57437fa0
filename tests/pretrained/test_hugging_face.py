"""The folder of a Hugging Face ViT, and every kind of invalid folder."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from td_jax import pretrained
from td_jax.errors import UserError
from td_jax.models import vit
from td_jax.pretrained import hugging_face
from td_jax.pretrained.architecture import Preprocessing

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
BARE, CLASSIFIER = GOLDEN / 'hf_vit_tiny', GOLDEN / 'hf_vit_tiny_classifier'
SIZES = vit.Sizes(width=48, layers=6, mlp=96, heads=4)
LAYER = 'encoder.layer.0'


@pytest.mark.parametrize(
    ('name', 'ours'), [('gelu', 'gelu'), ('gelu_new', 'gelu_tanh'), ('gelu_pytorch_tanh', 'gelu_tanh')]
)
def test_activation_and_epsilon_come_from_the_config(change_folder, name, ours):
    folder = change_folder(lambda _, config: config.update(hidden_act=name, layer_norm_eps=1e-12))
    architecture = pretrained.read(folder).architecture
    assert (architecture.activation, architecture.epsilon) == (ours, 1e-12)


def test_what_a_config_leaves_out_is_as_in_transformers(change_folder):
    def change(_, config):
        for key in ('hidden_act', 'layer_norm_eps', 'num_hidden_layers', 'num_attention_heads', 'model_type'):
            del config[key]

    architecture = pretrained.read(change_folder(change)).architecture
    assert architecture.sizes == SIZES._replace(heads=12)
    assert (architecture.activation, architecture.epsilon) == ('gelu', 1e-12)


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'hidden_act': 'relu'}, "hidden_act 'relu' is not known. Known: gelu, gelu_new"),
        ({'hidden_act': ['gelu']}, r"hidden_act \['gelu'\] is not known"),
        ({'model_type': 'beit'}, "model_type 'beit' is not known. Known: vit, deit, dinov2, "),
        ({'pooler_act': 'relu'}, "pooler_act 'relu'"),
        ({'num_attention_heads': 5}, '5 attention heads do not divide the width, 48'),
        ({'num_attention_heads': 0}, 'num_attention_heads is 0'),
        ({'layer_norm_eps': '1e-6'}, "layer_norm_eps is '1e-6'"),
        ({'layer_norm_eps': float('nan')}, 'layer_norm_eps is nan'),
        ({'layer_norm_eps': float('inf')}, 'layer_norm_eps is inf'),
        ({'num_hidden_layers': 7}, r'encoder\.layer\.6\.\S+ is missing'),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change_folder, changes, text):
    with pytest.raises(UserError, match=text):
        pretrained.read(change_folder(lambda _, config: config.update(changes)))


@pytest.mark.parametrize(('path', 'prefix'), [(BARE, ''), (CLASSIFIER, 'vit.')], ids=['bare', 'under vit.'])
def test_a_missing_tensor_is_named_as_in_the_file(change_folder, path, prefix):
    key = f'{prefix}encoder.layer.4.attention.output.dense.bias'
    with pytest.raises(UserError, match=f' {key} is missing'):
        pretrained.read(change_folder(lambda values, _: values.pop(key), path))


@pytest.mark.parametrize(('path', 'key'), [(BARE, 'pooler.dense.weight'), (CLASSIFIER, 'classifier.weight')])
def test_a_layer_without_its_kernel_is_refused(change_folder, path, key):
    with pytest.raises(UserError, match=f' {key} is missing'):
        pretrained.read(change_folder(lambda values, _: values.pop(key), path))


def test_a_transposed_tensor_is_refused(change_folder):
    key = f'{LAYER}.intermediate.dense.weight'
    other = f'{LAYER}.output.dense.weight'
    with pytest.raises(UserError, match=rf'{other} is \[96, 48\]; .* \[48, 96\]'):
        pretrained.read(change_folder(lambda values, _: values.update({other: values[key]})))


@pytest.mark.parametrize('name', ['weight', 'both'])
def test_a_head_of_zeros_is_none(change_folder, name):
    def change(values, config):
        values['classifier.weight'][:] = 0
        values['classifier.bias'][:] = 0 if name == 'both' else 1

    checkpoint = pretrained.read(change_folder(change, CLASSIFIER))
    assert (checkpoint.architecture.num_outputs, checkpoint.has_zero_head) == (0, True)
    assert 'head_layer' not in checkpoint.params
    assert checkpoint.unused == ('classifier.bias', 'classifier.weight')


def test_attention_without_biases_has_zeros(change_folder):
    def change(values, config):
        config['qkv_bias'] = False
        for name in [name for name in values if name.endswith(('query.bias', 'key.bias', 'value.bias'))]:
            del values[name]

    checkpoint = pretrained.read(change_folder(change))
    assert not checkpoint.params['block_5']['attention']['key']['bias'].any()


def test_a_classifier_reads_the_token_and_not_the_pooler(change_folder):
    def change(values, _):
        values['vit.pooler.dense.weight'] = np.zeros((48, 48), np.float32)
        values['vit.pooler.dense.bias'] = np.zeros(48, np.float32)

    checkpoint = pretrained.read(change_folder(change, CLASSIFIER))
    assert not checkpoint.architecture.pre_logits
    assert checkpoint.unused == ('vit.pooler.dense.bias', 'vit.pooler.dense.weight')


def test_half_precision_becomes_float32(change_folder, flat):
    def change(values, _):
        values.update({name: x.astype(jax.numpy.bfloat16) for name, x in values.items()})

    params = flat(pretrained.read(change_folder(change)).params)
    assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_a_folder_with_a_file_missing_says_which(tmp_path, name):
    shutil.copytree(BARE, tmp_path / 'folder')
    (tmp_path / 'folder' / name).unlink()
    with pytest.raises(UserError, match=f'holds no {name}'):
        pretrained.read(str(tmp_path / 'folder'))


def test_a_config_that_is_no_json_is_refused(tmp_path):
    shutil.copytree(BARE, tmp_path / 'folder')
    (tmp_path / 'folder/config.json').write_text('{"hidden_act": ')
    with pytest.raises(UserError, match=r'config\.json cannot be read'):
        pretrained.read(str(tmp_path / 'folder'))


def test_weights_without_their_folder_are_refused():
    with pytest.raises(UserError, match=r'give its folder, which holds config\.json'):
        pretrained.read(str(BARE / 'model.safetensors'))


def test_what_is_written_has_the_names_shapes_and_values_of_the_original(tmp_path):
    source = GOLDEN / 'hf_vit_tiny_classifier'
    checkpoint = pretrained.read(str(source))
    names = [f'LABEL_{i}' for i in range(7)]
    hugging_face.write(
        tmp_path / 'made', checkpoint.architecture, checkpoint.preprocessing, checkpoint.params, names
    )
    theirs = load_file(source / 'model.safetensors')
    ours = load_file(tmp_path / 'made' / 'model.safetensors')
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key, strict=True)
    theirs, ours = (
        json.loads((folder / 'config.json').read_text()) for folder in (source, tmp_path / 'made')
    )
    added = {'num_labels': 7}
    assert {key: value for key, value in ours.items() if key not in theirs} == added
    assert {key: value for key, value in theirs.items() if key in ours} == {
        key: value for key, value in ours.items() if key not in added
    }


def test_numbers_that_are_none_are_named(change_folder):
    def change(values, _):
        values[f'{LAYER}.output.dense.bias'][5] = np.nan

    with pytest.raises(UserError, match=rf'{LAYER}\.output\.dense\.bias holds 1 numbers of 48'):
        pretrained.read(change_folder(change))


def test_half_a_number_that_is_none_is_named(change_folder):
    def change(values, _):
        values.update({name: x.astype(jax.numpy.bfloat16) for name, x in values.items()})
        values['embeddings.cls_token'][0, 0, 0] = np.inf

    with pytest.raises(UserError, match=r'embeddings\.cls_token holds 1 numbers of 48'):
        pretrained.read(change_folder(change))


def test_labels_are_called_what_the_config_says(change_folder):
    names = {str(i): f'name {i}' for i in reversed(range(7))}
    checkpoint = pretrained.read(change_folder(lambda _, config: config.update(id2label=names), CLASSIFIER))
    assert checkpoint.label_names == tuple(f'name {i}' for i in range(7))


@pytest.mark.parametrize('names', [None, {str(i): f'LABEL_{i}' for i in range(7)}])
def test_names_that_nobody_gave_are_none(change_folder, names):
    checkpoint = pretrained.read(change_folder(lambda _, config: config.update(id2label=names), CLASSIFIER))
    assert checkpoint.label_names is None


@pytest.mark.parametrize('names', [{'0': 'a', '1': 'b'}, {str(i + 1): 'x' for i in range(7)}, ['a'] * 7])
def test_names_of_other_outputs_are_refused(change_folder, names):
    with pytest.raises(
        UserError, match=r'config\.json: id2label has .*, but classifier\.weight has 7 outputs'
    ):
        pretrained.read(change_folder(lambda _, config: config.update(id2label=names), CLASSIFIER))


def test_a_model_without_a_head_has_no_labels(change_folder):
    checkpoint = pretrained.read(
        change_folder(lambda _, config: config.update(id2label={'0': 'a', '1': 'b'}))
    )
    assert (checkpoint.architecture.num_outputs, checkpoint.label_names) == (0, None)


def test_how_images_are_shown_is_read(change_folder):
    folder = pathlib.Path(change_folder(lambda *_: None))
    checkpoint = pretrained.read(str(folder))
    assert checkpoint.preprocessing == Preprocessing(
        (0.5,) * 3, (0.5,) * 3, 'bilinear_antialias', image_size=32
    )
    assert checkpoint.assumed.startswith('no preprocessor_config.json')
    mean = [0.485, 0.456, 0.406]
    (folder / 'preprocessor_config.json').write_text(json.dumps({'image_mean': mean, 'size': 32}))
    checkpoint = pretrained.read(str(folder))
    assert (checkpoint.preprocessing.image_mean, checkpoint.assumed) == (tuple(mean), '')
    (folder / 'preprocessor_config.json').write_text('{')
    with pytest.raises(UserError, match=r'preprocessor_config\.json cannot be read'):
        pretrained.read(str(folder))
