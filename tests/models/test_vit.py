"""ViT: the split, sizes, and runs that start from a public checkpoint."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax import pretrained
from td_jax.configs import common, vit_tiny_cifar10
from td_jax.devices import fingerprint
from td_jax.devices.remat import POLICIES
from td_jax.errors import UserError
from td_jax.models import MODELS, base, vit
from td_jax.training import evaluation, teachers
from td_jax.training.run import train

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
SIDE, PATCH, BATCH, LABELS = 24, 8, 3, 5


def make_model(dtype='float32', **changes):
    config = common.model_config()
    config.update({'name': 'vit', 'variant': 'Ti/8', 'width': 12, 'mlp': 20, 'heads': 3, 'layers': 4})
    config.update(changes)
    return MODELS['vit'](config, {}, LABELS, dtype)


def make_case(**changes):
    model = make_model(**changes)
    inputs = {'image': jax.random.uniform(jax.random.key(0), (BATCH, SIDE, SIDE, 3), minval=-1)}
    params = model.init(jax.random.key(1), inputs)
    # The initial head is zero, which would hide everything before it.
    params['head_layer']['kernel'] = jax.random.normal(
        jax.random.key(2), params['head_layer']['kernel'].shape
    )
    return model, params, inputs


def test_patches_are_what_a_strided_convolution_sees():
    images = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    kernel = jax.random.normal(jax.random.key(1), (8, 8, 3, 7))
    convolved = jax.lax.conv_general_dilated(
        images, kernel, (8, 8), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    ours = vit.cut_patches(images, 8) @ kernel.reshape(-1, 7)
    np.testing.assert_allclose(ours, convolved.reshape(2, 6, 7), atol=1e-4)
    with pytest.raises(ValueError, match='16x24'):
        vit.cut_patches(images, 7)


@pytest.mark.long
def test_what_is_kept_changes_memory_alone():
    size_and_arrays = {}
    for policy in POLICIES:
        model, params, inputs = make_case(remat_policy=policy, dropout=0.3, layers=2, split=1)
        # The backward function holds the residuals of the forward pass.
        logits, backward = jax.vjp(
            lambda params, model=model, inputs=inputs: (
                base.activations(model, params, inputs, jax.random.key(3)).logits
            ),
            params,
        )
        size = sum(array.nbytes for array in jax.tree.leaves(backward))
        size_and_arrays[policy] = size, jax.tree.leaves((logits, backward(jnp.ones_like(logits))))
    for _, arrays in size_and_arrays.values():
        for ours, theirs in zip(arrays, size_and_arrays['everything_saveable'][1], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    sizes = [size for size, _ in size_and_arrays.values()]
    assert sizes == sorted(set(sizes), reverse=True)


def test_every_split_gives_the_same_prediction_and_the_same_parameters():
    model, params, inputs = make_case(split=0)
    expected = base.activations(model, params, inputs)
    assert (expected.upper.shape, expected.logits.shape) == ((BATCH, 10, 12), (BATCH, LABELS))
    for split in (1, 3, 4):
        other = make_model(split=split)
        activations = base.activations(other, params, inputs)
        np.testing.assert_allclose(activations.logits, expected.logits, atol=1e-5)
        assert activations.lower.shape == (BATCH, 10, 12)
    # With all blocks in `lower`, only the final norm is left.
    normalized = jax.nn.standardize(activations.lower, axis=-1, epsilon=1e-6)
    np.testing.assert_allclose(activations.upper, normalized, atol=1e-5)


def test_registers_stand_behind_the_class_token():
    """With all blocks in `upper`, the lower state is the embedded tokens."""
    model, params, inputs = make_case(registers=2, split=4)
    assert model.registers == 2
    plain = make_model(split=0).lower(params, inputs)
    tokens = make_model(registers=2, split=0).lower(params, inputs)
    assert tokens.shape == (BATCH, 12, 12)
    np.testing.assert_array_equal(tokens[:, 0], plain[:, 0])
    np.testing.assert_array_equal(tokens[:, 3:], plain[:, 1:])
    for one in tokens[:, 1:3]:
        np.testing.assert_array_equal(one, params['register_tokens'][0])


def test_dropout_only_with_a_key_and_in_every_part():
    model, params, inputs = make_case(split=2, dropout=0.5)
    calm = base.activations(model, params, inputs)
    first, second = (base.activations(model, params, inputs, jax.random.key(i)) for i in (3, 4))
    assert not np.allclose(first.lower, calm.lower)
    assert not np.allclose(first.lower, second.lower)
    s = calm.lower
    assert not np.allclose(model.upper(params, s, jax.random.key(3)), model.upper(params, s, None))


def test_bfloat16_is_near_float32_and_predicts_in_float32():
    model, params, inputs = make_case(split=2)
    expected = base.activations(model, params, inputs)
    actual = base.activations(make_model(split=2, dtype='bfloat16'), params, inputs)
    assert (actual.lower.dtype, actual.upper.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert actual.logits.dtype == jnp.float32
    for a, b in zip(actual, expected, strict=True):
        error = np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max()
        # 8 bits of mantissa, a few layers deep; more than nothing shows that it was used.
        assert 1e-5 < error < 0.03


@pytest.mark.parametrize(
    ('changes', 'word'),
    [
        ({'variant': 'B'}, 'B/'),
        ({'variant': 'X/16'}, "'X/16'"),
        ({'variant': 'B/7'}, "'B/7'"),
        # More digits than Python converts.
        ({'variant': f'B/{"9" * 5000}'}, "99' is not known"),
        ({'heads': 5}, 'model.heads'),
        ({'split': 5}, 'model.split'),
        ({'pooling': 'class_and_register'}, 'model.registers is 0'),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, word):
    with pytest.raises(UserError, match='model') as error_info:
        make_model(**changes)
    assert word.rstrip('/') in str(error_info.value)
    assert '\n' not in str(error_info.value)


def test_a_vit_needs_images():
    with pytest.raises(UserError, match='user'):
        MODELS['vit'](common.model_config(), {'user': 3}, 1, 'float32')


def make_golden_config(**changes):
    """A run whose teacher is the golden checkpoint."""
    config = vit_tiny_cifar10.get_config()
    config.num_seeds, config.num_steps, config.batch_size = 2, 2, 8
    config.log_every = config.save_every = config.optimizer.warmup_steps = 1
    config.dataset.examples_per_class = 4
    for model in (config.model, config.teacher.model):
        model.update({'width': 48, 'mlp': 96, 'heads': 4})
    config.teacher.pretrained = str(GOLDEN / 'vit_tiny.npz')
    config.communication.hidden, config.communication.message = 13, 7
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config


@pytest.mark.long
def test_a_student_starts_from_a_public_checkpoint_and_learns(cifar10_data, tmp_path, monkeypatch, read_back):
    # An evaluation after two steps is useless here, and takes long.
    nothing = evaluation.Scores(np.zeros(2), None)
    monkeypatch.setattr(evaluation, 'make_evaluation', lambda *_: lambda params, *_: nothing)
    config = make_golden_config()
    checkpoint_params = fingerprint.flatten_by_name(pretrained.read(config.teacher.pretrained).params)
    result = train(config, tmp_path)
    # 10 labels of the checkpoint, 5 of the student.
    assert result['teacher'] is None
    last, last_arrays, _ = read_back(tmp_path / 'checkpoints')
    shutil.copytree(tmp_path / 'checkpoints' / '1', tmp_path / 'first' / '1')
    first, first_arrays, _ = read_back(tmp_path / 'first')
    assert (first, last) == (1, 2)
    copied = [name for name in checkpoint_params if f'params/student/{name}' in first_arrays]
    assert {'cls', 'pos_embedding', 'norm/scale', 'block_0/mlp_in/kernel', 'block_3/mlp_out/bias'} <= set(
        copied
    )
    for name in copied:
        if name.startswith('head_layer'):
            assert first_arrays[f'params/student/{name}'].shape[-1] == LABELS
            continue
        # One step of AdamW moves a parameter by the learning rate at most, which the warm-up starts with 0.
        for seed in range(2):
            np.testing.assert_allclose(
                first_arrays[f'params/student/{name}'][seed], checkpoint_params[name], atol=1e-8
            )
    assert not any('block_4' in name for name in first_arrays)
    for name in ('params/student/block_0/mlp_in/kernel', 'params/communication/teacher_decoder/lower/kernel'):
        assert not np.allclose(last_arrays[name], first_arrays[name], atol=1e-6)

    finished = teachers.load_finished_with_teacher(tmp_path, 1)
    np.testing.assert_array_equal(finished.params['student']['cls'], last_arrays['params/student/cls'][1])
    np.testing.assert_array_equal(finished.teacher.params['cls'], checkpoint_params['cls'])


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'model__width': 24}, ('model.initial', '(4, 6)', '(4, 12)')),
        ({'teacher__model__activation': 'gelu'}, ('teacher.model.activation', 'gelu_tanh')),
        ({'teacher__labels': 'shared', 'method': 'ld'}, ('10 labels', '5', 'teacher.labels')),
        ({'teacher__pretrained': 'nowhere.npz'}, ('nowhere.npz',)),
    ],
)
def test_what_does_not_fit_a_checkpoint_is_refused_before_anything_is_written(
    cifar10_data, tmp_path, changes, words
):
    with pytest.raises(UserError) as error_info:
        train(make_golden_config(**changes), tmp_path / 'run')
    assert '\n' not in str(error_info.value)
    for word in words:
        assert word in str(error_info.value)
    assert not (tmp_path / 'run').exists()
