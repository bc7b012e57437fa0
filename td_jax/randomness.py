"""Random numbers by name: each purpose has its own stream of a seed.

Unlike positions in a sequence, names do not change when another stream is added. Streams of different names
are independent.
"""

import contextlib
import hashlib

import jax
import numpy as np

KEY_TYPE = 'threefry2x32'


@contextlib.contextmanager
def same_everywhere():
    """Makes the random numbers of a seed the same whatever JAX is set to, within a context.

    JAX_DEFAULT_PRNG_IMPL, JAX_THREEFRY_PARTITIONABLE and JAX_ENABLE_X64 each make others of the same seed, so
    that a run which goes on in another shell, or a table of several, would mix them.
    """
    with jax.default_prng_impl(KEY_TYPE), jax.threefry_partitionable(True), jax.enable_x64(False):
        yield


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """Derives the key of the stream `name` from a key."""
    return jax.random.fold_in(key, np.uint32(derive_seed(name) >> 31))


def derive_seed(*parts: str | int) -> int:
    """Derives a seed for other generators, from 0 to 2^63 - 1, from names and numbers in order."""
    digest = hashlib.sha256('/'.join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], 'big') >> 1
