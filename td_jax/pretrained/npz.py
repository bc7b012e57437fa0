"""The arrays of an .npz."""

import zipfile

import numpy as np

from td_jax.errors import UserError, reason


def arrays(path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, by name.

    Raises:
      UserError: it is damaged or no .npz.
    """
    try:
        # Without more said, NumPy refuses arrays of objects, whose reading could run code.
        with open(path, 'rb') as file, np.load(file) as found:
            return {name: found[name] for name in found}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        # The last two: a lone array or other text, which is no archive to enter.
        raise UserError(
            f'{path} is damaged or no .npz ({reason(error)}); delete it and get it once more.'
        ) from error
