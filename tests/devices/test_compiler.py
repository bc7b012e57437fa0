"""Programs that are called once: compiled quickly, with the same results."""

import types

import jax
import numpy as np
import pytest

from td_jax.devices import compiler, sharding
from td_jax.training import assembly, dispatch


def make_mesh(platform):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize(
    ('platform', 'flags', 'expected'),
    [
        ('cpu', None, {'xla_backend_optimization_level': 1}),
        ('cpu', '--xla_cpu_max_isa=AVX2', {'xla_backend_optimization_level': 1}),
        ('cpu', '--xla_backend_optimization_level=0', {}),
        ('tpu', None, {}),
        ('gpu', None, {}),
    ],
)
def test_options_are_those_of_a_cpu_unless_a_level_is_named(platform, flags, expected, monkeypatch):
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    if flags:
        monkeypatch.setenv('XLA_FLAGS', flags)
    assert compiler.options_of_one_call(make_mesh(platform)) == expected


def test_first_parameters_are_those_of_the_highest_level(small_config, monkeypatch):
    config = small_config(method='supervised')
    source, mesh = assembly.load_source(config, config.dataset), sharding.make_mesh(config)
    keys = dispatch.seed_keys(config)
    monkeypatch.delenv('XLA_FLAGS')
    state = assembly.assemble(config, source, None, mesh).init(keys)
    monkeypatch.setattr(compiler, 'options_of_one_call', lambda mesh: {compiler.LEVEL: 3})
    expected = assembly.assemble(config, source, None, mesh).init(keys)
    assert len(jax.tree.leaves(state.params)) == 6
    for name, leaf in jax.tree_util.tree_leaves_with_path(state):
        np.testing.assert_array_equal(leaf, dict(jax.tree_util.tree_leaves_with_path(expected))[name])
