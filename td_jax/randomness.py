"""Random numbers by name: each purpose has its own stream of a seed.

Unlike positions in a sequence, names do not change when another stream is added. Streams of different names
are independent.
"""

import hashlib

import jax
import numpy as np


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """Derives the key of the stream `name` from a key."""
    return jax.random.fold_in(key, np.uint32(derive_seed(name) >> 31))


def derive_seed(*parts: str | int) -> int:
    """Derives a seed for other generators, from 0 to 2^63 - 1, from names and numbers in order."""
    digest = hashlib.sha256('/'.join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], 'big') >> 1
