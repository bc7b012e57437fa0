"""Reads the arrays of an .npz."""

import zipfile

import numpy as np

from td_jax.errors import UserError, reason


def read_arrays(path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz, by name.

    Raises:
      UserError: it is damaged or not an .npz.
    """
    try:
        # By default, NumPy refuses arrays of objects, which could run code.
        with open(path, 'rb') as file, np.load(file) as contents:
            return {name: contents[name] for name in contents}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        # The last two: a single array or text, which is no context manager.
        raise UserError(
            f'{path} is damaged or no .npz ({reason(error)}); delete it and get it once more.'
        ) from error
