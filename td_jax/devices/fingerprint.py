"""What tells whether arrays are the same, computed where they are: nothing is gathered to be compared.

Every element, mixed with its place in the array, is a word of 32 bits, and the words are summed modulo 2^32.
A sum does not depend on its order, so that it is the same however an array is cut over devices and processes.
It notices damage; it is no secret that somebody could not forge.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.devices import small

# Two sums of differently mixed words make 64 bits an array.
SALTS = (0x9E3779B9, 0x7F4A7C15)


def of(tree) -> str:
    """SHA-256 over the names, types, shapes and sums of a tree's arrays, in hexadecimal.

    Every process that has a part of them must ask.
    """
    digest = hashlib.sha256()
    for name, sums in sorted(of_arrays(named(tree)).items()):
        digest.update(f'{name} {sums}\n'.encode())
    return digest.hexdigest()


def of_arrays(arrays: dict[str, jax.Array]) -> dict[str, str]:
    """'TYPE SHAPE SUMS' of each array, the sums as 16 hexadecimal digits."""
    # One by one: arrays of one shape share a program, and a run has few shapes and many arrays. Each is
    # waited for, because CPU devices that begin programs in two orders wait for each other for ever.
    sums = {
        name: _small_sums(np.asarray(array)) if small.is_small(array) else np.asarray(_sums(array))
        for name, array in arrays.items()
    }
    digits = {name: ''.join(f'{word:08x}' for word in words) for name, words in sums.items()}
    return {name: f'{array.dtype} {tuple(array.shape)} {digits[name]}' for name, array in arrays.items()}


def named(tree) -> dict:
    """{path joined by /: leaf} of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _small_sums(array):
    """`_sums` of a NumPy array."""
    words = array.reshape(-1).view(f'uint{8 * min(array.dtype.itemsize, 4)}').astype(np.uint32)
    place = np.arange(words.size, dtype=np.uint32)
    return [np.sum(_mixed(words ^ _mixed(place ^ np.uint32(salt))), dtype=np.uint32) for salt in SALTS]


@jax.jit
def _sums(array):
    """Array of 8, 16, 32 or 64 bits or of booleans, of any shape -> two sums, [2] of uint32."""
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    width = array.dtype.itemsize * 8
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32 if width == 64 else f'uint{width}')
    bits = bits.astype(jnp.uint32)
    # Where each element is, counted along the rows.
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    words = (_mixed(bits ^ _mixed(place ^ jnp.uint32(salt))) for salt in SALTS)
    return jnp.stack([jnp.sum(word, dtype=jnp.uint32) for word in words])


def _mixed(x):
    """The last step of MurmurHash3: every bit of a word changes half of the others."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
