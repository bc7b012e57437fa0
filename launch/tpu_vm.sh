#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice.
#
#   bash launch/tpu_vm.sh run NAME --zone=ZONE --type=v5litepod-16 --spot --workdir=gs://BUCKET/RUN \
#       --env=TFDS_DATA_DIR=gs://BUCKET/tfds -- --config=configs/FILE.py
#
# does all of it: queues for the VM if it is missing, installs this commit on every worker, trains, shows the
# log, and when the VM is preempted, queues for a new one and goes on. Called again, it goes on where it is. It
# ends with the exit code of the training, and the VM stays. Ctrl-C ends only this script.
#
#   bash launch/tpu_vm.sh create NAME --zone= --type= [--spot] [--version=]    queues, and waits for the VM
#   bash launch/tpu_vm.sh setup NAME --zone= [--repo=]      installs this commit on every worker
#   bash launch/tpu_vm.sh logs NAME --zone= [--worker=N]    follows the log
#   bash launch/tpu_vm.sh status NAME --zone=               says how the VM and the training are
#   bash launch/tpu_vm.sh delete NAME --zone=               deletes the VM, or its place in the queue
#
# --project      other than gcloud's own
# --version      the runtime, if not the usual one of the type
# --workdir      a gs:// folder, or the path of a disk that outlives the VM and that all workers see
# --env          NAME=VALUE for the training; may come many times
# --repo         clones this repository on the workers instead of copying; it must have this commit
# --dry_run      prints the commands and runs nothing
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/command_line.sh

zone='' project='' type='' version='' workdir='' repo='' worker=all spot='' dry_run=''
verb=${1-} verbs='create, setup, run, logs, status or delete' OPTIONS='--zone --project' SWITCHES='--dry_run'
case $verb in
  create) OPTIONS+=' --type --version' SWITCHES+=' --spot' ;;
  setup) OPTIONS+=' --repo' ;;
  run) OPTIONS+=' --type --version --workdir --repo --env' SWITCHES+=' --spot' ;;
  logs) OPTIONS+=' --worker' ;;
  status | delete) ;;
  '') fail "what to do is missing; say $verbs, then NAME." ;;
  *) fail "$verb is not something to do; say $verbs." ;;
esac
parse "$@"
check_name "tpu_vm.sh $verb" 2
[ -n "$zone" ] || fail '--zone is missing; write --zone=ZONE, such as --zone=us-central1-a.'
[[ $verb != create && $verb != run ]] || check_type
if [ "$verb" = run ]; then
  check_workdir VM ', or the full path of a disk that stays'
  check_training --workdir --distributed
elif [ ${#TRAINING[@]} -gt 0 ]; then
  fail "what follows -- is for run; leave it out of $verb."
fi
[[ $worker =~ ^(all|[0-9]+)$ ]] || fail "--worker=$worker is no worker; write its number, or all."
[ -n "$dry_run" ] || command -v gcloud >/dev/null || fail 'gcloud is not installed; see docs/cloud.md.'
if [[ $verb = setup || $verb = run ]]; then
  commit=$(git rev-parse HEAD 2>/dev/null) ||
    fail 'this folder is no git repository, so no commit can be copied; clone it with git.'
fi

pause=${TD_JAX_PAUSE:-30} # Seconds between one look and the next.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
errors=$scratch/errors
exec 3>&1

# Runs a command, or prints it, whatever becomes of its output here.
invoke() {
  if [ -n "$dry_run" ]; then
    quoted "$@" >&3
  else
    "$@" </dev/null
  fi
}

# gcloud compute tpus ARGUMENTS, in the zone and the project. A VM and its place in the queue share the name.
tpu() {
  invoke gcloud compute tpus "$@" --zone="$zone" ${project:+"--project=$project"} --quiet
}

# A connection whose other end is gone is noticed within a minute.
on_workers() {
  tpu tpu-vm ssh "$name" --worker="$worker" --ssh-flag=-oServerAliveInterval=20 --command="$1"
}

remove() { tpu queued-resources delete "$name" --force; }

# Ends with exit code $1 after saying what $2 says, and that the VM, or what $3 says, stays.
leave() {
  [ -z "$2" ] || say "$2"
  say "${3:-$name is still there and} costs money; bash launch/tpu_vm.sh delete $name --zone=$zone ends that"
  exit "$1"
}

# Prints what gcloud says of a queued-resources or a tpu-vm, nothing where it is not there. An answer that does
# not come is waited for a few times.
describe() {
  local tries=5
  until tpu "$1" describe "$name" --format="$2" 2>"$errors"; do
    ! grep -qiE 'not[ _]found' "$errors" || return 0
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { cat "$errors" >&2 && exit 1; }
    sleep "$pause"
  done
}

# STATE becomes `missing`, what the place in the queue is in or, once that is ACTIVE, what the VM is in.
find_state() {
  STATE=$(describe queued-resources 'value(state.state,state.failedData.error.message)') || exit 1
  read -r STATE REASON <<<"${STATE:-missing}"
  if [ "$STATE" = ACTIVE ]; then
    STATE=$(describe tpu-vm 'value(state)') || exit 1
    STATE=${STATE:-ACTIVE}
  fi
}

# Whether waiting may mend what standard input says.
passes() { grep -qiE 'capacity|stockout|unavailable|internal error'; }

enqueue() {
  local code=0
  say "queueing for $name ($type${spot:+, spot}); Google makes it when there is room"
  # The scope lets the VM write to buckets that its service account may write to.
  tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="${version:-$RUNTIME}" ${spot:+--spot} \
    --scopes=https://www.googleapis.com/auth/cloud-platform 2>"$errors" || code=$?
  cat "$errors" >&2
  if [ "$code" -ne 0 ]; then
    passes <"$errors" || exit "$code"
    sleep "$pause"
  fi
}

# Returns once the VM is there and in order.
create() {
  local before=''
  while find_state && [ "$STATE" != READY ]; do
    trap 'leave 130 "" "$name stays in the queue, and once it is made it"' INT
    case $STATE in
      missing)
        enqueue
        [ -z "$dry_run" ] || return 0
        ;;
      SUSPENDED | PREEMPTED | TERMINATED)
        say "$name is $STATE; deleting it to queue for a new one"
        remove || sleep "$pause"
        ;;
      FAILED)
        say "$name is FAILED, so it is deleted from the queue: ${REASON:-no reason is given}"
        remove || sleep "$pause"
        passes <<<"$REASON" || exit 1
        ;;
      STOPPED | HIDDEN)
        say "$name is $STATE; start it, or delete it with launch/tpu_vm.sh delete $name --zone=$zone"
        exit 1
        ;;
      *)
        [ "$STATE" = "$before" ] || say "$name is $STATE; waiting"
        sleep "$pause"
        ;;
    esac
    before=$STATE
  done
}

# Puts this commit on every worker and makes the environment there.
setup() {
  local unpack='! test -e td_jax/launch/worker.sh || bash td_jax/launch/worker.sh idle || exit 1; '
  say "installing ${commit:0:12} on $name"
  if [ -n "$repo" ]; then
    unpack+="(test -d td_jax/.git || git clone --quiet $(quoted "$repo") td_jax) && cd td_jax"
    unpack+=" && git fetch --quiet origin && git checkout --quiet --detach $commit"
  else
    [ -z "$(git status --porcelain --untracked-files=no)" ] || say 'changes that are not committed are left out'
    invoke git archive --format=tar.gz --output="$scratch/td_jax.tar.gz" "$commit" || return 1
    tpu tpu-vm scp "$scratch/td_jax.tar.gz" "$name:td_jax.tar.gz" --worker=all || return 1
    unpack+='mkdir -p td_jax && cd td_jax && find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name .run'
    unpack+=' -exec rm -rf {} + && tar -xzf ../td_jax.tar.gz'
  fi
  on_workers "$unpack && bash launch/worker.sh setup $commit"
}

# Sets up what is not, and leaves alone what runs.
prepare() {
  [ -n "$dry_run" ] || ! on_workers "bash td_jax/launch/worker.sh ready $commit" >/dev/null 2>&1 || return 0
  setup || ! survived || leave 1 'the installation failed; what it said is above'
}

logs() { on_workers 'bash td_jax/launch/worker.sh follow'; }

# CODE becomes how training ended on all workers together: the code of a failure if there is one, else 75 if
# it was told to stop anywhere, else 0. It is `running` or `none` where a worker says so, and `unknown` where one
# does not answer.
find_code() {
  local line lines
  CODE=unknown
  lines=$(on_workers 'bash td_jax/launch/worker.sh code') || return 0
  while read -r line; do
    case $CODE,${line#td_jax: } in
      *,"$line") ;;
      *,running | *,none) CODE=${line#td_jax: } && return ;;
      unknown,* | 0,* | 75,[!0]*) CODE=${line#td_jax: } ;;
    esac
  done <<<"$lines"
}

# Whether the VM is still there after something went wrong. Its state may lag a little behind.
survived() {
  [ -z "$spot" ] || sleep "$pause"
  find_state
  [ "$STATE" = READY ]
}

run() {
  local silent=0 next=create start
  start="cd td_jax && $(quoted env ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} \
    bash launch/worker.sh start --workdir="$workdir" "${TRAINING[@]}")"
  while true; do
    if [ $next = create ]; then
      create
      trap 'leave 130 "training goes on; the same command shows it again"' INT
      prepare
    fi
    CODE=none
    if [ $next = follow ] || on_workers "$start"; then
      logs || true
      find_code
    fi
    [ -z "$dry_run" ] || return 0
    next=create
    case $CODE in
      0) leave 0 '' ;;
      75) next=start && say 'training was told to stop and has saved; calling it again' ;;
      running) next=follow && say 'the connection was lost; training goes on' ;;
      none | unknown)
        silent=$((silent + 1))
        if survived; then
          [ $silent -lt 5 ] || leave 1 "the workers of $name do not answer, as said above; the same command tries again"
          [ "$CODE" = none ] && next=start || next=follow
        fi
        ;;
      *) ! survived || leave "$CODE" "training failed with exit code $CODE" ;;
    esac
    [[ $CODE = none || $CODE = unknown ]] || silent=0
    [ "$STATE" != READY ] || sleep "$pause"
  done
}

status() {
  find_state
  [ -n "$dry_run" ] || echo "$name: $STATE${REASON:+ ($REASON)}"
  [[ -z $dry_run && $STATE != READY ]] || on_workers 'bash td_jax/launch/worker.sh code'
}

delete() {
  find_state
  if [[ -z $dry_run && $STATE = missing ]]; then
    say "$name is not there (any more)"
  else
    remove
  fi
}

"$verb"
