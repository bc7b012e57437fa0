#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster that has JobSet: prints the manifest.
#
#   bash launch/gke.sh NAME --type=v5litepod-16 --image=IMAGE --workdir=gs://BUCKET/RUN [--spot] \
#       --env=TFDS_DATA_DIR=gs://BUCKET/tfds -- --config=configs/FILE.py
#
# --apply             hands it to kubectl instead
# --max_restarts      how often a failed training is started again, 3; stops and preemptions do not count
# --service_account   the Kubernetes account of the pods, which must be allowed to use the bucket
# --namespace         other than kubectl's own
# --env               NAME=VALUE for the training; may come many times
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/command_line.sh

type='' image='' workdir='' max_restarts=3 service_account='' namespace='' spot='' apply=''
OPTIONS='--type --image --workdir --max_restarts --service_account --namespace --env' SWITCHES='--spot --apply'
parse "$@"
check_name gke.sh 1
check_type
[ -n "$image" ] || fail '--image is missing; build one with launch/Dockerfile and write --image=IMAGE.'
check_workdir pod ''
[[ $max_restarts =~ ^[0-9]{1,6}$ ]] || fail "--max_restarts=$max_restarts is no number; write --max_restarts=3."
check_training --workdir --distributed
for word in "$image" "$workdir" "$service_account" "$namespace" ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} \
  "${TRAINING[@]}"; do
  [[ $word != *[[:cntrl:]]* ]] ||
    fail "${word%%[[:cntrl:]]*}... has a line break or another control character; leave it out."
done
[ -z "$apply" ] || command -v kubectl >/dev/null || fail '--apply needs kubectl; install it, or leave --apply out.'

# A string in double quotes, as YAML and JSON read it; Kubernetes would put a variable for $(NAME).
string() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//\$(/\$\$(}"
}

args='"--distributed"' env='{name: PYTHONUNBUFFERED, value: "1"}' selector='' tolerations=''
for word in "--workdir=$workdir" "${TRAINING[@]}"; do args+=", $(string "$word")"; done
for word in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do
  env+=", {name: $(string "${word%%=*}"), value: $(string "${word#*=}")}"
done
[ -z "$namespace" ] || namespace="namespace: $(string "$namespace")"
[ -z "$service_account" ] || service_account="serviceAccountName: $(string "$service_account")"
if [ -n "$spot" ]; then
  selector=', cloud.google.com/gke-spot: "true"'
  tolerations='{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}'
fi

manifest=$(
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(string "$name")
  $namespace
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
              # Told to stop, and it has saved.
              - {action: FailJob, onExitCodes: {containerName: train, operator: In, values: [75]}}
              # The node was taken away.
              - {action: FailJob, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
          template:
            spec:
              restartPolicy: Never
              # To save in; a spot node that goes away gives less.
              terminationGracePeriodSeconds: 120
              $service_account
              nodeSelector:
                {cloud.google.com/gke-tpu-accelerator: $ACCELERATOR,
                 cloud.google.com/gke-tpu-topology: $TOPOLOGY$selector}
              tolerations: [$tolerations]
              containers:
                - name: train
                  image: $(string "$image")
                  command: [.venv/bin/python, -m, td_jax.main]
                  args: [$args]
                  env: [$env]
                  resources:
                    requests: {google.com/tpu: "$CHIPS_PER_HOST"}
                    limits: {google.com/tpu: "$CHIPS_PER_HOST"}
YAML
)
if [ -n "$apply" ]; then
  kubectl apply --filename=- <<<"$manifest"
else
  echo "$manifest"
fi
