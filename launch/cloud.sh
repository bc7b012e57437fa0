# shellcheck shell=bash disable=SC2034 # What is set here is read where it is sourced.
# Sourced by tpu_vm.sh, gke.sh and local.sh: their command lines, and what is known of TPU slices.

# Says in one line what is wrong with the command and how to mend it, before anything has run.
fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

say() {
  echo "$(basename "$0"): $*" >&2
}

# The options of $OPTIONS (with a value) and $SWITCHES (without) become variables of their names; --env may
# come many times and collects in ENVIRONMENT. Words collect in WORDS, what follows -- is TRAINING.
WORDS=() ENVIRONMENT=() TRAINING=()
parse() {
  local name value
  while [ $# -gt 0 ]; do
    case $1 in
      --)
        shift
        TRAINING=("$@")
        return
        ;;
      -*) name=${1%%=*} ;;
      *)
        WORDS+=("$1")
        shift
        continue
        ;;
    esac
    if [[ " $SWITCHES " == *" $name "* ]]; then
      [ "$1" = "$name" ] || fail "$name takes no value; write $name alone."
      value=1
    elif [[ " $OPTIONS " == *" $name "* ]]; then
      if [ "$1" != "$name" ]; then
        value=${1#*=}
      else
        value=${2-}
        [ $# -eq 1 ] || shift
      fi
      [[ -n $value && $value != --* ]] || fail "$name has no value; write $name=VALUE."
    else
      fail "$name is not an option here; known are $OPTIONS $SWITCHES, and flags of td_jax.main go after --."
    fi
    shift
    name=${name#-}
    name=${name#-}
    if [ "$name" = env ]; then
      [[ $value =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env=$value is no variable; write --env=NAME=VALUE."
      ENVIRONMENT+=("$value")
    else
      printf -v "$name" %s "$value"
    fi
  done
}

# Refuses a name that the cloud would refuse.
check_name() {
  [[ $1 =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#1} -le 40 ]] ||
    fail "NAME is '$1'; use up to 40 lowercase letters, digits and dashes, beginning with a letter."
}

# Refuses flags of td_jax.main that cannot work on a cluster. The launcher itself adds $@.
check_training() {
  local flag own config=''
  for flag in ${TRAINING[@]+"${TRAINING[@]}"}; do
    for own in "$@"; do
      [[ $flag != "$own" && $flag != "$own="* ]] || fail "$own after -- is the launcher's to give; leave it out there."
    done
    case $flag in --config=* | --config) config=1 ;; esac
  done
  [ -n "$config" ] || fail "--config is missing; end with -- --config=configs/FILE.py."
}

# The words of a command as a shell would read them again.
quoted() {
  local word result='' quote="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$quote}'"
    result+="${result:+ }$word"
  done
  printf '%s' "$result"
}

# What a TPU type such as v5litepod-16 is: CHIPS in all, TOPOLOGY, HOSTS and CHIPS_PER_HOST, what GKE calls it
# (ACCELERATOR), and the RUNTIME of its VMs. v4 and v5p count two cores a chip in their names.
slice() {
  local type=$1 family=${1%-*} number=${1##*-}
  local known='known are v5litepod-N and v6e-N (N is 1, 4, 8, 16, ... 256), v4-N and v5p-N (N is 8, 16, ... 1024)'
  [[ $type =~ ^[a-z0-9]+-[1-9][0-9]{0,3}$ ]] || fail "--type=$type is no TPU type; $known."
  case $family in
    v5litepod) ACCELERATOR=tpu-v5-lite-podslice RUNTIME=v2-alpha-tpuv5-lite CHIPS=$number ;;
    v6e) ACCELERATOR=tpu-v6e-slice RUNTIME=v2-alpha-tpuv6e CHIPS=$number ;;
    v5p) ACCELERATOR=tpu-v5p-slice RUNTIME=v2-alpha-tpuv5 CHIPS=$((number / 2)) ;;
    v4) ACCELERATOR=tpu-v4-podslice RUNTIME=tpu-ubuntu2204-base CHIPS=$((number / 2)) ;;
    *) fail "--type=$type is no TPU type; $known." ;;
  esac
  CHIPS_PER_HOST=4
  case $type in
    v5litepod-1 | v6e-1) TOPOLOGY=1x1 CHIPS_PER_HOST=1 ;;
    v5litepod-4 | v6e-4) TOPOLOGY=2x2 ;;
    v5litepod-8 | v6e-8) TOPOLOGY=2x4 CHIPS_PER_HOST=8 ;;
    v5litepod-16 | v6e-16) TOPOLOGY=4x4 ;;
    v5litepod-32 | v6e-32) TOPOLOGY=4x8 ;;
    v5litepod-64 | v6e-64) TOPOLOGY=8x8 ;;
    v5litepod-128 | v6e-128) TOPOLOGY=8x16 ;;
    v5litepod-256 | v6e-256) TOPOLOGY=16x16 ;;
    v5p-8 | v4-8) TOPOLOGY=2x2x1 ;;
    v5p-16 | v4-16) TOPOLOGY=2x2x2 ;;
    v5p-32 | v4-32) TOPOLOGY=2x2x4 ;;
    v5p-64 | v4-64) TOPOLOGY=2x4x4 ;;
    v5p-128 | v4-128) TOPOLOGY=4x4x4 ;;
    v5p-256 | v4-256) TOPOLOGY=4x4x8 ;;
    v5p-512 | v4-512) TOPOLOGY=4x8x8 ;;
    v5p-1024 | v4-1024) TOPOLOGY=8x8x8 ;;
    *) fail "--type=$type is no TPU type; $known." ;;
  esac
  HOSTS=$((CHIPS / CHIPS_PER_HOST))
}
