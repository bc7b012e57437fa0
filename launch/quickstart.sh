#!/usr/bin/env bash
# Makes the environment if it is missing, then compares methods on the handwritten digits that ship with
# scikit-learn, offline: a teacher that has seen all images teaches students with ten labels per class. Prints
# a table and a sentence, and keeps the best student. Called again, it goes on or prints what is there.
#
#   bash launch/quickstart.sh [WORKDIR]        WORKDIR is runs/quickstart if it is not given
source "$(dirname "$0")/common.sh"
[[ $# -le 1 && ${1-} != -* ]] || fail "'$*' is no WORKDIR; write quickstart.sh WORKDIR."
make_environment requirements.txt
exec .venv/bin/python -m td_jax.compare --config=configs/quickstart.py --methods=ld,fitnet,rkd,td,td_ld \
  --trials=0 --search_seeds=1 --jobs=0 --workdir="${1:-runs/quickstart}"
