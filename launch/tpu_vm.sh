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
#   bash launch/tpu_vm.sh setup NAME --zone=                installs this commit on every worker
#   bash launch/tpu_vm.sh logs NAME --zone= [--worker=N]    follows the log
#   bash launch/tpu_vm.sh status NAME --zone=               says how the VM and the training are
#   bash launch/tpu_vm.sh delete NAME --zone=               deletes the VM, or its place in the queue
#
# --project      other than gcloud's own
# --version      the runtime, if not the usual one of the type
# --workdir      a gs:// folder, or the path of a disk that outlives the VM and that all workers see
# --env          NAME=VALUE for the training; may come many times
# --dry_run      prints the commands and runs nothing
source "$(dirname "$0")/common.sh"

zone='' project='' type='' version='' workdir='' worker=all spot='' dry_run=''
verb=${1-} OPTIONS='--zone= --project= --dry_run'
case $verb in
  create) OPTIONS+=' --type= --version= --spot' ;;
  run) OPTIONS+=' --type= --version= --spot --workdir= --env=' ;;
  logs) OPTIONS+=' --worker=' ;;
  setup | status | delete) ;;
  *) fail "'$verb' is not something to do; say create, setup, run, logs, status or delete, then NAME." ;;
esac
parse 1 "${@:2}"
check_name
[ -n "$zone" ] || fail '--zone is missing; write --zone=ZONE, such as --zone=us-central1-a.'
[[ $verb != create && $verb != run ]] || check_type
[ "$verb" = run ] || [ ${#TRAINING[@]} -eq 0 ] || fail "what follows -- is for run; leave it out of $verb."
[ "$verb" != run ] || check_workdir VM ', or the full path of a disk that stays,'
[ "$verb" != run ] || check_training --workdir --distributed
[ -n "$dry_run" ] || command -v gcloud >/dev/null || fail 'gcloud is not installed; see docs/cloud.md.'
commit=$(git rev-parse HEAD 2>/dev/null) || [[ $verb != setup && $verb != run ]] ||
  fail 'this folder is no git repository, so no commit can be copied; clone it with git.'

pause=${TD_JAX_PAUSE:-30} # Seconds between one look and the next.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
exec 3>&1

# Runs a command, or prints it, whatever becomes of its output here.
invoke() { if [ -n "$dry_run" ]; then quoted "$@" >&3; else "$@" </dev/null; fi; }

# gcloud compute tpus ARGUMENTS, in the zone and the project. A VM and its place in the queue share the name.
tpu() { invoke gcloud compute tpus "$@" --zone="$zone" ${project:+"--project=$project"} --quiet; }

# Or its place in the queue.
delete() { tpu queued-resources delete "$name" --force; }

# A connection whose other end is gone is noticed within a minute.
on_workers() { tpu tpu-vm ssh "$name" --worker="$worker" --ssh-flag=-oServerAliveInterval=20 --command="$1"; }

worker_sh() { on_workers "bash td_jax/launch/worker.sh $*"; }

# Ends with exit code $1 after $2, which ends with what it is that costs money.
leave() { say "$2 costs money; bash launch/tpu_vm.sh delete $name --zone=$zone ends that" && exit "$1"; }

# Prints what gcloud says of a queued-resources or a tpu-vm, nothing where it is not there. An answer that does
# not come is waited for a few times.
describe() {
  local try
  for try in 1 2 3 4 5; do
    [ "$try" -eq 1 ] || sleep "$pause"
    ! tpu "$1" describe "$name" --format="$2" 2>"$scratch/said" || return 0
    ! grep -qiE 'not[ _]found' "$scratch/said" || return 0
  done
  cat "$scratch/said" >&2
  exit 1
}

# STATE becomes `missing`, what the place in the queue is in or, once that is ACTIVE, what the VM is in.
find_state() {
  STATE=$(describe queued-resources 'value(state.state,state.failedData.error.message)') || exit 1
  read -r STATE REASON <<<"${STATE:-missing}"
  [ "$STATE" != ACTIVE ] || STATE=$(describe tpu-vm 'value(state)') || exit 1
  STATE=${STATE:-ACTIVE}
}

# Whether waiting may mend what standard input says.
passes() { grep -qiE 'capacity|stockout|unavailable|internal error'; }

# All that a VM may do with its service account: what the clients of buckets ask for by name, where IAM still
# decides what the account may do, and the logs and metrics of the TPU runtime. The API of TPUs knows
# cloud-platform alone, and nothing on a VM calls it: JAX finds the other workers in the VM's metadata.
AUTH=https://www.googleapis.com/auth
SCOPES=$AUTH/devstorage.full_control,$AUTH/logging.write,$AUTH/monitoring.write

# Returns once the VM is there and in order.
create() {
  local code before=''
  while find_state && [ "$STATE" != READY ]; do
    trap 'leave 130 "$name stays in the queue, and once it is made it"' INT
    next=start # What ran may have been ended. If it was not, that changes nothing.
    case $STATE in
      missing)
        say "queueing for $name ($type${spot:+, spot}); Google makes it when there is room"
        code=0 silent=0
        tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
          --runtime-version="${version:-$RUNTIME}" ${spot:+--spot} \
          --scopes="$SCOPES" 2>"$scratch/said" || code=$?
        cat "$scratch/said" >&2
        [ -z "$dry_run" ] || return 0
        [ $code -eq 0 ] || { passes <"$scratch/said" && sleep "$pause"; } || exit $code
        ;;
      SUSPENDED | PREEMPTED | TERMINATED | FAILED)
        say "$name is $STATE${REASON:+ ($REASON)}; deleting it from the queue"
        delete || sleep "$pause"
        [ "$STATE" != FAILED ] || passes <<<"$REASON" || exit 1
        ;;
      STOPPED | HIDDEN) say "$name is $STATE; start it with gcloud, or delete it" && exit 1 ;;
      *)
        [ "$STATE" = "$before" ] || say "$name is $STATE; waiting"
        sleep "$pause"
        ;;
    esac
    before=$STATE
  done
}

# Puts this commit on every worker, unless training runs there, and makes the environment.
setup() {
  say "installing ${commit:0:12} on $name"
  [ -z "$(git status --porcelain --untracked-files=no)" ] || say 'changes that are not committed are left out'
  invoke git archive --format=tar.gz --output="$scratch/td_jax.tar.gz" "$commit" &&
    tpu tpu-vm scp "$scratch/td_jax.tar.gz" "$name:td_jax.tar.gz" --worker=all &&
    on_workers "(! test -e td_jax/launch || bash td_jax/launch/worker.sh idle) && mkdir -p td_jax && cd td_jax \
&& find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name .run -exec rm -rf {} + && tar -xzf ../td_jax.tar.gz \
&& bash launch/worker.sh setup $commit"
}

# Sets up what is not, and leaves alone what runs.
prepare() {
  local answer='not ready'
  [ -n "$dry_run" ] || answer=$(worker_sh "ready $commit 2>/dev/null || echo not ready") || return 1
  [[ $answer != *'not ready'* ]] || setup
}

logs() { worker_sh follow; }

# CODE becomes how training ended on all workers together: the code of a failure if there is one, else 75 if it
# was told to stop anywhere, else 0; `running` or `none` where a worker says so; `unknown` if one does not answer.
find_code() {
  local codes
  codes=$(worker_sh code | sed -n 's/^td_jax: //p') || codes=''
  for CODE in running none $(grep -vxE '0|75' <<<"$codes") 75 0 unknown; do
    ! grep -qx "$CODE" <<<"$codes" || break
  done
}

run() {
  local command silent=0 next=start
  command="cd td_jax && $(quoted env ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} \
    bash launch/worker.sh start --workdir="$workdir" "${TRAINING[@]}")"
  while true; do
    create
    trap 'leave 130 "training goes on; the same command shows it again. $name"' INT
    CODE=unknown
    if prepare && { [ $next = follow ] || on_workers "$command"; }; then
      next=follow
      logs || true
      find_code
    fi
    [ -z "$dry_run" ] || return 0
    silent=$((silent + 1))
    case $CODE in
      unknown) ;;
      none) next=start ;;
      running) silent=0 && say 'the connection was lost; training goes on' ;;
      75) silent=0 next=start && say 'training was told to stop or lost a process; calling it again' ;;
      0) leave 0 "$name is still there and" ;;
      *)
        # The VM's state may lag a little behind.
        [ -z "$spot" ] || sleep "$pause"
        find_state
        [ "$STATE" != READY ] || leave "$CODE" "training failed with exit code $CODE; $name is still there and"
        next=start
        ;;
    esac
    [ $silent -lt 6 ] || leave 1 "$name does not answer or cannot be set up, as said above; it still"
    sleep "$pause"
  done
}

status() {
  find_state
  [ -n "$dry_run" ] || echo "$name: $STATE${REASON:+ ($REASON)}"
  [[ -z $dry_run && $STATE != READY ]] || worker_sh code
}

"$verb"
