#!/usr/bin/env bash
# Trains in several processes on this machine, as on the workers of a cluster.
#
#   bash launch/local.sh -n 2 [--restart] -- --config=configs/FILE.py --workdir=runs/NAME
#
# Every line is shown with the number of its process. SIGTERM and Ctrl-C go to all of them; a second one kills.
# When one fails, the others are ended. The exit code is that of the first failure, else 75 if training was
# told to stop and has saved. --restart calls it again after 75, unless this script was told to stop.
#
# PYTHON    if not .venv/bin/python
# GRACE     seconds from telling the others to stop to killing them, 10
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/command_line.sh

n='' restart='' OPTIONS='-n' SWITCHES='--restart'
parse "$@"
python=${PYTHON:-.venv/bin/python}
[ -n "$n" ] || fail '-n is missing; write -n 2 for two processes.'
[[ $n =~ ^[1-9][0-9]{0,2}$ ]] || fail "-n $n is no number of processes; write -n 2 for two."
[ ${#WORDS[@]} -eq 0 ] || fail "${WORDS[0]} is one word too many; flags of td_jax.main go after --."
check_training --coordinator --num_processes --process_id --distributed
command -v "$python" >/dev/null || fail "$python is missing; run bash launch/test.sh --setup-only, or set PYTHON."

# Each process in a group of its own, so that Ctrl-C reaches them through this script only, and once.
set -m
pids=() told=''

all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill "-$1" -- "-$pid" 2>/dev/null || true
  done
}
trap 'all KILL' EXIT
trap 'all "${told:-TERM}"; told=KILL' TERM
trap 'all "${told:-INT}"; told=KILL' INT

# Process $1 of those that meet at port $2. A signal is for Python; what is around it waits to see how it ends.
process() {
  trap : TERM INT
  PYTHONUNBUFFERED=1 "$python" -m td_jax.main --coordinator="localhost:$2" --num_processes="$n" \
    --process_id="$1" "${TRAINING[@]}" 2>&1 </dev/null | (trap '' TERM INT && exec sed -u "s/^/[$1] /")
}

# Starts all, waits for them, and leaves in `code` how they ended.
train() {
  local i port own deadline=''
  code=0 pids=()
  # One that nobody listens on.
  until port=$((20000 + RANDOM % 12000)) && ! (: <"/dev/tcp/localhost/$port") 2>/dev/null; do :; done
  for ((i = 0; i < n; i++)); do
    process "$i" "$port" &
    pids+=($!)
  done
  while [ ${#pids[@]} -gt 0 ]; do
    sleep 0.1
    for i in "${!pids[@]}"; do
      ! kill -0 "${pids[i]}" 2>/dev/null || continue
      own=0
      wait "${pids[i]}" 2>/dev/null || own=$?
      unset "pids[i]"
      case $code in 0 | 75) [ "$own" -eq 0 ] || code=$own ;; esac
    done
    case $code,$deadline in
      0, | 75,) ;;
      *,) all TERM && deadline=$((SECONDS + ${GRACE:-10})) ;;
      *) [ "$SECONDS" -lt "$deadline" ] || all KILL ;;
    esac
  done
}

train
while [[ $code -eq 75 && -n $restart && -z $told ]]; do
  say 'training was told to stop and has saved; calling it again'
  train
done
exit "$code"
