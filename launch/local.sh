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
source launch/cloud.sh

n='' restart=''
OPTIONS='-n' SWITCHES='--restart'
parse "$@"
python=${PYTHON:-.venv/bin/python}
[ -n "$n" ] || fail '-n is missing; write -n 2 for two processes.'
[[ $n =~ ^[1-9][0-9]{0,2}$ ]] || fail "-n $n is no number of processes; write -n 2 for two."
[ ${#WORDS[@]} -eq 0 ] || fail "${WORDS[0]} is one word too many; flags of td_jax.main go after --."
check_training --coordinator --num_processes --process_id --distributed
command -v "$python" >/dev/null || fail "$python is missing; run bash launch/test.sh --setup-only, or set PYTHON."

# Each process in a group of its own, so that Ctrl-C reaches them through this script only, and once.
set -m
scratch=$(mktemp -d)
pids=() readers=() told='' code=0 deadline=''

all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill "-$1" -- "-$pid" 2>/dev/null || true
  done
}

# shellcheck disable=SC2329 # The traps call it.
tell() {
  if [ -n "$told" ]; then
    all KILL
  else
    told=1
    all "$1"
  fi
}
trap 'all KILL; rm -rf "$scratch"' EXIT
trap 'tell TERM' TERM
trap 'tell INT' INT

# A port that nobody listens on.
free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 12000))
    (: <"/dev/tcp/localhost/$port") 2>/dev/null || break
  done
  echo "$port"
}

start() {
  local i port
  port=$(free_port)
  pids=() readers=() code=0 deadline=''
  for ((i = 0; i < n; i++)); do
    rm -f "$scratch/$i"
    mkfifo "$scratch/$i"
    sed -u "s/^/[$i] /" <"$scratch/$i" &
    readers+=($!)
    PYTHONUNBUFFERED=1 "$python" -m td_jax.main --coordinator="localhost:$port" --num_processes="$n" \
      --process_id="$i" "${TRAINING[@]}" >"$scratch/$i" 2>&1 </dev/null &
    pids+=($!)
  done
}

# Waits for all, and leaves in `code` how it ended.
finish() {
  local left pid own
  while [ ${#pids[@]} -gt 0 ]; do
    left=()
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
        continue
      fi
      own=0
      wait "$pid" 2>/dev/null || own=$?
      case $own in
        0) ;;
        75) [ "$code" -ne 0 ] || code=75 ;;
        *)
          if [ "$code" -eq 0 ] || [ "$code" -eq 75 ]; then
            code=$own
          fi
          ;;
      esac
    done
    pids=(${left[@]+"${left[@]}"})
    if [ "$code" -ne 0 ] && [ "$code" -ne 75 ] && [ -z "$deadline" ]; then
      deadline=$((SECONDS + ${GRACE:-10}))
      all TERM
    elif [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
      all KILL
    fi
    [ ${#pids[@]} -eq 0 ] || sleep 0.1
  done
  wait "${readers[@]}"
}

while true; do
  start
  finish
  [[ $code -eq 75 && -n $restart && -z $told ]] || break
  say 'training was told to stop and has saved; calling it again'
done
exit "$code"
