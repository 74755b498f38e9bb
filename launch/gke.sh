#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, which `kubectl config current-context` names and which has JobSet.
#   export IMAGE=us-docker.pkg.dev/PROJECT/REPOSITORY/omni_jax:1
#   launch/gke.sh image                                builds and pushes the image (Dockerfile)
#   launch/gke.sh train configs/omni_1b.py gs://BUCKET/omni_1b [--config.data.root=gs://BUCKET/data …]
#   launch/gke.sh logs [LINES]                         the last lines of every host
#   launch/gke.sh stop                                 saves first
#   CLUSTER=name launch/gke.sh xpk CONFIG WORKDIR […]  instead of train, on a cluster that xpk made
# NAME      of the run, omni by default              EXTRAS           in the image, tpu,gs by default
# SLICES    number of slices, 1 by default; set config.mesh.data to it
# TOPOLOGY, HOSTS, CHIPS, ACCELERATOR   of a slice: chips, hosts, chips of a host, kind of node;
#           4x4, 4, 4 and tpu-v5-lite-podslice by default (TYPE=v5litepod-16 for xpk)
# SERVICE_ACCOUNT                       Kubernetes account that may use the bucket, default by default
# DRY_RUN=1 prints the commands, or the manifest, instead of running anything.
#
# Looked up: the parser (src/xpk/parser/workload.py) and the manifest (src/xpk/commands/workload.py) of
# github.com/AI-Hypercomputer/xpk, June 2026; launch/gke/jobset.yaml says what it was written from.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export NAME=${NAME:-omni} IMAGE=${IMAGE:-} SLICES=${SLICES:-1} HOSTS=${HOSTS:-4} CHIPS=${CHIPS:-4}
export TOPOLOGY=${TOPOLOGY:-4x4} ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}
export SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
job=(-l "jobset.sigs.k8s.io/jobset-name=$NAME")

usage() {
  echo "usage: IMAGE=name $0 image | train CONFIG WORKDIR [overrides…] | xpk CONFIG WORKDIR [overrides…] | logs [LINES] | stop" >&2
  exit 2
}

run() {
  if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Prints the manifest of a run with these flags of omni_jax.train.
manifest() {
  "${PYTHON:-python3}" -c '
import json, os, pathlib, string, sys
file, *arguments = sys.argv[1:]
template = string.Template(pathlib.Path(file).read_text())
print(template.substitute(os.environ, ARGS=json.dumps(arguments)), end="")
' "$root/launch/gke/jobset.yaml" "$@"
}

train() {
  if [ "${DRY_RUN:-0}" = 1 ]; then
    echo '# kubectl apply -f -'
    manifest "$@"
  else
    manifest "$@" | kubectl apply -f -
  fi
}

# xpk kills the process that it started: `exec` makes that python. It starts a run again after the exit codes
# that are given and after 42 and 127 to 255.
xpk_train() {
  run xpk workload create "--cluster=${CLUSTER:?set CLUSTER to the name of the cluster}" "--workload=$NAME" \
    ${PROJECT:+"--project=$PROJECT"} ${ZONE:+"--zone=$ZONE"} "--tpu-type=${TYPE:-v5litepod-16}" "--num-slices=$SLICES" "--docker-image=$IMAGE" \
    --restart-on-exit-codes=75 --max-restarts=100 --termination-grace-period-seconds=600 \
    "--command=exec python -m omni_jax.train$(printf ' %q' "$@")"
}

verb=${1:-}
if [ -z "$verb" ] || [ -z "$IMAGE" ]; then
  usage
fi
shift
case $verb in
  image)
    run docker build --platform=linux/amd64 "--build-arg=EXTRAS=${EXTRAS:-tpu,gs}" "--tag=$IMAGE" "$root"
    run docker push "$IMAGE"
    ;;
  train | xpk)
    [ $# -ge 2 ] || usage
    flags=("--config=$1" "--workdir=$2" --config.distributed=True --config.cpu_devices=1)
    shift 2
    flags+=("$@")
    if [ "$verb" = train ]; then
      train "${flags[@]}"
    else
      xpk_train "${flags[@]}"
    fi
    ;;
  logs) run kubectl logs "${job[@]}" --container=omni --prefix "--tail=${1:-20}" --max-log-requests=64 ;;
  stop) run kubectl delete jobset "$NAME" ;;
  *) usage ;;
esac
