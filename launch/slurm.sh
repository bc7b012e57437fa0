#!/usr/bin/env bash
# Runs a table, a search or a comparison on a Slurm array; each of its tasks is one worker.
#
#   sbatch --array=1-10 launch/slurm.sh reproduce --tables=3 --workdir=FOLDER
#
# Called where td_jax is checked out, on a file system that all nodes see, as FOLDER is. Options of sbatch, such as
# --gres=gpu:1 or --partition, stand before the script. The same call resumes.

#SBATCH --job-name=td_jax
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# Slurm runs a copy of this file elsewhere, in the folder where sbatch was called.
case ${1-} in
  reproduce | tune | compare) ;;
  -h | --help) sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$0" && exit ;;
  *) echo "slurm.sh: '${1-}' is no command here; write reproduce, tune or compare, and its flags." >&2 && exit 2 ;;
esac
[ -x .venv/bin/python ] || {
  echo 'slurm.sh: .venv is missing; run bash launch/test.sh --setup-only, and sbatch from the checkout.' >&2
  exit 2
}
exec .venv/bin/python -m "td_jax.$1" --shard=auto "${@:2}"
