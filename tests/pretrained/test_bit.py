"""BiT's .npz: states against timm, written files, and every kind of invalid file."""

import pathlib

import jax
import numpy as np
import pytest

from td_jax import pretrained
from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.models import MODELS, base, resnet
from td_jax.pretrained import bit, fit, summary
from td_jax.pretrained.architecture import build_module, check_teacher, teacher_overrides

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
UNITS = 3, 4, 6, 3


def make_weights(width, outputs=5, scale=0.1):
    """{name: array} of a BiT file of 50 layers, drawn in the order of tests/golden/README.md."""
    rng, arrays = np.random.default_rng(0), {}

    def add_kernel(name, side, inputs, outputs):
        arrays[f'resnet/{name}/standardized_conv2d/kernel'] = rng.normal(
            0, scale, (side, side, inputs, outputs)
        )

    def add_norm(name, count):
        arrays[f'resnet/{name}/gamma'] = rng.normal(1, scale, count)
        arrays[f'resnet/{name}/beta'] = rng.normal(0, scale, count)

    add_kernel('root_block', 7, 3, width)
    before = width
    for i, count in enumerate(UNITS):
        inner = width * 2**i
        for j in range(count):
            unit = f'block{i + 1}/unit{j + 1:02d}'
            layers = (('a', 1, before, inner), ('b', 3, inner, inner), ('c', 1, inner, 4 * inner))
            for part, side, ins, outs in layers:
                add_norm(f'{unit}/{part}/group_norm', ins)
                add_kernel(f'{unit}/{part}', side, ins, outs)
            if not j:
                add_kernel(f'{unit}/a/proj', 1, before, 4 * inner)
            before = 4 * inner
    add_norm('group_norm', before)
    arrays['resnet/head/conv2d/kernel'] = rng.normal(0, scale, (1, 1, before, outputs))
    arrays['resnet/head/conv2d/bias'] = rng.normal(0, scale, outputs)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def make_images(side, count=2):
    return np.random.default_rng(1).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)[:count]


def read_golden(name):
    with np.load(GOLDEN / name) as file:
        return dict(file)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """The path of a file of 50 layers with a root of width 8."""
    path = tmp_path_factory.mktemp('bit') / 'anything.npz'
    np.savez(path, **make_weights(8))
    return path


def compute_states(checkpoint, side, count):
    """(the root's and each stage's output, the activations at the last split), computed in one program."""
    module, inputs = build_module(checkpoint.architecture, 4), {'image': make_images(side, count)}

    @jax.jit
    def run(params):
        def compute_stages(module):
            x = module.root(inputs['image'])
            x = jax.numpy.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            stages_and_pool = [
                jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'VALID')
            ]
            for stage in module.stages:
                stages_and_pool.append(module.run([stage], stages_and_pool[-1]))
            return stages_and_pool

        stages_and_pool = module.apply({'params': params}, method=compute_stages)
        return stages_and_pool, base.activations(base.from_module(module), params, inputs)

    return jax.tree.map(np.asarray, run(checkpoint.params))


def test_every_stage_is_timms(tiny):
    checkpoint = pretrained.read(str(tiny))
    assert checkpoint.architecture.sizes == resnet.Sizes(8, UNITS, bottleneck=True)
    assert checkpoint.unused == ()
    expected = read_golden('bit_tiny.expected.npz')
    stages, (s, e, logits) = compute_states(checkpoint, 96, 1)
    for i, stage in enumerate(stages):
        np.testing.assert_allclose(stage[:, ::2, ::2], expected[f'stage_{i}'], rtol=1e-4, atol=2e-3)
    np.testing.assert_array_equal(s, stages[-1])
    np.testing.assert_allclose(e[:, ::2, ::2], expected['norm'], rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(logits, expected['logits'], rtol=1e-4, atol=2e-4)
    assert expected.keys() == {*(f'stage_{i}' for i in range(5)), 'norm', 'logits'}


@pytest.mark.long
def test_fifty_layers_are_timms_in_full(tmp_path):
    """resnetv2_50x1_bit has 23.5 million parameters and 32 groups in each norm."""
    np.savez(tmp_path / 'full.npz', **make_weights(64))
    expected = read_golden('bit_r50x1.expected.npz')
    stages, (_, e, logits) = compute_states(pretrained.read(str(tmp_path / 'full.npz')), 64, 2)
    for name, activation in (*((f'stage_{i}', x) for i, x in enumerate(stages)), ('norm', e)):
        statistics = np.stack([activation.mean((1, 2, 3)), activation.std((1, 2, 3))])
        np.testing.assert_allclose(statistics, expected[f'{name}_statistics'], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(logits, expected['logits'], rtol=1e-3, atol=1e-3)


def test_what_is_written_is_what_was_read(tiny, tmp_path):
    checkpoint = pretrained.read(str(tiny))
    bit.write(tmp_path / 'made.npz', checkpoint.architecture, checkpoint.params)
    with np.load(tmp_path / 'made.npz') as file:
        arrays = dict(file)
    expected = make_weights(8)
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name, strict=True)


def test_norms_with_all_axes_are_read(tmp_path):
    """Some of the published files have norms of shape [1, 1, 1, width]."""
    arrays = {name: x[None, None, None] if 'group_norm' in name else x for name, x in make_weights(8).items()}
    np.savez(tmp_path / 'wide.npz', **arrays)
    scale = pretrained.read(str(tmp_path / 'wide.npz')).params['final_norm']['norm']['scale']
    np.testing.assert_array_equal(scale, make_weights(8)['resnet/group_norm/gamma'])


UNIT = 'resnet/block2/unit03'


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (lambda x: x.pop(f'{UNIT}/b/group_norm/beta'), f'not a BiT .*: {UNIT}/b/group_norm/beta is missing'),
        (lambda x: x.pop('resnet/block3/unit01/a/proj/standardized_conv2d/kernel'), 'a/proj/.* is missing'),
        (
            lambda x: [x.pop(name) for name in list(x) if 'block4/unit03' in name],
            r'blocks have \(3, 4, 6, 2\) units.*: 50 with',
        ),
        (
            lambda x: x.update({'resnet/root_block/standardized_conv2d/kernel': np.ones((3, 3, 3, 8), 'f')}),
            r'root_block/.*is \[3, 3, 3, 8\]; it is \[7, 7, 3, width\]',
        ),
        (
            lambda x: x.update({'resnet/group_norm/gamma': np.ones(9, 'f')}),
            r'group_norm/gamma is \[9\]; .*\[256\]',
        ),
        (lambda x: x['resnet/head/conv2d/bias'].fill(np.nan), 'head/conv2d/bias holds 5 numbers of 5'),
        (lambda x: x.pop('resnet/head/conv2d/kernel'), 'head/conv2d/kernel is missing'),
        (
            lambda x: x.update({'resnet/head/conv2d/kernel': np.ones((256, 5), 'f')}),
            r'head/conv2d/kernel is \[256, 5\]; in a BiT it has 4 axes',
        ),
        (lambda x: x.pop('resnet/root_block/standardized_conv2d/kernel'), 'root_block/.* is missing'),
    ],
)
def test_a_file_that_is_no_bit_is_refused(tmp_path, change, text):
    arrays = make_weights(8)
    change(arrays)
    np.savez(tmp_path / 'changed.npz', **arrays)
    with pytest.raises(UserError, match=text):
        pretrained.read(str(tmp_path / 'changed.npz'))


def test_a_head_of_zeros_is_none(tmp_path):
    arrays = make_weights(8)
    arrays['resnet/head/conv2d/kernel'][:] = 0
    np.savez(tmp_path / 'headless.npz', **arrays)
    checkpoint = pretrained.read(str(tmp_path / 'headless.npz'))
    assert checkpoint.architecture.num_outputs == 0
    assert 'head_layer' not in checkpoint.params


def test_a_teacher_that_fits_and_one_that_does_not(tiny):
    checkpoint, config = pretrained.read(str(tiny)), common.get_config()
    with pytest.raises(UserError) as error_info:
        check_teacher(checkpoint, config)
    flags = 'teacher.model.name=resnet teacher.model.variant=R50x1 teacher.model.width=8'
    assert str(error_info.value) == (
        f'{tiny} does not fit teacher.model and dataset: name is resnet there, mlp here, variant is R50x1 '
        f'there, B/32 here, width is 8 there, 0 here; set {flags}'
    )
    config.update_from_flattened_dict(teacher_overrides(checkpoint, config))
    check_teacher(checkpoint, config)
    assert teacher_overrides(checkpoint, config) == {}
    # A ViT in place of a ResNet.
    vit = pretrained.read(str(GOLDEN / 'vit_tiny.npz'))
    with pytest.raises(UserError, match=r'name is vit there, resnet here'):
        check_teacher(vit, config)
    config.update_from_flattened_dict(teacher_overrides(vit, config))
    check_teacher(vit, config)


def test_its_parameters_are_those_of_a_model_of_the_config(tiny):
    checkpoint, config = pretrained.read(str(tiny)), common.get_config()
    config.update_from_flattened_dict(teacher_overrides(checkpoint, config))
    model = MODELS['resnet'](config.teacher.model, {}, 7, 'float32')
    initial = jax.eval_shape(model.init, jax.random.key(0), {'image': make_images(32)})
    params, report = fit.fit(checkpoint, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), initial))
    assert report.initialised == ('head_layer/bias', 'head_layer/kernel')
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, initial)


def test_a_checkpoint_is_described(tiny):
    report = summary.report(str(tiny))
    values_by_name = dict(line.split(maxsplit=1) for line in report.splitlines()[2:9])
    total = sum(x.size for x in make_weights(8).values())
    assert values_by_name['variant'] == 'R50x1'
    assert values_by_name['sizes'] == 'stages of 3, 4, 6, 3 units, root width 8'
    assert values_by_name['head'] == '5 outputs'
    assert values_by_name['parameters'].endswith(f'total {total:,}')
    table = {line.split()[0]: line for line in report.splitlines() if 'batch' in line}
    for row, shapes in (
        ('0', '[batch, 56, 56, 8]'),
        ('2', '[batch, 28, 28, 64]'),
        ('4', '[batch, 7, 7, 256]'),
    ):
        assert shapes in table[row] and '[batch, 7, 7, 256]' in table[row]
    assert '--config.teacher.model.variant=R50x1' in report
