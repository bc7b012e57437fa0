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


def silence_cpp():
    """Nothing of JAX's and TensorFlow's C++ is printed from now on, if neither is imported yet.

    Unless TF_CPP_MIN_LOG_LEVEL is set to another level than that above.
    """
    if CPP_LOG_LEVEL == '2':
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '4'
