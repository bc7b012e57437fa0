"""The mesh: rows of processes, cut parameters, and micro batches that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.configs import common
from td_jax.data import SOURCES
from td_jax.devices import sharding
from td_jax.errors import UserError
from td_jax.models import base
from td_jax.training import assembly, dispatch, train_step


def make_config_with_mesh(data, fsdp, **changes):
    config = common.get_config()
    config.mesh.data, config.mesh.fsdp = data, fsdp
    config.update(changes)
    return config


@pytest.mark.parametrize(
    ('data', 'fsdp', 'count', 'expected'),
    [(-1, 1, 8, (8, 1)), (1, -1, 8, (1, 8)), (-1, 2, 8, (4, 2)), (2, 4, 8, (2, 4)), (-1, 1, 1, (1, 1))],
)
def test_what_is_left_goes_to_the_axis_that_asks(data, fsdp, count, expected):
    assert sharding.mesh_shape(make_config_with_mesh(data, fsdp), count) == expected


@pytest.mark.parametrize(
    ('data', 'fsdp', 'count'), [(3, 1, 8), (-1, 3, 8), (2, 2, 8), (-1, -1, 8), (16, -1, 8)]
)
def test_a_mesh_that_leaves_devices_out_is_refused(data, fsdp, count):
    with pytest.raises(UserError, match=r'mesh\.data') as error_info:
        sharding.mesh_shape(make_config_with_mesh(data, fsdp), count)
    assert '\n' not in str(error_info.value)


@pytest.mark.parametrize(
    'changes', [{'batch_size': 9, 'micro_batches': 2}, {'batch_size': 4, 'micro_batches': 3}]
)
def test_a_batch_that_micro_batches_do_not_divide_is_refused(changes):
    with pytest.raises(UserError, match='micro_batches') as error_info:
        sharding.make_mesh(make_config_with_mesh(-1, 1, **changes))
    assert f'batch_size is {changes["batch_size"]}' in str(error_info.value)


class FakeMesh:
    """The part of a mesh that decides where a parameter is cut."""

    def __init__(self, fsdp):
        self.shape = {'data': 1, 'fsdp': fsdp}


@pytest.mark.parametrize(
    ('shape', 'fsdp', 'expected'),
    [
        ((1, 768, 3072), 4, (None, None, 'fsdp')),
        ((1, 3072, 768), 4, (None, 'fsdp')),
        ((1, 768, 5), 4, (None, 'fsdp')),
        ((8, 5), 4, ()),  # the seeds are never cut
        ((1, 7), 4, ()),
        ((1, 768), 1, ()),
    ],
)
def test_a_parameter_is_cut_along_its_largest_axis_that_can_be(monkeypatch, shape, fsdp, expected):
    monkeypatch.setattr(sharding, 'NamedSharding', lambda mesh, spec: spec)
    spec = sharding.parameter_shardings(
        FakeMesh(fsdp), jax.ShapeDtypeStruct(shape, jnp.float32), first_axis=1
    )
    assert tuple(spec) == expected


def test_this_process_has_all_rows_of_one_device():
    mesh = sharding.make_mesh(make_config_with_mesh(-1, 1))
    assert sharding.local_rows(mesh, 12) == slice(0, 12)
    placed = sharding.place_rows({'x': np.arange(24).reshape(2, 12)}, mesh, 12, axis=1)
    np.testing.assert_array_equal(placed['x'], np.arange(24).reshape(2, 12))


def run_step(config):
    """(parameters before, parameters after, sums of metrics) of one step on digits."""
    source = SOURCES['digits'](config.dataset, config.dataset)
    theirs = SOURCES['digits'](config.dataset, config.teacher.dataset)
    teacher = assembly.untrained_teacher(config, theirs)
    run = assembly.assemble(config, source, teacher, sharding.make_mesh(config))
    keys = dispatch.seed_keys(config)
    state = run.init(keys)
    before = jax.tree.map(np.array, state.params)
    progress, _ = run.run(run.begin(state), run.feed(keys, 0), keys, 0, 1)
    return before, *jax.tree.map(np.array, (progress.state.params, progress.sums))


@pytest.mark.long
def test_micro_batches_change_nothing(comparable_config):
    """Without dropout a batch cut in four has the gradient of the whole."""
    before, params, sums = run_step(comparable_config(batch_size=16, td__rounds=2))
    _, cut_params, cut_sums = run_step(comparable_config(batch_size=16, td__rounds=2, micro_batches=4))
    for name, total in sums.items():
        np.testing.assert_allclose(cut_sums[name], total, rtol=1e-5, atol=1e-7, err_msg=name)
    # A step of SGD is the gradient, times 0.01.
    for a, b, start in zip(*map(jax.tree.leaves, (cut_params, params, before)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        assert np.max(np.abs(b - start)) > 1e-4


def test_the_gradient_of_micro_batches_is_that_of_the_batch():
    """By hand: mean of w x over the examples, its gradient the mean of x; masked ones do not count."""
    x, mask = jnp.arange(1.0, 7.0), jnp.array([1, 1, 1, 1, 0, 0], jnp.float32)
    # A teacher without a head.
    teacher = base.Activations(x[:, None], x[:, None], jnp.zeros((6, 0)))
    batch = train_step.Batch({'x': x}, jnp.zeros(6), mask, teacher)

    def differentiate(key, part):
        def loss(w):
            value = jnp.sum(w * part.student_inputs['x'] * part.mask) / jnp.maximum(part.mask.sum(), 1)
            return value, {'loss': value}

        return jax.value_and_grad(loss, has_aux=True)(jnp.float32(2.0))

    for count in (1, 2, 3):
        metrics, gradient = train_step.accumulate(differentiate, jax.random.key(0), batch, count)
        assert float(gradient) == pytest.approx((1 + 2 + 3 + 4) / 4)
        assert float(metrics['loss']) == pytest.approx(2 * 2.5)


@pytest.mark.long
def test_bfloat16_trains_near_float32_with_float32_parameters_and_metrics(comparable_config):
    _, _, sums = run_step(comparable_config(td__rounds=2))
    _, low_params, low_sums = run_step(comparable_config(td__rounds=2, compute_dtype='bfloat16'))
    assert {leaf.dtype for leaf in jax.tree.leaves((low_params, low_sums))} == {np.dtype('float32')}
    assert not np.array_equal(low_sums['loss'], sums['loss'])
    for name in ('loss', 'task', 'message', 'state', 'interact'):
        np.testing.assert_allclose(low_sums[name], sums[name], rtol=0.03, err_msg=name)
