#!/usr/bin/env bash
# Installs omni_jax on every host of a Cloud TPU VM and trains there. The hosts find each other
# through jax.distributed.
#   TPU=name ZONE=us-east5-a \
#     launch/tpu_vm.sh configs/digits.py gs://bucket/run [--config.mesh.fsdp=16 …]
# SOURCE is the repository that the hosts clone (default: the origin of this one).
# DRY_RUN=1 prints the commands instead of running them.
set -euo pipefail
if [ $# -lt 2 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
  echo "usage: TPU=name ZONE=zone $0 CONFIG WORKDIR [overrides…]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
source=${SOURCE:-$(git -C "$(dirname "$0")/.." remote get-url origin 2>/dev/null || true)}
if [ -z "$source" ]; then
  echo 'this checkout has no origin that the hosts could clone; set SOURCE=https://…' >&2
  exit 2
fi
overrides=$(printf ' %q' --config.distributed=True --config.cpu_devices=1 "$@")
setup="test -d omni_jax || git clone $(printf %q "$source") omni_jax"
setup+=" && cd omni_jax && git pull --ff-only && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu,demo,eval]'"
# A process that ends with 75 has saved after a preemption notice. All hosts then start again
# together.
train="cd omni_jax && while true; do code=0; .venv/bin/python -m omni_jax.train"
train+=" --config=$(printf %q "$config") --workdir=$(printf %q "$workdir")$overrides || code=\$?;"
train+=" [ \$code = 75 ] || exit \$code; done"
for remote in "$setup" "$train"; do
  command=(gcloud compute tpus tpu-vm ssh "$TPU" "--zone=$ZONE" --worker=all "--command=$remote")
  if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
done
