"""Libraries that only some formats need."""

import contextlib
import importlib
import logging

from td_jax.errors import UserError

# Format -> what installs what it needs.
INSTALLS = {
    'onnx': 'pip install onnx onnx_ir onnxruntime && pip install --no-deps jax2onnx',
    'saved_model': 'pip install tensorflow, and a JAX that still has jax.experimental.jax2tf',
}


def module(name: str, format_name: str):
    """Imports a module that a format needs.

    Raises:
      UserError: it is missing or cannot be imported; says what installs it.
    """
    try:
        with silent():
            return importlib.import_module(name)
    # A library that does not fit the others raises whatever it meets.
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'--format={format_name} needs {name}, which cannot be imported here ({reason}): '
            f'{INSTALLS[format_name]}.'
        ) from error


@contextlib.contextmanager
def silent():
    """Drops what a library logs of parts of itself that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
