"""The size and the speed of a student."""

import numpy as np

from td_jax.exporting import comparison
from td_jax.training import finished as finished_runs


def test_fewer_examples_than_are_timed_are_repeated(mlp_run):
    source = finished_runs.load(mlp_run).source
    few = source._replace(evaluation={'labels': np.arange(3)})
    np.testing.assert_array_equal(comparison.examples_of(few, 7)['labels'], [0, 1, 2, 0, 1, 2, 0])
