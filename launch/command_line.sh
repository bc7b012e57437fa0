# shellcheck shell=bash disable=SC2034,SC2154 # What is set here is read where it is sourced, and the other way.
# Sourced by the scripts beside it, from the repository's root: their command lines.

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

# The options of $OPTIONS (with a value) and $SWITCHES (without) become variables of their names; --env may
# come many times and collects in ENVIRONMENT. Words collect in WORDS, what follows -- is TRAINING.
WORDS=() ENVIRONMENT=() TRAINING=()
parse() {
  local name value
  for (( ; $#; )); do
    name=${1%%=*}
    case $1 in
      -h | --help) usage ;;
      --) TRAINING=("${@:2}") && return ;;
      -*) ;;
      *) WORDS+=("$1") && shift && continue ;;
    esac
    if [[ " $SWITCHES " == *" $name "* ]]; then
      [ "$1" = "$name" ] || fail "$name takes no value; write $name alone."
      value=1
    elif [[ " $OPTIONS " == *" $name "* ]]; then
      [[ $1 != "$name" || $# -eq 1 ]] || shift
      value=${1#"$name="}
      [[ -n $value && $value != -* ]] || fail "$name has no value; write $name=VALUE."
    else
      fail "$name is not an option here; known are $OPTIONS $SWITCHES, and flags of td_jax.main go after --."
    fi
    shift
    if [ "$name" != --env ]; then
      name=${name#-}
      printf -v "${name#-}" %s "$value"
    elif [[ $value =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; then
      ENVIRONMENT+=("$value")
    else
      fail "--env=$value is no variable; write --env=NAME=VALUE."
    fi
  done
}

# `name` becomes the last of $2 words of a command such as $1. Refuses one that the cloud would refuse.
check_name() {
  name=${WORDS[$2 - 1]-}
  [ -n "$name" ] || fail "NAME is missing; write $1 NAME."
  [ ${#WORDS[@]} -eq "$2" ] || fail "${WORDS[$2]} is one word too many; flags of td_jax.main go after --."
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#name} -le 40 ]] ||
    fail "NAME is '$name'; use up to 40 lowercase letters, digits and dashes, beginning with a letter."
}

# Refuses a --workdir that is lost with the $1 where it is written. $2 is what else would do.
check_workdir() {
  case $workdir in
    gs://[!/]*) ;;
    '') fail '--workdir is missing; write --workdir=gs://BUCKET/RUN before the --.' ;;
    gs://*) fail "--workdir=$workdir names no bucket; write --workdir=gs://BUCKET/RUN." ;;
    *) [[ $workdir = /?* && -n $2 ]] || fail "--workdir=$workdir would be lost with the $1; use gs://BUCKET/RUN$2." ;;
  esac
}

# Refuses flags of td_jax.main that cannot work on a cluster. The launcher itself adds $@.
check_training() {
  local flag own config=''
  for flag in ${TRAINING[@]+"${TRAINING[@]}"}; do
    for own in "$@"; do
      [[ $flag != "$own" && $flag != "$own="* ]] || fail "$own after -- is the launcher's to give; leave it out there."
    done
    [[ $flag != --config && $flag != --config=* ]] || config=1
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
  echo "$result"
}

# What a TPU type such as v5litepod-16 is: its TOPOLOGY, HOSTS and CHIPS_PER_HOST, what GKE calls it
# (ACCELERATOR), and the RUNTIME of its VMs. v4 and v5p count two cores a chip in their names.
check_type() {
  local cores=1 sizes=' 1:1x1 4:2x2 8:2x4 16:4x4 32:4x8 64:8x8 128:8x16 256:16x16 '
  [ -n "$type" ] || fail '--type is missing; write --type=TYPE, such as --type=v5litepod-16.'
  case $type in
    v5litepod-*) ACCELERATOR=tpu-v5-lite-podslice RUNTIME=v2-alpha-tpuv5-lite ;;
    v6e-*) ACCELERATOR=tpu-v6e-slice RUNTIME=v2-alpha-tpuv6e ;;
    v5p-*) ACCELERATOR=tpu-v5p-slice RUNTIME=v2-alpha-tpuv5 cores=2 ;;
    v4-*) ACCELERATOR=tpu-v4-podslice RUNTIME=tpu-ubuntu2204-base cores=2 ;;
    *) sizes='' ;;
  esac
  [ $cores -eq 1 ] || sizes=' 8:2x2x1 16:2x2x2 32:2x2x4 64:2x4x4 128:4x4x4 256:4x4x8 512:4x8x8 1024:8x8x8 '
  [[ $sizes = *" ${type##*-}:"* ]] || fail "--type=$type is no TPU type; known are" \
    "v5litepod-N and v6e-N (N is 1, 4, 8, 16, ... 256), v4-N and v5p-N (N is 8, 16, ... 1024)."
  TOPOLOGY=${sizes#*" ${type##*-}:"}
  TOPOLOGY=${TOPOLOGY%% *}
  case $TOPOLOGY in 1x1) CHIPS_PER_HOST=1 ;; 2x4) CHIPS_PER_HOST=8 ;; *) CHIPS_PER_HOST=4 ;; esac
  HOSTS=$((${type##*-} / cores / CHIPS_PER_HOST))
}
