"""What every command of td_jax does around its work: parse flags, and report invalid input in one line."""

import math
import os
import pathlib
import sys
import threading
import traceback

import ml_collections
from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from td_jax.errors import CALL_AGAIN, Stopped, UserError
from td_jax.files import quiet

# Where the configs that td_jax ships are named from, in a checkout and wherever td_jax is installed.
SHIPPED = pathlib.PurePosixPath('td_jax/configs')


class _ConfigFile(config_flags.ConfigFileFlagParser):
    """Reads a config file, and names it where it returns something else than a config."""

    def parse(self, path):
        config = super().parse(_find_config(path))
        is_unread = isinstance(config, config_flags._ErrorConfig)  # says why when it is looked at
        if not is_unread and not isinstance(config, ml_collections.ConfigDict):
            kind = 'None' if config is None else f'a value of type {type(config).__name__}'
            raise UserError(
                f'--{self.name}={path}: get_config returns {kind}; it has to return a ConfigDict that '
                'common.get_config() gave it.'
            )
        return config


def _find_config(path):
    """The file of a --config that names one of the configs that td_jax ships; any other as it is."""
    name, colon, argument = path.partition(':')
    shipped = pathlib.Path(__file__).parent / 'configs' / pathlib.PurePath(name).name
    if not name.endswith('.py') or os.path.exists(name) or not shipped.is_file():
        return path
    if pathlib.PurePosixPath(name) == SHIPPED / shipped.name:
        return f'{shipped}{colon}{argument}'
    raise UserError(
        f'--config={name} is not there; the config of that name that td_jax ships is '
        f'--config={SHIPPED / shipped.name}.'
    )


def define_config():
    """Defines the flag --config, a config file, and --config.KEY for each of its keys."""
    holder = config_flags.DEFINE_config_file('config', None, 'A config file; --config.KEY=VALUE overrides.')
    flags.FLAGS[holder.name].parser = _ConfigFile(holder.name)
    return holder


def typed_keys() -> list[str]:
    """The keys of the config that were set on the command line."""
    return list(config_flags.get_override_values(flags.FLAGS['config']))


def run(command, required):
    """Parses flags, runs `command()` and exits.

    A mistake of the user, in a flag, a config file or anything that `command` refuses, is one line on
    stderr and exit code 2.

    Args:
      command: what to do once flags are parsed.
      required: names of the flags that must have a value.
    """

    def parse(argv):
        # What a library warns of while a flag is parsed would stand next to the one line that refuses it.
        logging.set_verbosity(logging.ERROR)
        try:
            _, *left = flags.FLAGS(argv)
            if left:
                raise UserError(f'{" ".join(left)} is not a flag; every flag starts with --.')
            for name in required:
                value = flags.FLAGS[name].value
                if value is None or value in ('', []):
                    raise UserError(f'--{name} is missing.')
                # The first look at a config raises why its file could not be read.
                hasattr(value, 'items')
            for name in flags.FLAGS:
                _check_value(name, flags.FLAGS[name].value)
        except KeyboardInterrupt:
            interrupted()
        except Exception as error:  # A config file is the user's code and may raise anything.
            fail(error)
        # Orbax says a page at every save; --verbosity=0 shows it.
        if not flags.FLAGS['verbosity'].present:
            logging.set_verbosity(logging.WARNING)
        return argv[:1]

    app.run(lambda _: execute(command), flags_parser=parse)


def execute(command):
    """Calls `command()`, of which every end but a good one is one line on stderr and an exit code."""
    quiet.silence_failed_saves()
    try:
        command()
    except UserError as error:
        fail(error)
    except Stopped as stopped:
        print(f'td_jax: {stopped}', file=sys.stderr)
        _end(CALL_AGAIN)
    except KeyboardInterrupt:
        interrupted()


def _check_value(name, value):
    """Refuses what no flag means: a gap in a list, or a number that is none."""
    if isinstance(value, list) and not all(str(part).strip() for part in value):
        given = ','.join(map(str, value))
        raise UserError(f'--{name}={given} has an empty name in its list; take a comma away.')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'--{name} is {value}; it must be a finite number.')


def fail(error: Exception):
    """Ends the process with one line for a person."""
    print(f'td_jax: {_text(error)}', file=sys.stderr)
    _end(2)


def _end(code):
    """Ends the process with an exit code, at once where threads of Orbax would keep it."""
    if any(type(thread).__module__.startswith('orbax.') for thread in threading.enumerate()):
        # After a save that failed they wait five minutes for a folder that was never made.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _text(error):
    """An error in one line; what a config file raised comes with its place."""
    place = ''
    if not isinstance(error, (UserError, flags.Error, OSError, SyntaxError)):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f' ({type(error).__name__} in {frame.filename}, line {frame.lineno})'
    # ml_collections wraps the KeyError of an unknown key, whose text would be its repr.
    while error.args and isinstance(error.args[0], Exception):
        error, place = error.args[0], ''
    text = f'unknown key: {error.args[0]}' if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if 'Traceback (most recent call last):' in lines:
        # What ml_collections makes of a TypeError or ValueError; its first line names the file.
        lines = [lines[0], lines[-1]]
    return (' '.join(lines) or type(error).__name__) + place


def interrupted():
    """Ends the process after Ctrl-C with one line for a person."""
    print('td_jax: interrupted; the same command continues.', file=sys.stderr)
    _end(130)
