#!/usr/bin/env bash
# Makes the environment if it is missing, then trains a teacher and students by every method on the
# handwritten digits that ship with scikit-learn, offline, and prints the table. Called again, it
# continues or prints what is there.
#
#   bash launch/quickstart.sh [WORKDIR]        WORKDIR is runs/quickstart if it is not given
source "$(dirname "$0")/common.sh"
[[ $# -le 1 && ${1-} != -* ]] || fail "'$*' is no WORKDIR; write quickstart.sh WORKDIR."
make_environment requirements.txt
exec .venv/bin/python -m td_jax.reproduce --tables=digits --jobs=0 --workdir="${1:-runs/quickstart}"
