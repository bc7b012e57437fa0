#!/usr/bin/env bash
# Runs on every worker of a TPU VM; launch/tpu_vm.sh calls it over ssh. Training goes on without the
# connection; .run/ has its log, its process and, once it has ended, its exit code.
#
#   bash launch/worker.sh setup COMMIT    makes .venv for this commit's code
#   bash launch/worker.sh ready COMMIT    succeeds where training runs, or where this commit is set up
#   bash launch/worker.sh idle            succeeds where no training runs
#   bash launch/worker.sh start FLAGS     starts td_jax.main with FLAGS and this environment, unless it runs
#   bash launch/worker.sh follow          prints the log until training ends
#   bash launch/worker.sh code            prints `td_jax: running`, its exit code or `none`
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/command_line.sh

running() {
  [ -e .run/pid ] && ps -o args= -p "$(cat .run/pid)" | grep -q 'launch/worker.sh train'
}

verb=${1-}
case $verb in
  setup | ready | idle | start | train | follow | code) mkdir -p .run && shift ;;
  *) fail "'$verb' is none of setup, ready, idle, start, follow and code." ;;
esac
case $verb in
  setup)
    # TPU runtimes come with an older Python than td_jax needs.
    if [ -z "${PYTHON:-}" ] && ! python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'; then
      python3 -m pip install --quiet --user uv
      python3 -m uv python install --quiet 3.12
      PYTHON=$(python3 -m uv python find 3.12)
    fi
    source launch/environment.sh
    make_environment requirements-tpu.txt
    echo "$1" >.run/commit
    ;;
  ready) running || [ "$(cat .run/commit 2>/dev/null)" = "$1" ] ;;
  idle) ! running || fail 'Training runs; its code is left as it is.' ;;
  start)
    ! running || { echo 'td_jax runs already.' && exit; }
    rm -f .run/code
    nohup setsid bash launch/worker.sh train "$@" >>.run/log 2>&1 </dev/null &
    echo $! >.run/pid
    ;;
  train)
    trap : TERM # To see how training ends when the machine stops both.
    code=0
    PYTHONUNBUFFERED=1 .venv/bin/python -m td_jax.main --distributed "$@" || code=$?
    echo "$code" >.run/code.new
    mv .run/code.new .run/code
    ;;
  follow)
    [ -e .run/pid ] || exit 0
    pid=$(cat .run/pid)
    while [ ! -e .run/code ] && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done &
    tail -s 0.05 -n 1000 --pid=$! -f .run/log | sed -u "s/^/[${HOSTNAME##*-w-}] /"
    ;;
  code)
    if running; then echo 'td_jax: running'; else echo "td_jax: $(cat .run/code 2>/dev/null || echo none)"; fi
    ;;
esac
