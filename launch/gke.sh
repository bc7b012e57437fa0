#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster that has JobSet and the Cloud Storage FUSE driver: prints the manifest.
#
#   bash launch/gke.sh NAME --type=v5litepod-16 --image=IMAGE --workdir=gs://BUCKET/RUN [--spot] \
#       --env=TFDS_DATA_DIR=gs://BUCKET/tfds -- --config=configs/FILE.py
#
# The pods have BUCKET mounted at /bucket.
#
# --apply             hands it to kubectl instead
# --max_restarts      how often a failed training is started again, 3; stops and preemptions do not count
# --service_account   the Kubernetes account of the pods, which must be allowed to use the bucket
# --namespace         other than kubectl's own
# --env               NAME=VALUE for the training; may come many times
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/cloud.sh

type='' image='' workdir='' max_restarts=3 service_account='' namespace='' spot='' apply=''
OPTIONS='--type --image --workdir --max_restarts --service_account --namespace --env' SWITCHES='--spot --apply'
parse "$@"
name=${WORDS[0]-}
[ -n "$name" ] || fail 'NAME is missing; write gke.sh NAME.'
[ ${#WORDS[@]} -eq 1 ] || fail "${WORDS[1]} is one word too many; flags of td_jax.main go after --."
check_name "$name"
[ -n "$type" ] || fail '--type is missing; write --type=TYPE, such as --type=v5litepod-16.'
slice "$type"
[ -n "$image" ] || fail '--image is missing; build one with launch/Dockerfile and write --image=IMAGE.'
case $workdir in
  gs://[!/]*) ;;
  '') fail '--workdir is missing; write --workdir=gs://BUCKET/RUN before the --.' ;;
  gs://*) fail "--workdir=$workdir names no bucket; write --workdir=gs://BUCKET/RUN." ;;
  *) fail "--workdir=$workdir would be lost with the pod; use gs://BUCKET/RUN." ;;
esac
[[ $max_restarts =~ ^[0-9]{1,6}$ ]] || fail "--max_restarts=$max_restarts is no number; write --max_restarts=3."
check_training --workdir --distributed
for word in "$image" "$workdir" "$service_account" "$namespace" "${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}" "${TRAINING[@]}"; do
  [[ $word != *[[:cntrl:]]* ]] || fail "$(quoted "${word%%[[:cntrl:]]*}")... has a line break or another control character; leave it out."
done
[ -z "$apply" ] || command -v kubectl >/dev/null || fail '--apply needs kubectl; install it, or leave --apply out.'

# A string in double quotes, as YAML and JSON read it; Kubernetes would put a variable for $(NAME).
string() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//\$(/\$\$(}"
}

manifest() {
  local word path=${workdir#gs://} options
  local bucket=${path%%/*}
  # td_jax renames folders, counts on fsync, and must see what another pod wrote.
  options=implicit-dirs,rename-dir-limit=200000,write:enable-streaming-writes:false
  options+=,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(string "$name")
YAML
  [ -z "$namespace" ] || echo "  namespace: $(string "$namespace")"
  cat <<YAML
  annotations:
    # All workers on one slice, and the slice for them alone.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    # For any failure that the rules do not name.
    maxRestarts: $max_restarts
    rules:
      # What the pods' own policy below says ended the job: a stop that was asked for. Not a failure.
      - name: stopped
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons:
          - PodFailurePolicy
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
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values:
                    - 75
              # The node was taken away.
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
          template:
            metadata:
              annotations:
                # The driver mounts the bucket, and may take the disk of the node to write a checkpoint.
                gke-gcsfuse/volumes: "true"
                gke-gcsfuse/cpu-limit: "0"
                gke-gcsfuse/memory-limit: "0"
                gke-gcsfuse/ephemeral-storage-limit: "0"
            spec:
              restartPolicy: Never
              # To save in; a spot node that goes away gives less.
              terminationGracePeriodSeconds: 120
YAML
  [ -z "$service_account" ] || echo "              serviceAccountName: $(string "$service_account")"
  cat <<YAML
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
YAML
  if [ -n "$spot" ]; then
    cat <<YAML
                cloud.google.com/gke-spot: "true"
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
YAML
  fi
  cat <<YAML
              volumes:
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $(string "$bucket")
                      mountOptions: $options
              containers:
                - name: train
                  image: $(string "$image")
                  command:
                    - .venv/bin/python
                    - -m
                    - td_jax.main
                  args:
                    - --distributed
                    - $(string "--workdir=/bucket${path#"$bucket"}")
YAML
  for word in "${TRAINING[@]}"; do
    echo "                    - $(string "$word")"
  done
  cat <<YAML
                  env:
                    - name: PYTHONUNBUFFERED
                      value: "1"
YAML
  for word in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do
    echo "                    - name: $(string "${word%%=*}")"
    echo "                      value: $(string "${word#*=}")"
  done
  cat <<YAML
                  volumeMounts:
                    - name: bucket
                      mountPath: /bucket
                  resources:
                    requests:
                      google.com/tpu: "$CHIPS_PER_HOST"
                    limits:
                      google.com/tpu: "$CHIPS_PER_HOST"
YAML
}

text=$(manifest)
if [ -n "$apply" ]; then
  kubectl apply --filename=- <<<"$text"
else
  echo "$text"
fi
