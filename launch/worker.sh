#!/usr/bin/env bash
# Runs on every worker of a TPU VM; launch/tpu_vm.sh calls it over ssh. Training goes on without the
# connection; .run/ has its log, its process and, once it has ended, its exit code.
#
#   bash launch/worker.sh setup COMMIT    makes .venv for this commit's code
#   bash launch/worker.sh ready COMMIT    succeeds where training runs, or where this commit is set up
#   bash launch/worker.sh idle            succeeds where no training runs
#   bash launch/worker.sh start FLAGS     starts td_jax.main unless it is running; for --workdir=gs://BUCKET/RUN,
#                                         BUCKET is mounted at ~/buckets/BUCKET
#   bash launch/worker.sh follow          prints the log until training ends
#   bash launch/worker.sh code            prints `td_jax: running`, its exit code or `none`
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .run

running() {
  [ -e .run/pid ] && ps -o args= -p "$(cat .run/pid)" | grep -q 'launch/worker.sh train'
}

# Whether there is a gcsfuse that knows the options below.
has_gcsfuse() {
  [[ $(gcsfuse --version 2>&1) =~ version\ ([0-9]+) && ${BASH_REMATCH[1]} -ge 3 ]]
}

# Google's packages of gcsfuse, as its documentation says.
install_gcsfuse() {
  local source=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  local release
  release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  curl -fsS "$source/doc/apt-key.gpg" | sudo tee "$key" >/dev/null &&
    echo "deb [signed-by=$key] $source gcsfuse-$release main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
    sudo apt-get update -qq &&
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -qq -y -o DPkg::Lock::Timeout=300 gcsfuse >/dev/null
}

# Mounts gs://$1 at $2 unless it is. What goes wrong is said here, and the status is 1.
mount_bucket() {
  local tries=3
  if mountpoint -q "$2" && ls "$2" >/dev/null 2>&1; then
    return
  fi
  until has_gcsfuse; do
    echo "Installing gcsfuse for gs://$1."
    if ! install_gcsfuse; then
      # A new VM may still be updating itself.
      tries=$((tries - 1))
      if [ "$tries" -eq 0 ]; then
        echo "worker.sh: gcsfuse, which mounts gs://$1, cannot be installed; what apt-get said is above." >&2
        return 1
      fi
      sleep "${TD_JAX_PAUSE:-20}"
    elif ! has_gcsfuse; then
      echo "worker.sh: this system's gcsfuse is too old to mount gs://$1; it takes version 3." >&2
      return 1
    fi
  done
  fusermount -uz "$2" 2>/dev/null || true # What is left of a gcsfuse that died.
  # td_jax renames folders, counts on fsync, and must see what another worker wrote.
  if ! mkdir -p "$2" || ! gcsfuse --implicit-dirs --rename-dir-limit=200000 --enable-streaming-writes=false \
    --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$2" >.run/gcsfuse 2>&1; then
    cat .run/gcsfuse >&2
    echo "worker.sh: gs://$1 cannot be mounted; look at its name, and whether the VM may write to it." >&2
    return 1
  fi
}

case ${1:-} in
  setup)
    # TPU runtimes come with an older Python than td_jax needs.
    if [ -z "${PYTHON:-}" ] && ! python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'; then
      python3 -m pip install --quiet --user uv
      python3 -m uv python install --quiet 3.12
      PYTHON=$(python3 -m uv python find 3.12)
    fi
    source launch/environment.sh
    make_environment requirements-tpu.txt
    echo "$2" >.run/commit
    ;;
  ready)
    running || [ "$(cat .run/commit 2>/dev/null)" = "$2" ]
    ;;
  idle)
    if running; then
      echo 'Training runs; its code is left as it is.' >&2
      exit 1
    fi
    ;;
  start)
    shift
    if running; then
      echo 'td_jax runs already.'
      exit
    fi
    rm -f .run/code
    nohup setsid bash launch/worker.sh train "$@" >>.run/log 2>&1 </dev/null &
    echo $! >.run/pid
    ;;
  train)
    shift
    trap : TERM # To see how training ends when the machine stops both.
    code=0 flags=()
    for flag in "$@"; do
      if [[ $flag = --workdir=gs://* ]]; then
        path=${flag#--workdir=gs://}
        mount_bucket "${path%%/*}" "$HOME/buckets/${path%%/*}" || code=1
        flag=--workdir=$HOME/buckets/$path
      fi
      flags+=("$flag")
    done
    if [ "$code" -eq 0 ]; then
      PYTHONUNBUFFERED=1 .venv/bin/python -m td_jax.main --distributed ${flags[@]+"${flags[@]}"} || code=$?
    fi
    echo "$code" >.run/code.new
    mv .run/code.new .run/code
    ;;
  follow)
    if [ -e .run/pid ]; then
      pid=$(cat .run/pid)
      while [ ! -e .run/code ] && kill -0 "$pid" 2>/dev/null; do sleep 0.2; done &
      tail -s 0.1 -n 1000 --pid=$! -f .run/log | sed -u "s/^/[${HOSTNAME##*-w-}] /"
    fi
    ;;
  code)
    if running; then
      echo 'td_jax: running'
    else
      echo "td_jax: $(cat .run/code 2>/dev/null || echo none)"
    fi
    ;;
  *)
    echo "worker.sh: '${1:-}' is none of setup, ready, idle, start, follow and code." >&2
    exit 2
    ;;
esac
