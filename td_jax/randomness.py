"""Random numbers by name: whatever is drawn has a stream of its own, found by what it is for.

A name, unlike a place among others, stays what it is when something else is drawn, too. What is drawn
of one seed under two names has nothing in common.
"""

import hashlib

import jax
import numpy as np


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """The key of what is called `name` among all that is drawn from a key."""
    return jax.random.fold_in(key, np.uint32(derive_seed(name) >> 31))


def derive_seed(*parts: str | int) -> int:
    """A seed for other generators, from 0 to 2^63 - 1, of some names and numbers in their order."""
    digest = hashlib.sha256('/'.join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], 'big') >> 1
