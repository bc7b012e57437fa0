#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice.
#
#   bash launch/tpu_vm.sh run NAME --zone=ZONE --type=v5litepod-16 --spot --workdir=gs://BUCKET/RUN \
#       --env=TFDS_DATA_DIR=gs://BUCKET/tfds -- --config=configs/FILE.py
#
# does all of it: creates the VM if it is missing, installs this commit on every worker, trains, shows the
# log, and when the VM is preempted, makes a new one and goes on. Called again, it goes on where it is. It ends
# with the exit code of the training, and the VM stays. Ctrl-C ends only this script.
#
#   bash launch/tpu_vm.sh create NAME --zone= --type= [--spot] [--version=]    makes the VM
#   bash launch/tpu_vm.sh setup NAME --zone= [--repo=]      installs this commit on every worker
#   bash launch/tpu_vm.sh logs NAME --zone= [--worker=N]    follows the log
#   bash launch/tpu_vm.sh status NAME --zone=               says how the VM and the training are
#   bash launch/tpu_vm.sh delete NAME --zone=               deletes the VM
#
# --project      other than gcloud's own
# --version      the runtime, if not the usual one of the type
# --workdir      a gs:// folder, whose bucket is mounted on all workers, or the path of a disk that outlives the
#                VM and that all workers see
# --env          NAME=VALUE for the training; may come many times
# --repo         clones this repository on the workers instead of copying; it must have this commit
# --dry_run      prints the commands and runs nothing
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/cloud.sh

zone='' project='' type='' version='' workdir='' repo='' worker='all' spot='' dry_run=''
OPTIONS='--zone --project --type --version --workdir --repo --env --worker' SWITCHES='--spot --dry_run'
pause=${TD_JAX_PAUSE:-30} # Seconds between one look and the next.

# --- What is asked for -----------------------------------------------------------------------------

parse "$@"
verbs='create, setup, run, logs, status or delete'
verb=${WORDS[0]-} name=${WORDS[1]-}
case $verb in
  create | setup | run | logs | status | delete) ;;
  '') fail "what to do is missing; say $verbs, then NAME." ;;
  *) fail "$verb is not something to do; say $verbs." ;;
esac
[ -n "$name" ] || fail "NAME is missing; write tpu_vm.sh $verb NAME."
[ ${#WORDS[@]} -eq 2 ] || fail "${WORDS[2]} is one word too many; flags of td_jax.main go after --."
check_name "$name"
[ -n "$zone" ] || fail '--zone is missing; write --zone=ZONE, such as --zone=us-central1-a.'
case $verb in
  create | run)
    [ -n "$type" ] || fail '--type is missing; write --type=TYPE, such as --type=v5litepod-16.'
    slice "$type"
    version=${version:-$RUNTIME}
    ;;
esac
if [ "$verb" = run ]; then
  case $workdir in
    gs://[!/]* | /?*) ;;
    '') fail '--workdir is missing; write --workdir=gs://BUCKET/RUN before the --.' ;;
    gs://*) fail "--workdir=$workdir names no bucket; write --workdir=gs://BUCKET/RUN." ;;
    *) fail "--workdir=$workdir would be lost with the VM; use gs://BUCKET/RUN, or the full path of a disk that stays." ;;
  esac
  check_training --workdir --distributed
elif [ ${#TRAINING[@]} -gt 0 ]; then
  fail "what follows -- is for run; leave it out of $verb."
fi
[[ $worker =~ ^(all|[0-9]+)$ ]] || fail "--worker=$worker is no worker; write its number, or all."
[[ $worker = all || $verb = logs ]] || fail "--worker is for logs; $verb is done on all workers, so leave it out."
[ -n "$dry_run" ] || command -v gcloud >/dev/null || fail 'gcloud is not installed; see docs/cloud.md.'

# --- Talking to the cloud --------------------------------------------------------------------------

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
errors=$scratch/errors
commit=''
if [[ $verb = setup || $verb = run ]]; then
  commit=$(git rev-parse HEAD 2>/dev/null) || fail 'this folder is no git repository, so no commit can be copied; clone it with git.'
fi

# Runs a command, or prints it.
invoke() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
    echo
  else
    "$@" </dev/null
  fi
}

# gcloud compute tpus tpu-vm VERB ARGUMENTS, in the zone and the project.
tpu() {
  invoke gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+"--project=$project"} --quiet
}

on_workers() {
  tpu ssh "$name" --worker="$worker" --command="$1"
}

# STATE becomes what the VM is in, or `missing`. An answer that does not come is waited for a few times.
find_state() {
  local tries=5
  STATE=missing
  if [ -n "$dry_run" ]; then
    tpu describe "$name" --format='value(state)'
    return
  fi
  until STATE=$(tpu describe "$name" --format='value(state)' 2>"$errors"); do
    if grep -qiE 'not[ _]found' "$errors"; then
      STATE=missing
      return
    fi
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ]; then
      cat "$errors" >&2
      exit 1
    fi
    sleep "$pause"
  done
}

create() {
  local code=0
  say "creating $name ($type${spot:+, spot})"
  # The scope lets the VM write to buckets that its service account may write to.
  tpu create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot} \
    --scopes=https://www.googleapis.com/auth/cloud-platform 2>"$errors" || code=$?
  cat "$errors" >&2
  if [ "$code" -ne 0 ]; then
    # Anything else, such as a quota, is not mended by waiting.
    grep -qiE 'capacity|stockout|unavailable|internal error' "$errors" || exit "$code"
    say "there is no $type in $zone now; trying again until there is one (Ctrl-C ends it)"
    sleep "$pause"
  fi
}

# Returns once the VM is there and in order.
ensure() {
  while true; do
    find_state
    case $STATE in
      READY) return ;;
      missing)
        create
        [ -z "$dry_run" ] || return 0
        ;;
      PREEMPTED | TERMINATED)
        say "$name is $STATE; deleting it to make a new one"
        tpu delete "$name" || sleep "$pause"
        ;;
      STOPPED | HIDDEN)
        say "$name is $STATE; start it, or delete it with launch/tpu_vm.sh delete $name --zone=$zone"
        exit 1
        ;;
      *)
        say "$name is $STATE; waiting"
        sleep "$pause"
        ;;
    esac
  done
}

# --- The parts of a run ----------------------------------------------------------------------------

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
    tpu scp "$scratch/td_jax.tar.gz" "$name:td_jax.tar.gz" --worker=all || return 1
    unpack+='mkdir -p td_jax && cd td_jax && find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name .run'
    unpack+=' -exec rm -rf {} + && tar -xzf ../td_jax.tar.gz'
  fi
  on_workers "$unpack && bash launch/worker.sh setup $commit"
}

# Sets up what is not, and leaves alone what runs.
prepare() {
  if [ -n "$dry_run" ] || ! on_workers "bash td_jax/launch/worker.sh ready $commit" >/dev/null 2>&1; then
    if ! setup && survived; then
      say 'the installation failed; what it said is above'
      stay
      exit 1
    fi
  fi
}

start() {
  on_workers "cd td_jax && $(quoted env ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} bash launch/worker.sh start \
    --workdir="$workdir" "${TRAINING[@]}")"
}

follow() {
  on_workers 'bash td_jax/launch/worker.sh follow'
}

# CODE becomes how training ended on all workers together: the code of a failure if there is one, else 75 if
# it was told to stop anywhere, else 0; `running`; or `unknown` where a worker does not answer.
find_code() {
  local line lines
  CODE=unknown
  if lines=$(on_workers 'bash td_jax/launch/worker.sh code' 2>"$errors"); then
    CODE=0
    while read -r line; do
      case $line in
        'td_jax: running') CODE=running && return ;;
        'td_jax: none') CODE=unknown && return ;;
        'td_jax: 0') ;;
        'td_jax: 75') [ "$CODE" != 0 ] || CODE=75 ;;
        'td_jax: '*) case $CODE in 0 | 75) CODE=${line#td_jax: } ;; esac ;;
      esac
    done <<<"$lines"
    [[ $lines == *'td_jax: '* ]] || CODE=unknown
  fi
}

# Whether the VM is still there after something went wrong. Its state may lag a little behind.
survived() {
  [ -z "$spot" ] || sleep "$pause"
  find_state
  [ "$STATE" = READY ]
}

stay() {
  say "$name is still there and costs money; bash launch/tpu_vm.sh delete $name --zone=$zone ends that"
}

run() {
  local silent=0 sure=''
  trap 'say "training goes on; the same command shows it again"; stay; exit 130' INT
  while true; do
    if [ -z "$sure" ]; then
      ensure
      prepare
    fi
    sure=''
    start || true
    follow || true
    if [ -n "$dry_run" ]; then
      on_workers 'bash td_jax/launch/worker.sh code'
      return
    fi
    find_code
    [ "$CODE" = unknown ] || silent=0
    case $CODE in
      0)
        stay
        return
        ;;
      75)
        say 'training was told to stop and has saved; calling it again'
        sure=1
        sleep "$pause"
        ;;
      running)
        say 'the connection was lost; training goes on'
        sure=1
        sleep "$pause"
        ;;
      unknown)
        silent=$((silent + 1))
        if survived && [ "$silent" -ge 5 ]; then
          cat "$errors" >&2
          say "$name is $STATE, but its workers do not answer; the same command tries again"
          stay
          exit 1
        fi
        [ "$STATE" != READY ] || sleep "$pause"
        ;;
      *)
        if survived; then
          say "training failed with exit code $CODE"
          stay
          exit "$CODE"
        fi
        ;;
    esac
  done
}

status() {
  find_state
  [ -n "$dry_run" ] || echo "$name: $STATE"
  if [[ -n $dry_run || $STATE = READY ]]; then
    on_workers 'bash td_jax/launch/worker.sh code'
  fi
}

delete() {
  find_state
  if [[ -z $dry_run && $STATE = missing ]]; then
    say "$name is not there (any more)"
    return
  fi
  tpu delete "$name"
}

case $verb in
  create) ensure ;;
  setup) setup ;;
  run) run ;;
  logs) follow ;;
  status) status ;;
  delete) delete ;;
esac
