"""Terms that relate the examples of a batch, cut over devices, with seeds side by side."""

import os

import pytest

from tests import forked

PROGRAM = """
import functools
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from td_jax.configs import common
from td_jax.method import objectives, shared
from td_jax.models import base

SEEDS, BATCH, CLASSES = 2, 8, 5
devices = jax.devices()
assert len(devices) == 2
cut = NamedSharding(Mesh(np.array(devices), ('data',)), PartitionSpec(None, 'data'))


def activations(key, lower, upper):
    keys = jax.random.split(key, 3)
    shapes = (SEEDS, BATCH, lower), (SEEDS, BATCH, upper), (SEEDS, BATCH, CLASSES)
    return base.Activations(*map(jax.random.normal, keys, shapes))


def mean_of_terms(config, h, params, g, labels):
    student = shared.Participant(g, lambda s, key: s[:, :3])
    teacher = shared.Participant(h, lambda s, key: s[:, :4])
    terms = objectives.METHODS[config.method].terms(params, student, teacher, labels, config, None)
    return sum(term.mean() for term in terms.values())


g, h = (activations(jax.random.key(i), *widths) for i, widths in enumerate([(7, 3), (11, 4)]))
labels = jnp.arange(SEEDS * BATCH).reshape(SEEDS, BATCH) % CLASSES
for method in ('rkd', 'crd', 'srd', 'dist', 'td'):
    config = common.get_config()
    config.method, config.td.scale, config.td.rounds = method, 'variance', 2
    config.communication.hidden, config.communication.message = 13, 6
    examples = (jax.tree.map(lambda x: x[0, :1], side) for side in (g, h))
    params = objectives.METHODS[method].init(jax.random.key(2), *examples, config, CLASSES)
    run = jax.jit(
        jax.vmap(
            lambda h, g, labels: jax.value_and_grad(functools.partial(mean_of_terms, config, h), (0, 1))(
                params, g, labels
            )
        )
    )
    whole, parts = run(h, g, labels), run(*jax.device_put((h, g, labels), cut))
    for one, two in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6, err_msg=method)
"""


@pytest.mark.long
def test_examples_are_related_over_all_devices():
    """Values and gradients of a batch that is cut over two devices are those of the whole, for every seed."""
    completed = forked.run(
        ['-c', PROGRAM], env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2', 'JAX_PLATFORMS': 'cpu'}
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
