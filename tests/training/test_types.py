"""Everything is float32, int32 or uint32, also where JAX_ENABLE_X64 makes 64 bits the default."""

import json
import os

import pytest

from td_jax.files import checkpoints, metric_log
from tests import forked

X64 = {**os.environ, 'JAX_ENABLE_X64': '1', 'JAX_PLATFORMS': 'cpu'}

# The types of all that each method's step takes and gives, of an MLP on digits and of a ViT on images.
TRACED = """
import json
import jax
from td_jax.configs import digits, vit_tiny_cifar10
from td_jax.devices import sharding
from td_jax.method import objectives
from td_jax.training import assembly

assert jax.numpy.zeros(1).dtype == 'float64'
found = {}
for method, optimizer in [*((method, 'adamw') for method in objectives.METHODS), ('td', 'sgd')]:
    config = digits.get_config()
    vit = vit_tiny_cifar10.get_config()
    for each in (config, vit):
        each.method, each.optimizer.name = method, optimizer
        each.optimizer.schedule, each.optimizer.warmup_steps = 'cosine', 2
        each.optimizer.clip_norm, each.optimizer.weight_decay = 1.0, 0.1
        each.batch_size, each.micro_batches, each.num_seeds = 8, 2, 2
        each.td.scale, each.teacher.control = 'variance', 'shuffled'
        each.model.dropout = each.communication.dropout = each.td.noise_std = 0.1
        each.td.rounds, each.td.ramp_up = 3, (2, 2)
    vit.model.initial = 'random'
    for model in (vit.model, vit.teacher.model):
        model.layers, model.width, model.heads, model.mlp, model.split = 2, 8, 2, 8, 1
    mesh = sharding.make_mesh(config)
    source, teacher_source = (
        assembly.load_source(config, task) for task in (config.dataset, config.teacher.dataset)
    )
    teacher = assembly.abstract_teacher(config, teacher_source)
    steps = assembly.abstract(config, source, teacher, mesh), assembly.abstract_images(vit, mesh)
    for name, step in zip(('digits', 'images'), steps):
        trees = step.arguments, step.constants, jax.eval_shape(step.jitted.run, *step.arguments)
        types = {str(leaf.dtype) for leaf in jax.tree.leaves(trees) if hasattr(leaf, 'dtype')}
        found[f'{method} {optimizer} {name}'] = sorted(types)
print(json.dumps(found))
"""
TYPES = {'float32', 'int32', 'uint32', 'uint8', 'bool', 'key<fry>'}


@pytest.mark.long
def test_every_step_takes_and_gives_32_bits():
    done = forked.run(['-c', TRACED], env=X64)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 24
    for name, types in found.items():
        assert 'float32' in types
        assert set(types) <= TYPES, name


@pytest.mark.long
def test_a_run_with_64_bits_is_the_same_run(tmp_path):
    """All that a checkpoint holds, and what was measured."""
    flags = [
        '--config=configs/digits.py',
        '--config.num_seeds=2',
        '--config.num_steps=6',
        '--config.log_every=2',
        '--config.teacher.num_steps=4',
        '--config.td.rounds=2',
        '--config.td.weights.logits=0.5',
        '--config.optimizer.schedule=cosine',
        '--config.optimizer.warmup_steps=2',
        '--config.optimizer.name=sgd',
        '--config.model.dropout=0.3',
    ]
    for name, environment in (('narrow', {**X64, 'JAX_ENABLE_X64': '0'}), ('wide', X64)):
        done = forked.run(['-m', 'td_jax.main', f'--workdir={tmp_path / name}', *flags], env=environment)
        assert done.returncode == 0, done.stderr
    for place in ('', 'teacher'):
        folders = [tmp_path / name / place for name in ('narrow', 'wide')]
        steps = 4 if place else 6
        narrow, wide = (checkpoints.read_shapes(folder / 'checkpoints', steps) for folder in folders)
        assert narrow == wide
        assert {str(leaf.dtype) for leaf in wide.values()} <= TYPES
        narrow, wide = map(metric_log.read, folders)
        assert len(narrow) > 1
        for ours, theirs in zip(narrow, wide, strict=True):
            for lines in (ours, theirs):
                lines.pop('examples_per_second', None)
            assert ours == theirs
