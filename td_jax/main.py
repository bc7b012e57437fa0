"""Trains one run: flags and process start-up, nothing else.

python -m td_jax.main --config=configs/movielens.py --workdir=runs/drama --config.method=fitnet
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from td_jax import experiment, workdir
from td_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'The config file; --config.KEY=VALUE overrides.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run, made if missing.')


def parse_flags(argv):
    """Parses flags; a mistake in one is one line and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        for flag, value in (('config', CONFIG.value), ('workdir', WORKDIR.value)):
            if not value:
                raise UserError(f'--{flag} is missing.')
        # Orbax says a page at every save; --verbosity=0 shows it.
        if not flags.FLAGS['verbosity'].present:
            logging.set_verbosity(logging.WARNING)
        return rest
    except Exception as error:  # A config file is the user's code and may raise anything.
        fail(error)


def fail(error):
    """Ends the process with one line for a person."""
    lines = [line.strip() for line in str(error).strip('\'"').replace('\\n', '\n').splitlines()]
    text = ' '.join(line for line in lines if line) or type(error).__name__
    print(f'td_jax: {text}', file=sys.stderr)
    sys.exit(2)


def main(_):
    try:
        result = experiment.run(CONFIG.value, workdir.resolve(WORKDIR.value))
    except UserError as error:
        fail(error)
    print(experiment.describe(result))


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
