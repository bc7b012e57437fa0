"""Fingerprints of arrays, computed where the arrays are: nothing is gathered.

Every element, mixed with its place in the array, is a word of 32 bits, and the words are summed modulo 2^32.
The order of a sum does not matter, so the fingerprint is the same however an array is cut over devices and
processes. It detects damage, not forgery.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.devices import small_arrays

# Two sums of differently mixed words make 64 bits per array.
SALTS = (0x9E3779B9, 0x7F4A7C15)


def of(tree) -> str:
    """SHA-256 over the names, types, shapes and sums of a tree's arrays, in hexadecimal.

    Every process that has a part of them must call it.
    """
    digest = hashlib.sha256()
    for name, sums in sorted(of_arrays(flatten_by_name(tree)).items()):
        digest.update(f'{name} {sums}\n'.encode())
    return digest.hexdigest()


def of_arrays(arrays: dict[str, jax.Array]) -> dict[str, str]:
    """'TYPE SHAPE SUMS' of each array, the sums as 16 hexadecimal digits."""
    # One by one: arrays of one shape share a program, and a run has few shapes and many arrays. Each is
    # waited for, because CPU devices that begin programs in two orders wait for each other for ever.
    sums = {
        name: _compute_sums_numpy(np.asarray(array))
        if small_arrays.is_small(array)
        else np.asarray(_compute_sums(array))
        for name, array in arrays.items()
    }
    digits = {name: ''.join(f'{word:08x}' for word in words) for name, words in sums.items()}
    return {name: f'{array.dtype} {tuple(array.shape)} {digits[name]}' for name, array in arrays.items()}


def flatten_by_name(tree) -> dict:
    """Flattens a tree to {path joined by /: leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _compute_sums_numpy(array):
    """`_compute_sums` of a NumPy array."""
    words = array.reshape(-1).view(f'uint{8 * min(array.dtype.itemsize, 4)}').astype(np.uint32)
    place = np.arange(words.size, dtype=np.uint32)
    return [np.sum(_mix(words ^ _mix(place ^ np.uint32(salt))), dtype=np.uint32) for salt in SALTS]


@jax.jit
def _compute_sums(array):
    """Computes two sums, [2] of uint32, of an array of any shape, of 8, 16, 32 or 64 bits or of booleans."""
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    width = array.dtype.itemsize * 8
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32 if width == 64 else f'uint{width}')
    bits = bits.astype(jnp.uint32)
    # The index of each element, counted along the rows.
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    words = (_mix(bits ^ _mix(place ^ jnp.uint32(salt))) for salt in SALTS)
    return jnp.stack([jnp.sum(word, dtype=jnp.uint32) for word in words])


def _mix(x):
    """Mixes bits by the last step of MurmurHash3: every bit of a word changes half of the others."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
