"""A teacher that is too large for a device is never whole on one."""

import os

import pytest

from td_jax import config as config_lib
from td_jax.training.run import train
from tests import forked

PROGRAM = """
import pathlib, sys
import jax
from td_jax.configs import digits
from td_jax.devices import sharding
from td_jax.training import assembly, teachers

# Bytes on device 0 of each array that exists whenever one is placed.
sizes = []


def record_sizes():
    for array in jax.live_arrays():
        here = [shard for shard in array.addressable_shards if shard.device.id == 0]
        sizes.append(sum(shard.data.nbytes for shard in here))


def record_after(function):
    def call(*arguments, **named):
        array = function(*arguments, **named)
        record_sizes()
        return array

    return call


jax.device_put, jax.make_array_from_callback = (
    record_after(jax.device_put),
    record_after(jax.make_array_from_callback),
)
config = digits.get_config()
config.mesh.data, config.mesh.fsdp = 1, 8
config.batch_size = 8
config.num_seeds = 1
config.model.hidden = (8, 8)
config.communication.hidden = config.communication.message = 8
config.teacher.checkpoint = sys.argv[1]
config.teacher.model.hidden = (256, 512)
source = assembly.load_source(config, config.dataset)
mesh = sharding.make_mesh(config)
their_source = teachers.source_of(config, source)
teacher = teachers.load(config, pathlib.Path('nowhere'), their_source, mesh)
record_sizes()
run = assembly.assemble(config, source, teacher, mesh)
record_sizes()
teachers.describe(config, teacher, source, mesh)
record_sizes()
largest = max(jax.tree.leaves(teacher.params), key=lambda leaf: leaf.nbytes)
assert run.constants.teacher_params is not None
print(largest.nbytes, largest.addressable_shards[0].data.nbytes, max(sizes))
"""


@pytest.mark.long
def test_a_teacher_that_is_cut_is_whole_on_no_device(small_config, tmp_path):
    """A device gets 64 kB of a kernel of 256 x 512, and no larger array while it is placed and evaluated."""
    config = small_config(teacher__model__hidden=(256, 512), teacher__num_steps=1)
    train(config_lib.teacher_run(config), tmp_path / 'teacher')
    completed = forked.run(
        ['-c', PROGRAM, str(tmp_path / 'teacher')],
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '8'},
    )
    assert completed.returncode == 0, completed.stderr
    whole, shard, most = map(int, completed.stdout.split())
    assert (whole, shard) == (256 * 512 * 4, 256 * 512 * 4 // 8)
    assert most == shard
