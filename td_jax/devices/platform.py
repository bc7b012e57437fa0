"""Starts the platform that JAX computes on, before its failure could be taken for that of a file."""

import re

import jax

from td_jax.devices import compilation_cache
from td_jax.errors import UserError


def start():
    """Starts the devices that JAX is told to use, where they are not started yet.

    Repairs the folder of compiled programs: nothing is compiled before.

    Raises:
      UserError: the platform has no devices or cannot be started, such as a TPU that another process uses;
        names the variable that asks for it.
    """
    try:
        jax.devices()
    # JAX asserts, without a word, that a platform of a plugin has one.
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms
        text = re.sub(r"^Unable to initialize backend '\w*': |\(set JAX_PLATFORMS=.*", '', str(error))
        why = ' '.join(text.split()).rstrip('.')[:300] or 'what JAX needs for it is not installed'
        if not platforms:
            raise UserError(
                f'JAX cannot start a device: {why}. Set JAX_PLATFORMS=cpu to do without.'
            ) from error
        raise UserError(
            f'JAX_PLATFORMS is {platforms}, which JAX cannot start: {why}. Unset it to use what is there, or '
            'set JAX_PLATFORMS=cpu.'
        ) from error
    compilation_cache.repair()
