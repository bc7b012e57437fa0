"""Parses flags of the commands of td_jax, and reports invalid input in one line."""

import io
import math
import os
import pathlib
import re
import select
import signal
import sys
import threading
import traceback
from typing import NamedTuple

import ml_collections
from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from td_jax.errors import CALL_AGAIN, Stopped, UserError, suggest
from td_jax.files import quiet

# What stands between a command and a person's config file, and is no place of a mistake.
_BETWEEN = (
    __file__,
    *(f'{pathlib.Path(module.__file__).parent}{os.sep}' for module in (app, ml_collections)),
)
# The prefix of names of configs that are part of td_jax, in a checkout and when installed.
SHIPPED = pathlib.PurePosixPath('td_jax/configs')

# Where a person finds the keys.
OPTIONS = 'td_jax/configs/common.py declares every option.'


class _ConfigFile(config_flags.ConfigFileFlagParser):
    """Reads a config file, and refuses one that returns no config."""

    def parse(self, path):
        config = super().parse(_find_config(path))
        is_unread = isinstance(config, config_flags._ErrorConfig)  # raises the reason on access
        if not is_unread and not isinstance(config, ml_collections.ConfigDict):
            kind = 'None' if config is None else f'a value of type {type(config).__name__}'
            raise UserError(
                f'--{self.name}={path}: get_config returns {kind}; it has to return a ConfigDict that '
                'common.get_config() gave it.'
            )
        if not is_unread:
            # --config.key, -config.key, and --noconfig.key for a bool.
            for argument in sys.argv[1:]:
                flag = re.match(rf'--?(?:no)?{self.name}\.([^=]*)', argument)
                if flag:
                    _check_override(config, flag[1])
        return config


def _check_override(config, key):
    """Refuses an override of what a config does not have, or of a part of a tuple.

    Raises:
      UserError: names the key, and the nearest one if there is one.
    """
    place, what = '', key or "''"
    for part in key.split('.'):
        name = part.split('[')[0]
        if not isinstance(config, ml_collections.ConfigDict):
            raise UserError(f'{what} is not a key of the config: {place} has no keys. Write {place}=VALUE.')
        if name not in config:
            hint = suggest(name, config, place and f'{place}.') or f' {OPTIONS}'
            raise UserError(f'{what} is not a key of the config.{hint}')
        config, place = config[name], f'{place}.{name}' if place else name
        if part != name:
            raise UserError(f'{what} cannot be set by itself; set all of {place}, as in {place}={config}.')


def _find_config(path):
    """Finds the file of a --config that is part of td_jax; returns any other path unchanged.

    Raises:
      UserError: there is no such file.
    """
    name, colon, argument = path.partition(':')
    shipped_file = pathlib.Path(__file__).parent / 'configs' / pathlib.PurePath(name).name
    if not name.endswith('.py') or os.path.exists(name):
        return path
    if not shipped_file.is_file():
        names = [str(other) for other in pathlib.Path(name).parent.glob('*.py')]
        raise UserError(f'--config={name} is not there.{suggest(name, names)}')
    if pathlib.PurePosixPath(name) == SHIPPED / shipped_file.name:
        return f'{shipped_file}{colon}{argument}'
    raise UserError(
        f'--config={name} is not there; the config of that name that td_jax ships is '
        f'--config={SHIPPED / shipped_file.name}.'
    )


def define_config():
    """Defines the flag --config, a config file, and --config.KEY for each of its keys."""
    holder = config_flags.DEFINE_config_file('config', None, 'A config file; --config.KEY=VALUE overrides.')
    flags.FLAGS[holder.name].parser = _ConfigFile(holder.name)
    return holder


def define_teacher():
    """Defines the flag --teacher."""
    return flags.DEFINE_string(
        'teacher',
        None,
        "A public checkpoint that teaches in place of the configs' own: a folder, or what teacher.pretrained "
        'takes. Results record its fingerprint, not where it is.',
    )


def define_teacher_outputs():
    """Defines the flags that td_jax.training.teacher_outputs.use takes, in its order."""
    folder = flags.DEFINE_string(
        'teacher_outputs',
        None,
        "Folder that keeps the teacher's outputs for clean inputs or fixed views, and what a probe reads, "
        'for runs with the same teacher and data.',
    )
    gigabytes = flags.DEFINE_float(
        'teacher_outputs_gb', None, 'Largest size of that folder in GB, 20 by default.', lower_bound=0.0
    )
    return folder, gigabytes


class RunFlags(NamedTuple):
    """The flags of commands that have many runs."""

    folder: flags.FlagHolder
    count: flags.FlagHolder
    shard: flags.FlagHolder
    only_show: flags.FlagHolder


def define_runs() -> RunFlags:
    """Defines the flags --workdir, --jobs, --shard and --only_show."""
    return RunFlags(
        flags.DEFINE_string('workdir', None, 'Folder of all runs; the same command resumes.'),
        flags.DEFINE_integer(
            'jobs', 1, 'Runs at a time, each on its share of the cores; 0: one on each core.', lower_bound=0
        ),
        flags.DEFINE_string(
            'shard',
            None,
            'I/N: this is worker I of N that share the folder; auto or auto/N takes I, or both, from Slurm, '
            'SkyPilot or Kubernetes.',
        ),
        flags.DEFINE_bool('only_show', False, 'Run nothing; show what is there, of all workers.'),
    )


def refuse_without_effect(table: dict[str, tuple[str, ...]]):
    """Refuses flags that have no effect with another one, {flag: those}, where both have a value."""
    for flag, others in table.items():
        for other in others:
            if flags.FLAGS[flag].value and flags.FLAGS[other].value:
                raise UserError(f'--{other} has no effect with --{flag}; leave one of them out.')


def list_set_keys() -> list[str]:
    """The keys of the config that were set on the command line."""
    return list(config_flags.get_override_values(flags.FLAGS['config']))


def run(command, required):
    """Parses flags, runs `command()` and exits.

    Invalid input, in a flag, a config file or anything that `command` refuses, gives one line on stderr and
    exit code 2.

    Args:
      command: called after flags are parsed.
      required: names of the flags that must have a value.
    """

    def parse(argv):
        # Hides warnings of libraries next to the line that refuses a flag.
        logging.set_verbosity(logging.ERROR)
        try:
            _, *arguments = flags.FLAGS(argv)
            if arguments:
                raise UserError(f'{" ".join(arguments)} is not a flag; every flag starts with --.')
            for name in required:
                value = flags.FLAGS[name].value
                if value is None or value in ('', []):
                    raise UserError(f'--{name} is missing.')
                # The first access to a config raises the reason why its file could not be read.
                hasattr(value, 'items')
            for name in flags.FLAGS:
                _check_value(flags.FLAGS[name])
        except KeyboardInterrupt:
            end_interrupted()
        except Exception as error:  # A config file is the user's code and may raise anything.
            fail(error)
        # Orbax logs a lot at every save; --verbosity=0 shows it.
        if not flags.FLAGS['verbosity'].present:
            logging.set_verbosity(logging.WARNING)
        return argv[:1]

    _complete_help(command.__module__)
    app.run(lambda _: execute(command), flags_parser=parse)


def _complete_help(name):
    """Has --help print the docstring and the flags of a command's module, and --config.

    absl prints those of the script that was started: a command's module by `python -m` without what it takes
    from here, and nothing if it is installed.
    """
    if name != '__main__':
        sys.modules['__main__'].__doc__ = sys.modules[name].__doc__
    for module in (name, __name__):
        for flag in flags.FLAGS.get_flags_for_module(module):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def execute(command):
    """Calls `command()`; failures give one line on stderr and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does: a terminal without the letters of a name is no reason to fail.
        sys.stdout.reconfigure(errors='backslashreplace')
    quiet.silence_failed_saves()
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        # As for other programs before `| head`. Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(128 + signal.SIGPIPE)
    except UserError as error:
        fail(error)
    except Stopped as stopped:
        print(f'td_jax: {stopped}', file=sys.stderr)
        _end(CALL_AGAIN)
    except KeyboardInterrupt:
        end_interrupted()


def _check_value(flag):
    """Refuses an empty list, an empty name in one, and a number that is not finite."""
    name, value = flag.name, flag.value
    if flag.present and value == []:
        raise UserError(f'--{name} is empty; name something, or leave it out.')
    if isinstance(value, list) and not all(str(part).strip() for part in value):
        text = ','.join(map(str, value))
        raise UserError(f'--{name}={text} has an empty name in its list; take a comma away.')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'--{name} is {value}; it must be a finite number.')


def print_message(line: str):
    """Prints a line about a command on stderr."""
    print(f'td_jax: {line}', file=sys.stderr, flush=True)


def fail(error: Exception):
    """Prints an error in one line and ends the process with exit code 2."""
    print(f'td_jax: {_format_error(error)}', file=sys.stderr)
    _end(2)


def _end(code):
    """Ends the process with an exit code, immediately if threads of Orbax would delay it."""
    if any(type(thread).__module__.startswith('orbax.') for thread in threading.enumerate()):
        # After a failed save, they wait five minutes for a folder that was never made.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _format_error(error):
    """Formats an error in one line, with its place if a config file raised it."""
    place = ''
    if not isinstance(error, (UserError, flags.Error, OSError, SyntaxError)):
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame for frame in frames if not frame.filename.startswith(_BETWEEN)]
        if places:
            place = f' ({type(error).__name__} in {places[-1].filename}, line {places[-1].lineno})'
    # ml_collections wraps the KeyError of an unknown key, whose text would be its repr.
    while error.args and isinstance(error.args[0], Exception):
        error, place = error.args[0], ''
    text = f'unknown key: {error.args[0]}' if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if 'Traceback (most recent call last):' in lines:
        # ml_collections wraps a TypeError or ValueError; the first line names the file.
        lines = [lines[0], lines[-1]]
    return (' '.join(lines) or type(error).__name__) + place


def _is_output_closed():
    """Whether whoever read stdout has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors alone
    return bool(poll.poll(0))


def end_interrupted():
    """Ends the process after Ctrl-C with one line."""
    print('td_jax: interrupted; the same command continues.', file=sys.stderr)
    _end(130)
