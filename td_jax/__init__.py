"""Talking-model Distillation (arXiv 2310.03188) in JAX and Flax."""

import os

# TensorFlow, which only reads data and writes events here, logs a lot at its start. The level must be set
# before anything imports it.
CPP_LOG_LEVEL = os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
# etils.epath accesses buckets by gcsfs and not by TensorFlow: Orbax needs Google's storage client, which
# comes with it, and tests can point it at another server, so that they run the same code as users.
os.environ.setdefault('EPATH_USE_TF', 'false')

__version__ = '0.1.0'


def train(config, workdir, *, models=None, sources=None, methods=None) -> dict:
    """Trains and evaluates a run like `python -m td_jax.main`; documented in td_jax.own.train."""
    # Imported here, so that commands report invalid flags without importing JAX.
    from td_jax import own

    return own.train(config, workdir, models=models, sources=sources, methods=methods)


def load(workdir, seed_index=0, *, models=None, sources=None, methods=None):
    """Loads a finished run with its trained student; documented in td_jax.own.load."""
    from td_jax import own

    return own.load(workdir, seed_index, models=models, sources=sources, methods=methods)


def silence_cpp():
    """Silences the C++ logs of JAX and TensorFlow, if neither is imported yet.

    It has no effect if TF_CPP_MIN_LOG_LEVEL was set by the user to another level than above.
    """
    if CPP_LOG_LEVEL == '2':
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '4'
