#!/usr/bin/env bash
# Makes the environment if it is missing, checks format and style, runs the quick tests and says how long
# they took.
#
#   bash launch/test.sh [--all | --setup-only] [pytest arguments]
#
# --all          runs the long tests, too
# --setup-only   stops after the environment
source "$(dirname "$0")/common.sh"
make_environment requirements-dev.txt
# The TPU compiler, on a path of its own: where JAX finds it, it looks for a TPU and complains of none.
if [ "$(uname -sm)" = 'Linux x86_64' ] && [ ! -d .venv/libtpu ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/libtpu libtpu
fi
# What exports to ONNX need; the file says why without dependencies.
stamp=.venv/onnx-$(cksum < requirements-onnx.txt | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-onnx.txt
  touch "$stamp"
fi
which=(-m 'not long') hint=' Without the long ones; --all runs them, too.'
case ${1-} in
  --setup-only) echo 'The environment in .venv is ready.' && exit ;;
  --all) which=() hint='' && shift ;;
esac
.venv/bin/ruff check .
.venv/bin/ruff format --check .
code=0
SECONDS=0
.venv/bin/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder ${which[@]+"${which[@]}"} "$@" || code=$?
echo "The tests took $((SECONDS / 60)) min $((SECONDS % 60)) s.$hint"
exit "$code"
