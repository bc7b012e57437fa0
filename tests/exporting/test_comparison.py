"""The size and the speed of a student."""

import re

import jax
import numpy as np

from td_jax.exporting import comparison
from td_jax.models import base
from td_jax.training import finished as finished_runs


def test_what_is_timed_needs_no_data_set(mlp_run):
    examples = comparison.repeat_example(finished_runs.load(mlp_run).source, 7)
    assert {name: (array.shape, array.dtype) for name, array in examples.items()} == {
        'image': ((7, 64), np.float32),
        'labels': ((7,), np.int32),
    }


def test_a_model_without_a_head_is_timed_whole(monkeypatch):
    """The timed program computes the states; XLA would drop them for logits of width 0."""
    compiled = []
    jit = jax.jit

    def jit_and_record(function):
        jitted = jit(function)

        def run(*arguments):
            if not compiled:
                compiled.append(jitted.lower(*arguments).compile().as_text())
            return jitted(*arguments)

        return run

    monkeypatch.setattr(comparison.jax, 'jit', jit_and_record)
    monkeypatch.setattr(comparison, 'REPEATS', 1)
    model = base.Model(
        init=None,
        lower=lambda params, inputs, key: inputs['image'] @ params['lower'],
        upper=lambda params, s, key: s @ params['upper'],
        head=lambda params, e: e @ params['head'],
    )
    params = {'lower': np.ones((5, 7)), 'upper': np.ones((7, 3)), 'head': np.ones((3, 0))}
    assert comparison.measure_milliseconds(model, params, {'image': np.ones((2, 5))}) > 0
    assert len(re.findall(r' dot\(', compiled[0])) == 2
