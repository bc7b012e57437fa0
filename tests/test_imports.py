"""Importing the library has no side effects on the process."""

import os

from tests import forked

# Everything is imported once, so that all effects of other libraries have happened. Then td_jax is imported
# again, and only its own effects are compared.
PROGRAM = """
import importlib, json, logging, pkgutil, signal, sys, warnings
import td_jax

def import_all():
    for module in pkgutil.walk_packages(td_jax.__path__, 'td_jax.'):
        importlib.import_module(module.name)

def state():
    loggers = {'': logging.root, **logging.root.manager.loggerDict}
    return {
        'loggers': {
            name: (logger.level, logger.disabled, list(logger.filters), list(logger.handlers))
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger) and name.split('.')[0] != 'td_jax'
        },
        'disabled': logging.root.manager.disable,
        'hooks': (sys.excepthook, sys.unraisablehook),
        'warnings': list(warnings.filters),
        'signals': {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
    }

import_all()
for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
    if isinstance(logger, logging.Logger):
        logger.filters.clear()
        logger.setLevel(logging.DEBUG)
sys.unraisablehook, sys.excepthook = print, print
warnings.resetwarnings()
before = state()
for name in [name for name in sys.modules if name.split('.')[0] == 'td_jax']:
    del sys.modules[name]
import td_jax
import_all()
after = state()
assert len(before['loggers']) > 20
print(json.dumps([kind for kind in before if before[kind] != after[kind]]))

from td_jax.files import quiet
quiet.silence_failed_saves()
silent = state()
print(json.dumps([kind for kind in before if before[kind] != silent[kind]]))
"""


def test_importing_td_jax_changes_no_logger_no_hook_and_no_filter():
    """The same comparison detects what the commands do to their process."""
    completed = forked.run(['-c', PROGRAM], env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
    assert completed.returncode == 0, completed.stderr
    library, command = completed.stdout.splitlines()
    assert library == '[]'
    assert command == '["loggers", "hooks", "warnings"]'
