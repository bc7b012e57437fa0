# shellcheck shell=bash disable=SC2034,SC2154 # What is set here is read where it is sourced, and the other way.
# Sourced first by the scripts next to it: the repository's root, their command lines and .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The comment at the top of a script is its usage.
usage() {
  sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "launch/${0##*/}"
  exit
}
case ${1-} in -h | --help) usage ;; esac

say() { echo "${0##*/}: $*" >&2; }

# Says in one line what is wrong with the command and how to mend it, before anything has run.
fail() {
  say "$@"
  exit 2
}

# Reads a command line with up to $1 WORDS. The options of $OPTIONS, which end in = where they take a value,
# become variables of their names; --env may come many times and collects in ENVIRONMENT. What follows -- is
# TRAINING.
WORDS=() ENVIRONMENT=() TRAINING=()
parse() {
  local most=$1 name value
  while shift && [ $# -gt 0 ]; do
    name=${1%%=*} value=1
    case $1 in
      -h | --help) usage ;;
      --) TRAINING=("${@:2}") && return ;;
      -*) ;;
      *)
        [ ${#WORDS[@]} -lt "$most" ] || fail "$1 is one word too many; flags of td_jax.main go after --."
        WORDS+=("$1") && continue
        ;;
    esac
    case " $OPTIONS " in
      *" $name= "*)
        [[ $1 != "$name" || $# -eq 1 ]] || shift
        value=${1#"$name="}
        [[ -n $value && $value != -* ]] || fail "$name has no value; write $name=VALUE."
        ;;
      *" $1 "*) ;;
      *" $name "*) fail "$name takes no value; write $name alone." ;;
      *) fail "$name is not an option here; known are $OPTIONS, and flags of td_jax.main go after --." ;;
    esac
    printf -v "${name##*-}" %s "$value"
    [ "$name" = --env ] || continue
    [[ $value =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env=$value is no variable; write --env=NAME=VALUE."
    ENVIRONMENT+=("$value")
  done
}

# `name` becomes the only word; one that the cloud would refuse is refused.
check_name() {
  name=${WORDS[0]-}
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#name} -le 40 ]] ||
    fail "NAME is '$name'; use up to 40 lowercase letters, digits and dashes, beginning with a letter."
}

# Refuses a --workdir that is lost with the $1 where it is written. $2 is what else would do.
check_workdir() {
  [[ $workdir = gs://[!/]* || ($workdir = /?* && -n $2) ]] ||
    fail "--workdir=$workdir would be lost with the $1; write --workdir=gs://BUCKET/RUN$2 before the --."
}

# Refuses flags of td_jax that cannot work on a cluster. The launcher itself adds $@.
check_training() {
  local flag flags=' '
  for flag in ${TRAINING[@]+"${TRAINING[@]}"}; do flags+="${flag%%=*} "; done
  for flag in "$@"; do
    [[ $flags != *" $flag "* ]] || fail "$flag after -- is the launcher's to give; leave it out there."
  done
  [[ -n ${shards-} || $flags = *' --config '* ]] ||
    fail '--config is missing; end with -- --config=configs/FILE.py.'
}

# The words of a command as a shell would read them again.
quoted() {
  local word result='' quote="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$quote}'"
    result+="${result:+ }$word"
  done
  echo "$result"
}

# What a TPU type such as v5litepod-16 is: its TOPOLOGY, HOSTS and CHIPS_PER_HOST, what GKE calls it
# (ACCELERATOR), and the RUNTIME of its VMs. v4 and v5p count two cores a chip in their names.
check_type() {
  local cores=1 sizes=' 1:1x1 4:2x2 8:2x4 16:4x4 32:4x8 64:8x8 128:8x16 256:16x16 '
  case $type in
    v5litepod-*) ACCELERATOR=tpu-v5-lite-podslice RUNTIME=v2-alpha-tpuv5-lite ;;
    v6e-*) ACCELERATOR=tpu-v6e-slice RUNTIME=v2-alpha-tpuv6e ;;
    v5p-*) ACCELERATOR=tpu-v5p-slice RUNTIME=v2-alpha-tpuv5 cores=2 ;;
    v4-*) ACCELERATOR=tpu-v4-podslice RUNTIME=tpu-ubuntu2204-base cores=2 ;;
    *) sizes='' ;;
  esac
  [ $cores -eq 1 ] || sizes=' 8:2x2x1 16:2x2x2 32:2x2x4 64:2x4x4 128:4x4x4 256:4x4x8 512:4x8x8 1024:8x8x8 '
  [[ $sizes = *" ${type##*-}:"* ]] || fail "--type=$type is no TPU type; write --type=v5litepod-N or v6e-N" \
    "(N is 1, 4, 8, 16, ... 256), v4-N or v5p-N (N is 8, 16, ... 1024)."
  TOPOLOGY=${sizes#*" ${type##*-}:"} TOPOLOGY=${TOPOLOGY%% *}
  case $TOPOLOGY in 1x1) CHIPS_PER_HOST=1 ;; 2x4) CHIPS_PER_HOST=8 ;; *) CHIPS_PER_HOST=4 ;; esac
  HOSTS=$((${type##*-} / cores / CHIPS_PER_HOST))
}

# Makes .venv from the requirements file $1 where it is missing or out of date.
make_environment() {
  local python=${PYTHON:-python3} stamp
  stamp=".venv/installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$1"
  [ ! -e "$stamp" ] || return 0
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "td_jax needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON."
  echo "Installing $1 into .venv (once, a few minutes) ..."
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
  touch "$stamp"
}
