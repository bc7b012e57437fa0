"""DeiT and DINOv2: states against transformers, written folders, and every kind of invalid folder."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from td_jax import pretrained
from td_jax.errors import UserError
from td_jax.models import base, vit
from td_jax.pretrained import fit, hugging_face, kinds, preprocessing
from td_jax.pretrained.architecture import Architecture, Preprocessing, build_module

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
DEIT, DINOV2, REGISTERS = (GOLDEN / f'hf_{name}_tiny' for name in ('deit', 'dinov2', 'dinov2_registers'))
SIZES = vit.Sizes(width=24, layers=2, mlp=48, heads=3)
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None)


def read_expected(folder):
    with np.load(folder / 'expected.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def read_checkpoint():
    """A function (folder) -> its checkpoint, read once; no test changes it."""
    checkpoints = {}

    def read_once(folder):
        if folder not in checkpoints:
            checkpoints[folder] = pretrained.read(str(folder))
        return checkpoints[folder]

    return read_once


@pytest.mark.parametrize(
    ('folder', 'registers', 'pooling'),
    [(DEIT, 1, 'class_and_register'), (DINOV2, 0, 'class'), (REGISTERS, 3, 'class_and_mean')],
    ids=['deit', 'dinov2', 'dinov2 with registers'],
)
def test_every_state_is_that_of_transformers(read_checkpoint, folder, registers, pooling):
    checkpoint, expected = read_checkpoint(folder), read_expected(folder)
    architecture = checkpoint.architecture
    assert (architecture.sizes, architecture.patch, architecture.image_size) == (SIZES, 8, 32)
    assert (architecture.registers, architecture.pooling) == (registers, pooling)
    assert [name.split('.')[-1] for name in checkpoint.unused] == ([] if folder == DEIT else ['mask_token'])
    states = {}
    for split in range(3):
        model = base.from_module(build_module(architecture, split), registers)
        s = model.lower(checkpoint.params, {'image': expected['images']})
        states[f'hidden_states.{split}'] = s
    e = states['last_hidden_state'] = model.upper(checkpoint.params, s)
    if architecture.num_outputs:
        states['logits'] = model.head(checkpoint.params, e)
    for name, value in states.items():
        assert np.std(expected[name]) > 0.1
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert (
        states.keys() | {'images', 'position_embeddings_at24', 'position_embeddings_at48'} == expected.keys()
    )


def test_a_real_one_is_that_of_onnxruntime(foundation):
    """The file has float16, and what is expected was computed of float32."""
    path = foundation('dinov2_small_saliency')
    checkpoint = pretrained.read(str(path))
    assert (checkpoint.architecture.patch, checkpoint.architecture.num_outputs) == (14, 0)
    module = build_module(checkpoint.architecture._replace(image_size=224), 6)
    with np.load(path / 'expected.npz') as expected:
        mean, std = (np.array(values, 'f') for values in checkpoint.preprocessing[:2])
        image = (expected['pixels_224'][:1] / np.float32(255) - mean) / std
        initial = jax.eval_shape(module.init, jax.random.key(0), {'image': image})['params']
        params = {'params': fit.fit(checkpoint, initial)[0]}
        s = jax.jit(lambda params, x: module.apply(params, {'image': x}, method='lower'))(params, image)
        e = jax.jit(lambda params, s: module.apply(params, s, method='upper'))(params, s)
        for actual, name in ((s, 'after_block_6'), (e, 'tokens_224')):
            difference = np.linalg.norm(actual - expected[name][:1]) / np.linalg.norm(expected[name][:1])
            assert difference < 2e-3, name


@pytest.mark.parametrize('folder', [DEIT, DINOV2, REGISTERS], ids=['deit', 'dinov2', 'dinov2 with registers'])
@pytest.mark.parametrize('side', [24, 48])
def test_positions_are_stretched_as_transformers_does(read_checkpoint, initial, folder, side):
    checkpoint, expected = read_checkpoint(folder), read_expected(folder)[f'position_embeddings_at{side}']
    params, report = fit.fit(checkpoint, initial(checkpoint.architecture, side))
    assert report.resized == ('pos_embedding',)
    if folder == DEIT:
        # The position of the distillation token is part of the register.
        expected = np.delete(expected, 1, axis=1)
    np.testing.assert_allclose(params['pos_embedding'], expected, rtol=1e-4, atol=1e-5)
    other = fit.resize_positions(checkpoint.params['pos_embedding'], (side // 8) ** 2)
    assert np.abs(other - expected).max() > 0.01


@pytest.mark.parametrize('side', [24, 48])
def test_positions_of_a_vit_are_stretched_as_those_of_a_dinov2(change_folder, initial, side):
    """The two have one function in transformers; here with the same positions, twice as wide."""
    positions = load_file(DINOV2 / 'model.safetensors')['embeddings.position_embeddings']

    def change(values, _):
        values['embeddings.position_embeddings'] = np.tile(positions, (1, 1, 2))

    checkpoint = pretrained.read(change_folder(change))
    params, report = fit.fit(checkpoint, initial(checkpoint.architecture, side))
    assert report.resized == ('pos_embedding',)
    expected = np.tile(read_expected(DINOV2)[f'position_embeddings_at{side}'], (1, 1, 2))
    np.testing.assert_allclose(params['pos_embedding'], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('folder', [DEIT, REGISTERS], ids=['deit', 'dinov2 with registers'])
def test_what_is_written_has_the_names_and_shapes_of_the_original(read_checkpoint, tmp_path, folder):
    checkpoint = read_checkpoint(folder)
    names = checkpoint.label_names
    assert names == tuple(f'class {i}' for i in range(5))
    hugging_face.write(
        tmp_path / 'made', checkpoint.architecture, checkpoint.preprocessing, checkpoint.params, names
    )
    theirs, ours = (load_file(place / 'model.safetensors') for place in (folder, tmp_path / 'made'))
    assert {key: x.shape for key, x in ours.items()} == {key: x.shape for key, x in theirs.items()}
    theirs, ours = (json.loads((place / 'config.json').read_text()) for place in (folder, tmp_path / 'made'))
    assert {key: value for key, value in ours.items() if theirs.get(key) != value} == {'num_labels': 5}
    imported = pretrained.read(str(tmp_path / 'made'))
    assert imported.architecture == checkpoint.architecture
    assert_equal(imported.params, checkpoint.params)


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_equal(actual[name], value)
        else:
            np.testing.assert_array_equal(actual[name], value, err_msg=name)


PLAIN = Architecture(SIZES, 8, 16, 3, 'gelu_tanh', 1e-3, pre_logits=False)


@pytest.mark.parametrize(
    ('registers', 'pooling', 'model_type', 'pooling_read'),
    [
        (1, 'class', 'deit', 'class'),
        (0, 'class_and_mean', 'dinov2', 'class_and_mean'),
        # A head on the class token alone gets zero weights for the mean.
        (2, 'class', 'dinov2_with_registers', 'class_and_mean'),
    ],
)
def test_a_student_comes_back_as_it_was(tmp_path, initial, registers, pooling, model_type, pooling_read):
    architecture = PLAIN._replace(registers=registers, pooling=pooling)
    rng = np.random.default_rng(0)

    def draw(tree):
        return {
            name: draw(x) if isinstance(x, dict) else rng.normal(0, 0.5, x.shape).astype(np.float32)
            for name, x in sorted(tree.items())
        }

    params = draw(initial(architecture))
    hugging_face.write(tmp_path / 'made', architecture, IMAGENET, params, ('a', 'b', 'c'))
    imported = pretrained.read(str(tmp_path / 'made'))
    assert json.loads((tmp_path / 'made/config.json').read_text())['model_type'] == model_type
    assert imported.architecture == architecture._replace(pooling=pooling_read)
    if pooling_read != pooling:
        # Its kernel is [class token and mean, outputs].
        params['head_layer']['kernel'] = np.pad(params['head_layer']['kernel'], ((0, 24), (0, 0)))
    assert_equal(imported.params, params)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'pre_logits': True}, 'no place for the pre-logits'),
        ({'registers': 2, 'pooling': 'class_and_register'}, 'one of the 2 registers'),
        ({'registers': 2, 'sizes': SIZES._replace(mlp=50)}, 'multiple of the width, .* is 50 of 24'),
        ({'pooling': 'class_and_mean', 'sizes': SIZES._replace(mlp=50)}, 'DINOv2 alone'),
    ],
)
def test_what_no_kind_has_is_reported(changes, words):
    kind, reason = kinds.kind_of(PLAIN._replace(**changes))
    assert kind is None
    assert re.search(words, reason)


LAYER = 'encoder.layer.1'
PREFIX = 'dinov2_with_registers.'


@pytest.mark.parametrize(
    ('folder', 'change', 'words'),
    [
        (
            DINOV2,
            lambda x, _: x.pop(f'{LAYER}.layer_scale2.lambda1'),
            rf'{LAYER}\.layer_scale2\.lambda1 is mis',
        ),
        (
            DINOV2,
            lambda x, _: x.update({f'{LAYER}.layer_scale1.lambda1': np.ones(23, 'f')}),
            r'layer_scale1\.lambda1 is \[23\]; it would be \[24\]',
        ),
        (
            DINOV2,
            lambda x, _: x.update({f'{LAYER}.layer_scale1.lambda1': np.full(24, np.inf, 'f')}),
            r'layer_scale1\.lambda1 holds 24 numbers of 24',
        ),
        (
            DINOV2,
            lambda x, _: x.update({f'{LAYER}.mlp.fc2.weight': x[f'{LAYER}.mlp.fc1.weight']}),
            r'mlp\.fc2\.weight is \[48, 24\]; it would be \[24, n\]',
        ),
        (DINOV2, lambda x, _: x.pop(f'{LAYER}.mlp.fc1.bias'), r'mlp\.fc1\.bias is missing'),
        (
            DINOV2,
            lambda _, config: config.update(use_swiglu_ffn=True),
            'use_swiglu_ffn is True: its MLPs have a',
        ),
        (
            DINOV2,
            lambda _, config: config.update(model_type='dinov3_vit'),
            "model_type 'dinov3_vit' is not known",
        ),
        (
            DINOV2,
            lambda _, config: config.update(model_type=['vit']),
            r"model_type \['vit'\] is not known. Known: ",
        ),
        (DINOV2, lambda _, config: config.update(model_type='vit'), 'intermediate.dense.weight is missing'),
        (REGISTERS, lambda _, config: config.update(num_register_tokens=4), 'tokens is 4, but .* has 3'),
        (REGISTERS, lambda x, _: x.pop(f'{PREFIX}embeddings.register_tokens'), 'register_tokens is missing'),
        (
            REGISTERS,
            lambda x, _: x.update({'classifier.weight': x['classifier.weight'][:, :24]}),
            r'classifier\.weight is \[5, 24\]; .* \[5, 48\]',
        ),
        (DEIT, lambda x, _: x.pop('deit.embeddings.distillation_token'), 'distillation_token is missing'),
        (
            DEIT,
            lambda x, _: x.update({'deit.embeddings.distillation_token': np.ones((1, 2, 24), 'f')}),
            r'distillation_token is \[1, 2, 24\]; it would be \[1, 1, 24\]',
        ),
        (
            DEIT,
            lambda x, _: x.update(
                {'deit.embeddings.position_embeddings': x['deit.embeddings.position_embeddings'][:, 1:]}
            ),
            r'\[1, 17, 24\] are not of a class token, a distillation token and a square grid',
        ),
        (
            DEIT,
            lambda x, _: x.pop('distillation_classifier.bias'),
            r'distillation_classifier\.bias is missing',
        ),
        (DEIT, lambda x, _: x.pop('cls_classifier.weight'), r'cls_classifier\.weight is missing'),
        (
            DEIT,
            lambda x, _: x.update({'distillation_classifier.weight': np.ones((4, 24), 'f')}),
            r'cls_classifier\.weight is \[5, 24\], but distillation_classifier\.weight is \[4, 24\]; both',
        ),
        (DEIT, lambda _, config: config['id2label'].pop('4'), r'cls_classifier\.weight has 5 outputs'),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(change_folder, folder, change, words):
    with pytest.raises(UserError, match=words) as error_info:
        pretrained.read(change_folder(change, folder))
    assert '\n' not in str(error_info.value)


def test_how_images_are_shown(change_folder):
    """Without a file: the usual of this kind of model; with an empty one: the defaults of its class."""
    folder = pathlib.Path(change_folder(lambda *_: None, DINOV2))
    checkpoint = pretrained.read(str(folder))
    assert checkpoint.preprocessing == IMAGENET
    assert checkpoint.assumed.startswith('no preprocessor_config.json')
    # A file that names no class has the class of the kind, whose defaults differ from a ViT's.
    (folder / preprocessing.FILE).write_text('{}')
    checkpoint = pretrained.read(str(folder))
    assert (checkpoint.preprocessing[2:], checkpoint.assumed) == (
        ('bicubic_antialias', 'center', 1.0, 224),
        '',
    )
