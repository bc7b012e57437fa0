"""Arrays that NumPy reads in less time than it takes to compile a program for their shape."""

import jax
import numpy as np

# A small array has at most so many elements.
MAX_ELEMENTS = 2**18


def is_small(array: np.ndarray | jax.Array) -> bool:
    """Whether an array is small and this process has it whole; the same in all processes."""
    # Without 64 bits, a program would take an array of them for one of 32.
    keeps_type = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    is_whole = not isinstance(array, jax.Array) or array.is_fully_replicated
    return array.size <= MAX_ELEMENTS and is_whole and keeps_type
