#!/usr/bin/env bash
# Runs on every worker of a TPU VM; launch/tpu_vm.sh calls it over ssh. Training goes on without the
# connection; .run/ has its log, a lock that it holds and, once it has ended, its exit code.
#
#   bash launch/worker.sh setup COMMIT    makes .venv for this commit's code
#   bash launch/worker.sh ready COMMIT    succeeds where training runs, or where this commit is set up
#   bash launch/worker.sh idle            succeeds where no training runs
#   bash launch/worker.sh start FLAGS     starts td_jax.main with FLAGS and this environment, unless it runs
#   bash launch/worker.sh follow          prints the log until training ends
#   bash launch/worker.sh code            prints `td_jax: running`, its exit code or `none`
source "$(dirname "$0")/common.sh"
mkdir -p .run
# Training holds the lock alone; those that look at it do not keep each other from it.
idle() { flock --shared --nonblock .run/lock true; }

case ${1-} in
  setup)
    # TPU runtimes come with an older Python than td_jax needs.
    if [ -z "${PYTHON:-}" ] && ! python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'; then
      python3 -m pip install --quiet --user uv
      python3 -m uv python install --quiet 3.12
      PYTHON=$(python3 -m uv python find 3.12)
    fi
    make_environment requirements-tpu.txt
    echo "$2" >.run/commit
    ;;
  ready) ! idle || [ "$(cat .run/commit 2>/dev/null)" = "$2" ] ;;
  idle) idle || fail 'Training runs; its code is left as it is.' ;;
  start)
    # Training inherits the lock. A look at it holds it for a moment, too.
    exec 9>.run/lock
    flock --wait 1 9 || { echo 'td_jax runs already.' && exit; }
    rm -f .run/code
    # In a session of its own, and with a trap to see how training ends when the machine stops both.
    PYTHONUNBUFFERED=1 setsid bash -c 'trap : TERM; "$@"; echo $? >.run/new; mv .run/new .run/code' train \
      .venv/bin/python -m td_jax.main --distributed "${@:2}" >>.run/log 2>&1 </dev/null &
    ;;
  follow)
    [ -e .run/log ] || exit 0
    flock --shared .run/lock true &
    tail -s 0.05 -n 1000 --pid=$! -f .run/log | sed -u "s/^/[${HOSTNAME##*-w-}] /"
    ;;
  code) echo "td_jax: $(if idle; then cat .run/code 2>/dev/null || echo none; else echo running; fi)" ;;
  *) fail "'${1-}' is none of setup, ready, idle, start, follow and code." ;;
esac
