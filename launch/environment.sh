# shellcheck shell=bash
# Sourced by the other scripts: makes .venv from a requirements file where it is missing or out of date.
#
#   make_environment requirements.txt

make_environment() {
  local requirements=$1 python=${PYTHON:-python3} stamp
  stamp=".venv/installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$requirements"
  if [ -e "$stamp" ]; then
    return
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "td_jax needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON." >&2
    exit 1
  fi
  echo "Installing $requirements into .venv (once, a few minutes) ..."
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
  touch "$stamp"
}
