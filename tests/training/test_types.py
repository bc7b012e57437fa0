"""Everything is float32, int32 or uint32, even if JAX_ENABLE_X64 makes 64 bits the default."""

import json
import os

import pytest

from td_jax.files import checkpoints, metric_log
from tests import forked

X64 = {**os.environ, 'JAX_ENABLE_X64': '1', 'JAX_PLATFORMS': 'cpu'}

# Prints the types of the inputs and outputs of each method's step, for an MLP on digits and a ViT on images.
TRACED = """
import json
import jax
from td_jax.configs import digits, vit_tiny_cifar10
from td_jax.devices import sharding
from td_jax.method import objectives
from td_jax.training import assembly

assert jax.numpy.zeros(1).dtype == 'float64'
types_by_step = {}
for method, optimizer in [*((method, 'adamw') for method in objectives.METHODS), ('td', 'sgd')]:
    config = digits.get_config()
    vit = vit_tiny_cifar10.get_config()
    for options in (config, vit):
        options.method, options.optimizer.name = method, optimizer
        options.optimizer.schedule, options.optimizer.warmup_steps = 'cosine', 2
        options.optimizer.clip_norm, options.optimizer.weight_decay = 1.0, 0.1
        options.batch_size, options.micro_batches, options.num_seeds = 8, 2, 2
        options.td.scale, options.teacher.control = 'variance', 'shuffled'
        options.model.dropout = options.communication.dropout = options.td.noise_std = 0.1
        options.td.rounds, options.td.ramp_up = 3, (2, 2)
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
        types_by_step[f'{method} {optimizer} {name}'] = sorted(types)
print(json.dumps(types_by_step))
"""
TYPES = {'float32', 'int32', 'uint32', 'uint8', 'bool', 'key<fry>'}


@pytest.mark.long
def test_every_step_takes_and_gives_32_bits():
    completed = forked.run(['-c', TRACED], env=X64)
    assert completed.returncode == 0, completed.stderr
    types_by_step = json.loads(completed.stdout)
    assert len(types_by_step) == 24
    for name, types in types_by_step.items():
        assert 'float32' in types
        assert set(types) <= TYPES, name


@pytest.mark.long
def test_a_run_with_64_bits_is_the_same_run(tmp_path):
    """The checkpoints and the metrics are the same."""
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
        completed = forked.run(['-m', 'td_jax.main', f'--workdir={tmp_path / name}', *flags], env=environment)
        assert completed.returncode == 0, completed.stderr
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
