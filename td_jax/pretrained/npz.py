"""Reads the arrays of an .npz."""

import zipfile

import numpy as np

from td_jax.errors import failure_as_user_error


def read_arrays(path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz, by name.

    Raises:
      UserError: it is damaged or not an .npz.
    """
    refusal = failure_as_user_error(f'{path} is damaged or no .npz', 'delete it and get it once more')
    with refusal, open(path, 'rb') as file:
        # NumPy would advise to load any other file as one that could run code.
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile('it is no zip archive')
        file.seek(0)
        # By default, NumPy refuses arrays of objects, which could run code.
        with np.load(file) as contents:
            return {name: contents[name] for name in contents}
