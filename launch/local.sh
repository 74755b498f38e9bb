#!/usr/bin/env bash
# Trains on this machine and starts again after a preemption (exit code 75: the run has saved).
#   launch/local.sh configs/digits.py runs/digits [--config.omni.steps=4000 …]
#   PROCESSES=2 launch/local.sh configs/tiny.py runs/tiny
# PROCESSES is the number of processes of one device each, which act as the hosts of a pod.
# SIGTERM and Ctrl-C stop the run: it saves and is not started again.
# DRY_RUN=1 prints the command instead of running it.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG WORKDIR [overrides…]" >&2
  exit 2
fi
config=$1 workdir=$2 processes=${PROCESSES:-1} stopped=0
shift 2
command=("${PYTHON:-python3}" -m omni_jax.train "--config=$config" "--workdir=$workdir")
if [ "$processes" != 1 ]; then
  command+=(--config.distributed=True --config.cpu_devices=1)
  export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-localhost:29500} JAX_NUM_PROCESSES=$processes
fi
command+=("$@")
if [ "${DRY_RUN:-0}" = 1 ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi

# Runs all processes to their end. Returns the exit code of the first that failed, or 75 if
# the run has saved.
together() {
  local pids=() pid k code result=0
  for ((k = 0; k < processes; k++)); do
    if [ "$processes" != 1 ]; then
      export JAX_PROCESS_ID=$k
    fi
    "${command[@]}" &
    pids+=($!)
  done
  trap 'stopped=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
  for pid in "${pids[@]}"; do
    # A signal to this script ends `wait` early, with a code that is not the process's.
    while kill -0 "$pid" 2>/dev/null; do
      wait "$pid" || true
    done
    code=0
    wait "$pid" || code=$?
    if [ "$code" != 0 ] && { [ "$result" = 0 ] || [ "$result" = 75 ]; }; then
      result=$code
    fi
  done
  return "$result"
}

while true; do
  code=0
  together || code=$?
  if [ "$code" != 75 ] || [ "$stopped" = 1 ]; then
    echo "ended with exit code $code" >&2
    exit "$code"
  fi
  echo 'preempted and saved; starting again' >&2
done
