"""The folder of a timm model: states against timm, and every kind of invalid folder."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from td_jax import config as config_lib
from td_jax import pretrained
from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.models import efficientnet, resnet_bn, vit
from td_jax.pretrained import fit, summary
from td_jax.pretrained.architecture import (
    Architecture,
    EfficientNetArchitecture,
    FoldedResNetArchitecture,
    Preprocessing,
    build_module,
    check_teacher,
    parameter_shapes,
    teacher_overrides,
)
from tests.golden import timm_weights

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
# As timm publishes it.
CFG = {
    'input_size': [3, 224, 224],
    'interpolation': 'bicubic',
    'crop_pct': 0.875,
    'crop_mode': 'center',
    'mean': [0.5, 0.5, 0.5],
    'std': [0.5, 0.5, 0.5],
}


def compute(checkpoint, images, split, method=None):
    module = build_module(checkpoint.architecture, split)
    run = jax.jit(lambda params, image: module.apply({'params': params}, {'image': image}, method=method))
    return np.asarray(run(checkpoint.params, images))


@pytest.fixture
def tiny_efficientnet():
    with np.load(GOLDEN / 'timm_efficientnet_tiny.expected.npz') as file:
        return dict(file)


@pytest.fixture
def folder(tmp_path, tiny_efficientnet, monkeypatch):
    """A function (change of arrays and config) -> a folder of a small EfficientNet."""
    monkeypatch.setitem(efficientnet.FACTORS, 'b0', (0.125, 0.5))

    def make(change=lambda arrays, config: None):
        arrays = timm_weights.draw(json.loads(str(tiny_efficientnet['shapes'])))
        config = {'architecture': 'efficientnet_b0', 'num_classes': 5, 'pretrained_cfg': dict(CFG)}
        change(arrays, config)
        save_file(arrays, tmp_path / 'model.safetensors')
        (tmp_path / 'config.json').write_text(json.dumps(config))
        return str(tmp_path)

    return make


def test_every_stage_is_timms(folder, tiny_efficientnet):
    """With squeeze-and-excitation, silu and symmetric padding, at a size that the strides do not divide."""
    checkpoint = pretrained.read(folder())
    assert checkpoint.architecture == EfficientNetArchitecture('b0', 'symmetric', 5)
    assert checkpoint.unused == ()
    for split in range(1, 8):
        stage = compute(checkpoint, tiny_efficientnet['images'][:1], split, 'lower')
        expected = tiny_efficientnet[f'stage_{split - 1}']
        np.testing.assert_allclose(stage, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    for split in (0, 3, 7):
        logits = compute(checkpoint, tiny_efficientnet['images'], split)
        np.testing.assert_allclose(
            logits, tiny_efficientnet['logits'], rtol=0, atol=2e-5 * np.abs(tiny_efficientnet['logits']).max()
        )


def test_a_real_one_is_timms(foundation):
    path = foundation('efficientnet_lite0')
    checkpoint = pretrained.read(str(path))
    assert checkpoint.architecture == EfficientNetArchitecture('lite0', 'same', 1000)
    assert checkpoint.preprocessing == Preprocessing(
        (0.5,) * 3, (0.5,) * 3, 'bicubic_antialias', 'center', 0.875, 224
    )
    with np.load(path / 'expected.npz') as expected:
        pixels = (expected['pixels_224'] / 127.5 - 1).astype(np.float32)
        inputs_by_name = {'logits_224': pixels, 'logits_of_128_centre_of_first': pixels[:1, 48:176, 48:176]}
        for name, images in inputs_by_name.items():
            logits = compute(checkpoint, images, 3)
            np.testing.assert_allclose(logits, expected[name], rtol=0, atol=1e-4)
        for i, split in enumerate((1, 2, 3, 5, 7)):
            stage = expected[f'stage_{i}_of_first'].transpose(0, 2, 3, 1)
            activation = compute(checkpoint, pixels[:1], split, 'lower')
            np.testing.assert_allclose(activation, stage, rtol=0, atol=1e-5 * np.abs(stage).max())


@pytest.mark.parametrize(
    ('variant', 'count'), [('b0', 5_288_548), ('b1', 7_794_184), ('b4', 19_341_616), ('lite0', 4_652_008)]
)
def test_sizes_are_the_published_ones(variant, count):
    """Of timm's counts of parameters: of two numbers of each norm, one has become the bias."""
    architecture = EfficientNetArchitecture(variant, 'same', 1000)
    module = build_module(architecture, 0)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
    tree = jax.eval_shape(module.init, jax.random.key(0), {'image': image})['params']
    widths = [
        leaf.shape[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if 'conv' in str(path) and leaf.ndim == 1
    ]
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == count - sum(widths)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda a, c: c.update(architecture='mobilenetv3_large_100'), "'mobilenetv3_large_100' is not known"),
        (lambda a, c: c.update(architecture=3), 'architecture 3 is not known'),
        (lambda a, c: a.pop('blocks.1.0.bn2.running_var'), r'blocks\.1\.0\.bn2\.running_var is missing'),
        (lambda a, c: a['bn1.running_var'].__isub__(9), r'bn1\.running_var holds a variance'),
        (lambda a, c: a.update({'bn1.weight': np.ones(3, 'f')}), r'bn1\.weight is \[3\]; with conv_stem'),
        (lambda a, c: a.update({'bn1.bias': np.ones(3, 'f')}), r'bn1\.bias is \[3\]; with conv_stem'),
        # NumPy would take it for all channels.
        (
            lambda a, c: a.update({'bn1.running_mean': np.ones(1, 'f')}),
            r'bn1\.running_mean is \[1\]; with conv',
        ),
        (lambda a, c: a.update({'conv_stem.bias': np.ones(1, 'f')}), r'conv_stem\.bias is \[1\]; with conv'),
        (lambda a, c: a.update({'classifier.weight': np.ones((), 'f')}), r'classifier\.weight is \[\]; in'),
        (lambda a, c: a['conv_head.weight'].fill(np.nan), r'conv_head\.weight holds \d+ numbers'),
        (lambda a, c: c['pretrained_cfg'].update(interpolation='lanczos'), "interpolation is 'lanczos'"),
        (
            lambda a, c: c['pretrained_cfg'].update(interpolation=['bicubic']),
            r"interpolation is \['bicubic'\]",
        ),
        (lambda a, c: c['pretrained_cfg'].update(crop_mode='border'), "crop_mode is 'border'"),
        (lambda a, c: c['pretrained_cfg'].update(crop_pct=1.5), 'crop_pct is 1.5'),
        (lambda a, c: c['pretrained_cfg'].update(input_size=[1, 28, 28]), r'input_size is \[1, 28, 28\]'),
        (
            lambda a, c: c['pretrained_cfg'].update(input_size=[3, 224, 192]),
            r'input_size is .* whole pixels\.$',
        ),
        (lambda a, c: c['pretrained_cfg'].update(mean=[0.5]), 'mean is .* three numbers'),
        (lambda a, c: c.update(label_names=['a']), 'label_names are not one for each of the 5 outputs'),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, change, words):
    with pytest.raises(UserError, match=words) as error_info:
        pretrained.read(folder(change))
    assert '\n' not in str(error_info.value)


def write_folder(folder, golden, config):
    """A folder of a model of a golden file, and what timm computes of it."""
    with np.load(GOLDEN / f'timm_{golden}.expected.npz') as file:
        expected = dict(file)
    arrays = timm_weights.draw(json.loads(str(expected['shapes'])))
    save_file(arrays, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps({'pretrained_cfg': dict(CFG), **config}))
    return str(folder), expected


def assert_near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


VITS = {
    'vit': ('vit_base_patch32_224', {'registers': 0, 'pooling': 'class', 'num_outputs': 5}),
    'distilled': (
        'deit_tiny_distilled_patch16_224',
        {'registers': 1, 'pooling': 'class_and_register', 'num_outputs': 5},
    ),
    'deit3': ('deit3_small_patch16_224', {'registers': 0, 'pooling': 'class', 'num_outputs': 5}),
    'dinov2_registers': (
        'vit_small_patch14_reg4_dinov2',
        {'registers': 4, 'pooling': 'class', 'num_outputs': 0},
    ),
}


@pytest.fixture
def vit_folder(tmp_path):
    """A function (name of VITS, changes of config.json) -> a small one's folder, and what timm computes."""

    def make(name, **changes):
        config = {'architecture': VITS[name][0], 'global_pool': 'token', 'model_args': {'num_heads': 3}}
        return write_folder(tmp_path, f'{name}_tiny', {**config, **changes})

    return make


@pytest.mark.parametrize('name', VITS)
def test_a_vit_is_timms(vit_folder, name):
    """Tokens at two image sizes, with resized position embeddings, and logits."""
    location, expected = vit_folder(name)
    checkpoint = pretrained.read(location)
    architecture = checkpoint.architecture
    assert architecture == Architecture(
        **VITS[name][1],
        **{'sizes': vit.Sizes(24, 2, 96, 3), 'patch': 8, 'image_size': 32, 'activation': 'gelu'},
        **{'epsilon': 1e-6, 'pre_logits': False},
    )
    assert_near(compute(checkpoint, timm_weights.images(32), 1, 'lower'), expected['block_0'])
    whole = build_module(architecture, 2)
    for side in (32, 48):
        image = {'image': timm_weights.images(side)}
        parameter_shapes = jax.eval_shape(whole.init, jax.random.key(0), image)['params']
        params = {'params': fit.fit(checkpoint, parameter_shapes)[0]}
        s = whole.apply(params, image, method='lower')
        assert_near(whole.apply(params, s, method='upper'), expected[f'tokens_{side}'])
    if architecture.num_outputs:
        assert_near(compute(checkpoint, timm_weights.images(32), 1), expected['logits'])


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'architecture': 'vit_base_patch16_siglip_224'}, 'vit_base_patch16_siglip_224.* is not known'),
        ({'architecture': 'vit_base_patch16_224_miil'}, 'is not known'),
        ({'global_pool': 'avg'}, "global_pool is 'avg', but the head of td_jax reads .* token;"),
        ({'model_args': {'global_pool': 'max'}}, "global_pool is 'max', but"),
        ({'model_args': {'pre_norm': True}}, 'model_args has pre_norm True, which td_jax does not know'),
        ({'model_args': {'num_heads': 5}}, '5 attention heads do not divide the width, 24'),
        ({'model_args': {'num_heads': '3'}}, "num_heads is '3'; it is a whole number above 0"),
        ({'model_args': {'num_heads': -3}}, 'num_heads is -3; it is a whole number above 0'),
        ({'model_args': {'num_heads': 3, 'depth': 3}}, 'depth is 3, but there are 2 blocks'),
        ({'architecture': 'deit_tiny_distilled_patch16_224'}, 'dist_token is missing'),
        ({'architecture': 'resnet18', 'global_pool': 'max', 'model_args': {}}, "global_pool is 'max', but"),
        ({'architecture': 'resnet18', 'global_pool': 'avg', 'model_args': None}, r'conv1\.weight is missing'),
    ],
)
def test_a_vit_that_is_another_is_refused_by_name(vit_folder, change, words):
    location, _ = vit_folder('vit', **change)
    with pytest.raises(UserError, match=words) as error_info:
        pretrained.read(location)
    assert '\n' not in str(error_info.value)


def test_a_vit_in_several_files_is_the_whole(vit_folder, write_in_parts, tmp_path):
    whole = pretrained.read(vit_folder('vit')[0])
    parts = pretrained.read(str(write_in_parts(tmp_path, tmp_path / 'parts')))
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    assert parts.architecture == whole.architecture


@pytest.mark.parametrize('name', ['vit', 'distilled'])
def test_a_head_of_zeros_is_none(vit_folder, name):
    """A model that is about to be tuned has one; as it is, all its predictions are alike."""
    location, _ = vit_folder(name)
    arrays, whole = load_file(f'{location}/model.safetensors'), pretrained.read(location)
    heads = [key for key in arrays if key.startswith('head')]
    arrays |= {key: np.zeros_like(arrays[key]) for key in heads}
    save_file(arrays, f'{location}/model.safetensors')
    checkpoint = pretrained.read(location)
    assert (checkpoint.architecture.num_outputs, checkpoint.has_zero_head) == (0, True)
    expected = {key: value for key, value in whole.params.items() if key != 'head_layer'}
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, expected)
    lines = summary.report(location).splitlines()
    assert "head        none (the weights of the file's are all zeros: it knows nothing)" in lines
    assert 'unused      head.bias, head.weight' in lines


def test_a_head_is_one_if_half_of_it_is_zeros(vit_folder):
    location, _ = vit_folder('distilled')
    arrays = load_file(f'{location}/model.safetensors')
    arrays['head.weight'][:] = 0
    save_file(arrays, f'{location}/model.safetensors')
    kernel = pretrained.read(location).params['head_layer']['kernel']
    np.testing.assert_array_equal(kernel[:24], 0)
    np.testing.assert_array_equal(kernel[24:], arrays['head_dist.weight'].T / 2)


def test_a_head_of_zeros_of_a_cnn_is_none(folder):
    location = folder(lambda arrays, config: arrays['classifier.weight'].fill(0))
    checkpoint = pretrained.read(location)
    assert (checkpoint.architecture.num_outputs, checkpoint.has_zero_head) == (0, True)
    assert 'head_layer' not in checkpoint.params
    assert checkpoint.unused == ('classifier.bias', 'classifier.weight')


def test_what_there_is_no_place_for_is_refused(vit_folder):
    """A model with two heads, whose mean is the prediction, is refused, as are other unknown layers."""
    location, _ = vit_folder('distilled', architecture='deit_tiny_patch16_224')
    with pytest.raises(UserError, match='not of a class token and a square grid'):
        pretrained.read(location)
    arrays = load_file(f'{location}/model.safetensors')
    arrays['pos_embed'] = arrays['pos_embed'][:, 1:]
    save_file(arrays, f'{location}/model.safetensors')
    with pytest.raises(UserError, match='dist_token is not part of deit_tiny_patch16_224 as td_jax knows it'):
        pretrained.read(location)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        # A block without a scale is another block.
        (lambda arrays: arrays.pop('blocks.1.ls2.gamma'), r'blocks\.1\.ls2\.gamma is missing'),
        (lambda arrays: arrays.update({'head.weight': np.ones((), 'f')}), r'head\.weight is \[\]; in'),
    ],
)
def test_a_vit_that_lacks_a_part_is_refused(vit_folder, change, words):
    name = 'dinov2_registers' if 'ls2' in words else 'distilled'
    location, _ = vit_folder(name)
    arrays = load_file(f'{location}/model.safetensors')
    change(arrays)
    save_file(arrays, f'{location}/model.safetensors')
    with pytest.raises(UserError, match=words):
        pretrained.read(location)


def test_halves_are_added_as_exactly_as_whole_numbers(vit_folder):
    """The sums of DeiT's two tokens and two heads are rounded to float32, whatever the file has."""
    location, _ = vit_folder('distilled')
    arrays = load_file(f'{location}/model.safetensors')
    params = []
    for dtype in (np.float16, np.float32):
        halves = {name: array.astype(np.float16).astype(dtype) for name, array in arrays.items()}
        save_file(halves, f'{location}/model.safetensors')
        params.append(pretrained.read(location).params)
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.parametrize(
    ('variant', 'units'),
    [('resnet18', (1, 2, 1, 1)), ('resnet50', (1, 2, 1, 1)), ('wide_resnet50_2', (1,) * 4)],
)
def test_a_resnet_with_batch_norm_is_timms(tmp_path, monkeypatch, variant, units):
    sizes = resnet_bn.VARIANTS[variant]._replace(units=units)
    monkeypatch.setitem(resnet_bn.VARIANTS, variant, sizes)
    location, expected = write_folder(tmp_path, variant, {'architecture': variant})
    checkpoint = pretrained.read(location)
    assert checkpoint.architecture == FoldedResNetArchitecture(variant, 5)
    images = timm_weights.images(40)
    for split in range(1, 5):
        stage = compute(checkpoint, images[:1], split, 'lower')[..., ::8]
        assert_near(stage, expected[f'stage_{split - 1}'])
    for split in (0, 4):
        assert_near(compute(checkpoint, images, split), expected['logits'])
    if variant == 'resnet18':
        rows = [
            line.split()[:3] for line in summary.report(location).splitlines() if line[:5].strip().isdigit()
        ]
        # Before the first stage: 64 kernels of 7 x 7 for three colours.
        assert rows[0][:2] == ['0', f'{64 * 7 * 7 * 3 + 64:,}'] and len(rows) == 5


def test_a_unit_takes_what_another_model_suggests_as_it_is():
    """A decoded state is negative in places, as the state of an image never is."""
    unit = resnet_bn.Unit(4, 1, resnet_bn.Sizes((1,), False), 'float32')
    s = -1 - timm_weights.images(8)[..., :1].repeat(4, axis=-1) ** 2
    params = unit.init(jax.random.key(0), s)
    assert np.abs(unit.apply(params, s) - unit.apply(params, np.maximum(s, 0))).max() > 1e-3
    kernels = [params['params'][f'conv_{i}']['conv']['kernel'] for i in (0, 1)]
    x = s
    for kernel in kernels:
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        x = np.maximum(x, 0) if kernel is kernels[0] else x
    np.testing.assert_allclose(unit.apply(params, s), np.maximum(s + x, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('variant', 'count'),
    [
        ('resnet18', 11_689_512),
        ('resnet50', 25_557_032),
        ('wide_resnet50_2', 68_883_240),
        ('resnet152', 60_192_808),
    ],
)
def test_sizes_of_resnets_are_the_published_ones(variant, count):
    """Of timm's counts of parameters: of two numbers of each norm, one has become the bias."""
    tree = parameter_shapes(FoldedResNetArchitecture(variant, 1000))
    biases = sum(shape[0] for name, shape in tree.items() if name.endswith('conv/bias'))
    assert sum(map(math.prod, tree.values())) + biases == count


def test_labels_and_what_the_file_leaves_open(folder):
    def change(arrays, config):
        config['label_names'] = list('abcde')
        config['pretrained_cfg'] = {'crop_pct': None}

    checkpoint = pretrained.read(folder(change))
    assert checkpoint.label_names == tuple('abcde')
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert checkpoint.preprocessing == Preprocessing(*imagenet, 'bicubic_antialias', 'center', 0.875, 224)


def test_a_file_of_an_early_timm_has_everything_at_the_top(folder):
    def change(arrays, config):
        config |= config.pop('pretrained_cfg') | {'interpolation': 'bilinear', 'labels': list('abcde')}

    checkpoint = pretrained.read(folder(change))
    assert checkpoint.preprocessing == Preprocessing(
        (0.5,) * 3, (0.5,) * 3, 'bilinear_antialias', 'center', 0.875, 224
    )
    assert checkpoint.label_names == tuple('abcde')


@pytest.mark.parametrize('top', [None, 'vwxyz'])
def test_labels_of_the_whole_file_come_before_those_of_its_source(folder, top):
    def change(arrays, config):
        config['pretrained_cfg']['label_names'] = list('abcde')
        config |= {'label_names': list(top)} if top else {}

    assert pretrained.read(folder(change)).label_names == tuple(top or 'abcde')


@pytest.mark.parametrize(
    ('is_fixed', 'size', 'expected'),
    [(True, 32, 32), (True, [32, 32], 32), (False, 32, 224), (True, None, 224)],
)
def test_a_model_for_images_of_one_size_is_shown_that(vit_folder, is_fixed, size, expected):
    """As timm reads it: what a model was made for comes before what its source was."""
    arguments = {'num_heads': 3, 'img_size': size}
    location, _ = vit_folder(
        'vit', model_args=arguments, pretrained_cfg={**CFG, 'fixed_input_size': is_fixed}
    )
    assert pretrained.read(location).preprocessing.image_size == expected


def test_the_overrides_make_the_teacher_fit(folder):
    location, config = folder(), common.get_config()
    checkpoint = pretrained.read(location)
    overrides = teacher_overrides(checkpoint, config)
    assert overrides['teacher.model.name'] == 'efficientnet'
    with pytest.raises(UserError, match='name is efficientnet there, mlp here'):
        check_teacher(checkpoint, config)
    config.update_from_flattened_dict(overrides)
    check_teacher(checkpoint, config)
    text = summary.report(location)
    assert 'variant     EfficientNet b0, padding symmetric\n' in text
    assert '\n    7 ' in text


@pytest.mark.parametrize(('name', 'variant'), [('efficientnet', 'b0'), ('resnet_bn', 'resnet50')])
def test_batch_norm_is_not_trained(name, variant):
    config = common.get_config()
    config.model.update({'name': name, 'variant': variant})
    with pytest.raises(UserError, match=r'has BatchNorm .* take resnet \(R20x1 .*GroupNorm, or vit\.$'):
        config_lib.check(config)
    config = common.get_config()
    config.teacher.model.update({'name': name, 'variant': variant})
    with pytest.raises(UserError, match=r'not trained here: name a checkpoint in teacher\.pretrained'):
        config_lib.check(config)
