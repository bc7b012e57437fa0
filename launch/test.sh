#!/usr/bin/env bash
# Makes the environment if it is missing, checks format and style, and runs the tests.
#
#   bash launch/test.sh [--setup-only] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment requirements-dev.txt
if [ "${1:-}" = --setup-only ]; then
  echo 'The environment in .venv is ready.'
  exit
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
