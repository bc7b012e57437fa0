"""Imports libraries that only some formats need."""

import contextlib
import importlib
import logging

from td_jax.errors import UserError

# Format -> how to install its libraries.
INSTALLS = {
    'onnx': 'pip install onnx onnx_ir onnxruntime && pip install --no-deps jax2onnx',
    'saved_model': 'pip install tensorflow, and a JAX that still has jax.experimental.jax2tf',
}


def import_module(name: str, format_name: str):
    """Imports a module that a format needs.

    Raises:
      UserError: it is missing or cannot be imported; names the command that installs it.
    """
    try:
        with silence_logging():
            return importlib.import_module(name)
    # An incompatible library may raise anything.
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'--format={format_name} needs {name}, which cannot be imported here ({reason}): '
            f'{INSTALLS[format_name]}.'
        ) from error


@contextlib.contextmanager
def silence_logging():
    """Silences the log of a library about optional parts of itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
