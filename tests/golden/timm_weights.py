"""Random weights under timm's names, for the script that asks timm and for the tests that ask td_jax."""

import numpy as np


def draw(shapes):
    """{name: array} of {name: shape}, in the order of names."""
    rng, weights = np.random.default_rng(0), {}
    for name in sorted(shapes):
        shape, leaf = tuple(shapes[name]), name.rpartition('.')[2]
        if leaf == 'num_batches_tracked':
            weights[name] = np.zeros(shape, np.int64)
        elif leaf == 'running_var':
            weights[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif leaf == 'weight' and len(shape) == 1:
            # Of norms.
            weights[name] = rng.uniform(0.8, 1.2, shape).astype(np.float32)
        elif leaf == 'weight':
            scale = 1.5 / np.sqrt(np.prod(shape[1:]))
            weights[name] = (scale * rng.normal(size=shape)).astype(np.float32)
        else:
            weights[name] = (0.1 * rng.normal(size=shape)).astype(np.float32)
    return weights


def images(side):
    """Two images [2, side, side, 3], as a model is shown them."""
    return np.random.default_rng(side).normal(size=(2, side, side, 3)).astype(np.float32)
