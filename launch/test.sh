#!/usr/bin/env bash
# Makes the environment if it is missing, checks format and style, and runs the tests.
#
#   bash launch/test.sh [--setup-only] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment requirements-dev.txt
# The TPU compiler, on a path of its own: where JAX finds it, it looks for a TPU and complains of none.
if [ "$(uname -sm)" = 'Linux x86_64' ] && [ ! -d .venv/libtpu ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/libtpu libtpu
fi
if [ "${1:-}" = --setup-only ]; then
  echo 'The environment in .venv is ready.'
  exit
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n 2 --dist=loadfile "$@"
