#!/usr/bin/env bash
# Prints the manifest of a training on a TPU slice of a GKE cluster that has JobSet, or of several workers that
# share the runs of a table, a search or a comparison.
#
#   bash launch/gke.sh NAME --type=v5litepod-16 --image=IMAGE --workdir=gs://BUCKET/RUN [--spot] \
#       --env=TFDS_DATA_DIR=gs://BUCKET/tfds -- --config=configs/FILE.py | kubectl apply --filename=-
#   bash launch/gke.sh NAME --type=v5litepod-8 --image=IMAGE --workdir=gs://BUCKET/RUNS [--spot] \
#       --shards=10 --command=reproduce -- --tables=4 | kubectl apply --filename=-
#
# --shards            the number of workers, each on a machine of its own; a Job of Kubernetes, without JobSet
# --command           of the workers: reproduce, tune or compare
# --max_restarts      how often a failed training is started again, 3; stops and preemptions do not count, of
#                     which there may be three without a new checkpoint in between
# --service_account   the Kubernetes account of the pods, which must be allowed to use the bucket
# --env               NAME=VALUE for the training; may come many times
source "$(dirname "$0")/common.sh"

type='' image='' workdir='' max_restarts=3 service_account='' spot='' shards='' command=main
OPTIONS='--type= --image= --workdir= --shards= --command= --max_restarts= --service_account= --env= --spot'
parse 1 "$@"
check_name
check_type
[ -n "$image" ] || fail '--image is missing; build one with launch/Dockerfile and write --image=IMAGE.'
check_workdir pod ''
[[ $max_restarts =~ ^[0-9]{1,6}$ ]] || fail "--max_restarts=$max_restarts is no number; write --max_restarts=3."
check_training --workdir --distributed --shard
if [ -n "$shards" ]; then
  [[ $shards =~ ^[1-9][0-9]{0,3}$ ]] || fail "--shards=$shards is no number of workers; write --shards=10."
  [ "$HOSTS" -eq 1 ] || fail "--type=$type has $HOSTS machines, but each of --shards is on one; choose a smaller type."
fi
case ${shards:+shards}$command in
  main | shardsreproduce | shardstune | shardscompare) ;;
  *) fail "--command=$command with --shards=$shards; write --shards=N with reproduce, tune or compare, or neither." ;;
esac
for word in "$@"; do
  [[ $word != *[[:cntrl:]]* ]] || fail "${word%%[[:cntrl:]]*}... has a line break or the like; leave it out."
done

# A string in double quotes, as YAML and JSON read it; Kubernetes would put a variable for $(NAME).
string() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//\$(/\$\$(}"
}

args='"--distributed"'
[ -z "$shards" ] || args="\"--shard=auto/$shards\""
env='{name: PYTHONUNBUFFERED, value: "1"}' selector='' tolerations=''
for word in "--workdir=$workdir" "${TRAINING[@]}"; do args+=", $(string "$word")"; done
for word in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do
  env+=", {name: $(string "${word%%=*}"), value: $(string "${word#*=}")}"
done
if [ -n "$spot" ]; then
  selector=', cloud.google.com/gke-spot: "true"'
  tolerations='{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}'
fi

# The pods' specification, indented by $1.
pod() {
  sed "s/^/$1/" <<YAML
restartPolicy: Never
# To save in; a spot node that goes away gives less.
terminationGracePeriodSeconds: 120
${service_account:+serviceAccountName: $(string "$service_account")}
nodeSelector:
  {cloud.google.com/gke-tpu-accelerator: $ACCELERATOR,
   cloud.google.com/gke-tpu-topology: $TOPOLOGY$selector}
tolerations: [$tolerations]
containers:
  - name: train
    image: $(string "$image")
    command: [.venv/bin/python, -m, td_jax.$command]
    args: [$args]
    env: [$env]
    resources: {limits: {google.com/tpu: "$CHIPS_PER_HOST"}}
YAML
}

if [ -n "$shards" ]; then
  cat <<YAML
apiVersion: batch/v1
kind: Job
metadata:
  name: $(string "$name")
spec:
  completionMode: Indexed
  completions: $shards
  parallelism: $shards
  # A worker that failed is started again with its index, and the others go on.
  backoffLimitPerIndex: $max_restarts
  podFailurePolicy:
    rules:
      # Invalid input, which stays so.
      - {action: FailIndex, onExitCodes: {containerName: train, operator: In, values: [2]}}
      # The node was taken away. Not a failure.
      - {action: Ignore, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
  template:
    spec:
$(pod '      ')
YAML
  exit
fi

cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(string "$name")
  # All workers on one slice, and the slice for them alone.
  annotations: {alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}
spec:
  failurePolicy:
    # For any failure that the rules do not name.
    maxRestarts: $max_restarts
    rules:
      # What the pods' own policy below says ended the job: a stop that was asked for. Not a failure.
      - {name: stopped, action: RestartJobSetAndIgnoreMaxRestarts, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          completions: $HOSTS
          parallelism: $HOSTS
          # The workers of a slice live and die together: the first that ends badly ends the job.
          backoffLimit: 0
          podFailurePolicy:
            rules:
              # Told to stop, and it has saved; or another worker is gone. td_jax.main counts how often without
              # a new checkpoint, and then ends with another code.
              - {action: FailJob, onExitCodes: {containerName: train, operator: In, values: [75]}}
              # The node was taken away.
              - {action: FailJob, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
          template:
            spec:
$(pod '              ')
YAML
