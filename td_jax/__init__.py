"""Talking-model Distillation (arXiv 2310.03188) in JAX and Flax."""

import os

# TensorFlow, which only reads data and writes events here, prints pages at its start unless told not to,
# and it has to be told before anything imports it.
CPP_LOG_LEVEL = os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
# etils.epath reaches buckets by gcsfs, not by TensorFlow: Orbax needs Google's client of storage, which comes
# with it, and unlike TensorFlow it can be pointed at another server, so that tests run what everybody runs.
os.environ.setdefault('EPATH_USE_TF', 'false')

__version__ = '0.1.0'


def train(config, workdir, *, models=None, sources=None, methods=None) -> dict:
    """Trains what a config describes, as `python -m td_jax.main` does; td_jax.own.train says it all."""
    # Imported here: a command tells of a mistake in its flags without JAX.
    from td_jax import own

    return own.train(config, workdir, models=models, sources=sources, methods=methods)


def load(workdir, seed_index=0, *, models=None, sources=None, methods=None):
    """A finished run and its trained student, read back; td_jax.own.load says it all."""
    from td_jax import own

    return own.load(workdir, seed_index, models=models, sources=sources, methods=methods)


def silence_cpp():
    """Nothing of JAX's and TensorFlow's C++ is printed from now on, if neither is imported yet.

    Unless TF_CPP_MIN_LOG_LEVEL is set to another level than that above.
    """
    if CPP_LOG_LEVEL == '2':
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '4'
