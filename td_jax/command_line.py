"""What every command of td_jax does around its work: parse flags, and say a mistake in one line."""

import sys

from absl import app, flags, logging

from td_jax.errors import UserError


def run(command, required):
    """Parses flags, runs `command()` and exits.

    A mistake of the user, in a flag, a config file or anything that `command` refuses, is one line on
    stderr and exit code 2.

    Args:
      command: what to do once flags are parsed.
      required: names of the flags that must have a value.
    """

    def parse(argv):
        try:
            _, *left = flags.FLAGS(argv)
            if left:
                raise UserError(f'{" ".join(left)} is not a flag; every flag starts with --.')
            for name in required:
                if not flags.FLAGS[name].value:
                    raise UserError(f'--{name} is missing.')
        except KeyboardInterrupt:
            interrupted()
        except Exception as error:  # A config file is the user's code and may raise anything.
            fail(error)
        # Orbax says a page at every save; --verbosity=0 shows it.
        if not flags.FLAGS['verbosity'].present:
            logging.set_verbosity(logging.WARNING)
        return argv[:1]

    def main(_):
        try:
            command()
        except UserError as error:
            fail(error)
        except KeyboardInterrupt:
            interrupted()

    app.run(main, flags_parser=parse)


def fail(error: Exception):
    """Ends the process with one line for a person."""
    lines = [line.strip() for line in str(error).strip('\'"').replace('\\n', '\n').splitlines()]
    text = ' '.join(line for line in lines if line) or type(error).__name__
    print(f'td_jax: {text}', file=sys.stderr)
    sys.exit(2)


def interrupted():
    """Ends the process after Ctrl-C with one line for a person."""
    print('td_jax: interrupted; the same command continues.', file=sys.stderr)
    sys.exit(130)
