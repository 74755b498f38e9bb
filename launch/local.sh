#!/usr/bin/env bash
# Trains on this machine and starts again after a preemption (exit code 75: saved, go on).
#   launch/local.sh configs/digits.py runs/digits [--config.omni.steps=4000 …]
# DRY_RUN=1 prints the command instead.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG WORKDIR [overrides…]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
command=("${PYTHON:-python3}" -m omni_jax.train "--config=$config" "--workdir=$workdir" "$@")
if [ "${DRY_RUN:-0}" = 1 ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
while true; do
  code=0
  "${command[@]}" || code=$?
  [ "$code" = 75 ] || exit "$code"
  echo 'preempted and saved; starting again' >&2
done
