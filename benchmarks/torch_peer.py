"""How fast a step is, compared with the same step in PyTorch, compiled.

    python -m venv .venv-torch
    .venv-torch/bin/python -m pip install -r benchmarks/requirements-torch.txt
    python -m benchmarks.torch_peer [--torch=.venv-torch/bin/python] [--steps=100] [--repeats=3]

A step is the student's forward pass, its losses, their gradients and AdamW, in float32, on one batch: of the
MLP of configs/movielens.py and of the small ViT of configs/vit_tiny_cifar10.py, without distillation and with
one round of TD. The teacher's states of the MLP are given, because a run computes them once; the teacher of
the ViT runs in each step. Both sides start from the same random parameters. The losses of the first steps
are compared, and a case where they differ by more than 1e-4 ends the command. JAX repeats a step in one
compiled loop, as a run does; PyTorch (benchmarks/torch_step.py) calls its compiled step.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from td_jax import command_line
from td_jax.configs import movielens, vit_tiny_cifar10
from td_jax.errors import UserError, reason
from td_jax.models import MODELS, base, vit
from td_jax.training import train_step

CASES = {
    'MLP, no distillation': (movielens, 'supervised'),
    'MLP, TD': (movielens, 'td'),
    'ViT, no distillation': (vit_tiny_cifar10, 'supervised'),
    'ViT, TD': (vit_tiny_cifar10, 'td'),
}
# Rows of the inputs of MovieLens100k: of Drama, which the student sees, and of all genres.
VOCABULARIES = {
    'student': {'user': 867, 'movie': 699, 'title_words': 265, 'genres': 21},
    'teacher': {'user': 868, 'movie': 1638, 'title_words': 650, 'genres': 21},
}
# Steps whose losses are compared, and by how much they may differ.
COMPARED, TOLERANCE = 4, 1e-4
SCRIPT = pathlib.Path(__file__).with_name('torch_step.py')


class Case(NamedTuple):
    """A student, its teacher and one batch."""

    config: Any
    state: train_step.TrainState
    update: Any  # TrainState -> (TrainState, metrics)
    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    teacher_params: Any
    teacher_states: Any  # (s, e), or None where the teacher runs in the step


def make_case(module, method: str) -> Case:
    """Makes a case of CASES from random numbers."""
    config = module.get_config()
    config.method, config.td.rounds = method, 1
    # The first step would change nothing.
    config.optimizer.warmup_steps = 0
    is_mlp, rng = config.model.name == 'mlp', np.random.default_rng(0)
    outputs = 1 if is_mlp else len(config.dataset.classes)
    models, inputs = {}, {}
    for side, model_config in (('student', config.model), ('teacher', config.teacher.model)):
        vocabularies = VOCABULARIES[side] if is_mlp else {}
        models[side] = MODELS[model_config.name](model_config, vocabularies, outputs, config.compute_dtype)
        inputs[side] = _make_inputs(rng, vocabularies, config)
    if not is_mlp:
        inputs['teacher'] = inputs['student']
    labels = rng.integers(0, outputs, config.batch_size, np.int32)
    if is_mlp:
        labels = rng.integers(1, 6, config.batch_size).astype(np.float32)
    teacher_params = models['teacher'].init(jax.random.key(1), inputs['teacher'])
    teacher_states = base.activations(models['teacher'], teacher_params, inputs['teacher'])
    task = 'regression' if is_mlp else 'classification'
    step = train_step.make_step(models['student'], task, outputs, config)
    mask, hyperparameters = np.ones(config.batch_size, np.float32), train_step.read_hyperparameters(config)

    def make_batch(states):
        return train_step.Batch(inputs['student'], labels, mask, states)

    def update(state):
        states = None
        if method != 'supervised':
            states = teacher_states
            if not is_mlp:
                states = base.activations(models['teacher'], teacher_params, inputs['teacher'])

        def upper(s):
            return models['teacher'].upper(teacher_params, s, None)

        return step.update(state, jax.random.key(2), upper, make_batch(states), hyperparameters)

    state = step.init(jax.random.key(0), make_batch(teacher_states))
    teacher_state = teacher_states[:2] if is_mlp else None
    return Case(config, state, update, inputs['student'], labels, teacher_params, teacher_state)


def _make_inputs(rng, vocabularies, config):
    if not vocabularies:
        side = config.dataset.image_size
        return {'image': rng.uniform(-1, 1, (config.batch_size, side, side, 3)).astype(np.float32)}
    inputs = {
        name: rng.integers(0, vocabularies[name], config.batch_size, np.int32) for name in ('user', 'movie')
    }
    for name in ('title_words', 'genres'):
        shape = config.batch_size, vocabularies[name]
        inputs[name] = (rng.random(shape) < 3 / vocabularies[name]).astype(np.float32)
    return inputs


def compute_losses(case: Case) -> list[float]:
    """The losses of the first steps."""
    state, update, losses = case.state, jax.jit(case.update), []
    for _ in range(COMPARED):
        state, metrics = update(state)
        losses.append(float(metrics['loss']))
    return losses


def measure(case: Case, steps: int, repeats: int) -> float:
    """Seconds per step in the fastest of some repeats, without compilation."""
    run = jax.jit(lambda state: jax.lax.fori_loop(0, steps, lambda _, state: case.update(state)[0], state))
    state, fastest = jax.block_until_ready(run(case.state)), np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        state = jax.block_until_ready(run(state))
        fastest = min(fastest, (time.perf_counter() - began) / steps)
    return fastest


def write_case(case: Case, path: pathlib.Path):
    """Writes what benchmarks/torch_step.py reads: arrays by name, and sizes and options as JSON."""
    config = case.config
    trees = {**case.state.params, 'teacher': case.teacher_params, 'inputs': case.inputs}
    arrays = {
        f'{name}/{jax.tree_util.keystr(path, simple=True, separator="/")}': np.asarray(leaf)
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    arrays |= {f'states/{i}': np.asarray(state) for i, state in enumerate(case.teacher_states or ())}
    is_mlp, weights = config.model.name == 'mlp', {}
    if config.method == 'td':
        weights = {name: weight for name, weight in config.td.weights.items() if weight}
    spec = {
        'model': config.model.name,
        'task': 'regression' if is_mlp else 'classification',
        'student': _describe_sizes(config.model),
        'teacher': _describe_sizes(config.teacher.model),
        'weights': weights,
        'learning_rate': config.optimizer.learning_rate,
        'clip_norm': config.optimizer.clip_norm,
        'compared': COMPARED,
    }
    # What PyTorch counts with.
    labels = case.labels if is_mlp else case.labels.astype(np.int64)
    np.savez(path, spec=json.dumps(spec), labels=labels, **arrays)


def _describe_sizes(model_config):
    if model_config.name == 'mlp':
        layers, inputs = len(model_config.hidden), list(VOCABULARIES['student'])
        return {'layers': layers, 'split': model_config.split, 'inputs': inputs}
    sizes, patch = vit.sizes_of(model_config)
    return {'layers': sizes.layers, 'split': model_config.split, 'patch': patch, 'heads': sizes.heads}


def run_torch(python: str, case: Case, *options: int) -> dict:
    """Runs a case in PyTorch and compares its losses: {'losses': ..., 'seconds': ..., 'difference': ...}.

    Raises:
      UserError: PyTorch fails, or its losses are others.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'case.npz'
        write_case(case, path)
        completed = subprocess.run(
            [python, SCRIPT, path, *map(str, options)], capture_output=True, text=True, check=False
        )
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or [f'exit code {completed.returncode}']
        raise UserError(f'{SCRIPT.name} failed: {lines[-1]}')
    result = json.loads(completed.stdout)
    expected = compute_losses(case)
    difference = float(np.abs(np.subtract(result['losses'], expected)).max())
    # NaN is no small difference.
    if not difference <= TOLERANCE:
        raise UserError(f'the losses are {expected} here and {result["losses"]} in PyTorch.')
    return {**result, 'difference': difference}


def find_torch(python: str) -> str | None:
    """The version of PyTorch that a Python has; None with a message where it has none."""
    try:
        completed = subprocess.run(
            [python, '-c', 'import torch; print(torch.__version__)'],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        print(
            f'benchmarks.torch_peer: skipped, since {python} has no PyTorch ({reason(error)}); '
            'the top of benchmarks/torch_peer.py says how to install it.',
            file=sys.stderr,
        )
        return None
    return completed.stdout.strip()


def main():
    torch = flags.DEFINE_string('torch', '.venv-torch/bin/python', 'A Python that has PyTorch.')
    steps = flags.DEFINE_integer('steps', 100, 'Steps per repeat.', lower_bound=1)
    repeats = flags.DEFINE_integer('repeats', 3, 'Repeats per case; the fastest counts.', lower_bound=1)

    def command():
        version = find_torch(torch.value)
        if version is None:
            return
        print(f'JAX {jax.__version__} on {jax.devices()[0].device_kind}, PyTorch {version}\n')
        print('| step | JAX, ms | PyTorch, ms | PyTorch / JAX | losses differ by at most |')
        print('| --- | --- | --- | --- | --- |')
        for name, arguments in CASES.items():
            case = make_case(*arguments)
            peer = run_torch(torch.value, case, steps.value, repeats.value)
            seconds = measure(case, steps.value, repeats.value)
            print(
                f'| {name} | {1000 * seconds:.2f} | {1000 * peer["seconds"]:.2f} '
                f'| {peer["seconds"] / seconds:.2f} | {peer["difference"]:.1e} |',
                flush=True,
            )

    command_line.run(command, required=())


if __name__ == '__main__':
    main()
