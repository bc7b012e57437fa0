#!/usr/bin/env bash
# Trains in several processes on this machine, as on the workers of a cluster.
#
#   bash launch/local.sh -n 2 [--restart] -- --config=configs/FILE.py --workdir=runs/NAME
#
# Every line is shown with the number of its process. SIGTERM and Ctrl-C go to all; a second one kills.
# When one fails, the others are told to stop. The exit code is that of the first failure, else 75 if training
# was told to stop and has saved, or lost a process. --restart calls it again after 75, unless this script was
# told to stop; td_jax.main ends that after three times without a new checkpoint.
# PYTHON is what to call if not .venv/bin/python.
source "$(dirname "$0")/common.sh"

n='' restart='' OPTIONS='-n= --restart'
parse 0 "$@"
python=${PYTHON:-.venv/bin/python}
[[ $n =~ ^[1-9][0-9]{0,2}$ ]] || fail "-n '$n' is no number of processes; write -n 2 for two."
check_training --coordinator --num_processes --process_id --distributed
command -v "$python" >/dev/null || fail "$python is missing; run bash launch/test.sh --setup-only, or set PYTHON."

# Each process in a group of its own, so that Ctrl-C reaches them through this script only, and once.
set -m
pids=() told=''
# shellcheck disable=SC2329 # The traps call it.
all() { kill "-$1" -- ${pids[@]+"${pids[@]/#/-}"} 2>/dev/null || true; }
trap 'all KILL' EXIT
trap 'all "${told:-TERM}"; told=KILL' TERM
trap 'all "${told:-INT}"; told=KILL' INT

# Process $1 of those that meet at port $2. A signal is for Python; what is around it waits to see how it ends.
process() {
  trap : TERM INT
  PYTHONUNBUFFERED=1 "$python" -m td_jax.main --coordinator="localhost:$2" --num_processes="$n" \
    --process_id="$1" "${TRAINING[@]}" 2>&1 </dev/null | (trap '' TERM INT && exec sed -u "s/^/[$1] /")
}

code=''
while [[ -z $code || ($code -eq 75 && -n $restart && -z $told) ]]; do
  [ -z "$code" ] || say 'training was told to stop or lost a process; calling it again'
  code=0 pids=()
  # One that nobody listens on.
  until port=$((20000 + RANDOM % 12000)) && ! (: <"/dev/tcp/localhost/$port") 2>/dev/null; do :; done
  for ((i = 0; i < n; i++)); do
    process "$i" "$port" &
    pids+=($!)
  done
  while [ ${#pids[@]} -gt 0 ]; do
    sleep 0.1 # Unlike wait alone, not ended by a signal.
    for i in "${!pids[@]}"; do
      ! kill -0 "${pids[i]}" 2>/dev/null || continue
      own=0
      wait "${pids[i]}" 2>/dev/null || own=$?
      unset "pids[i]"
      case $code in 0 | 75) [ "$own" -eq 0 ] || code=$own ;; esac
    done
    case $code in 0 | 75) ;; *) [ -n "$told" ] || { all TERM && told=KILL; } ;; esac
  done
done
exit "$code"
