#!/usr/bin/env bash
# Creates a Cloud TPU, trains on all of its hosts and deletes it. docs/tpu.md goes through it step by step.
#   export TPU=omni ZONE=us-west4-a
#   TYPE=v5litepod-16 SPOT=1 launch/tpu.sh create [flags of gcloud]   asks for a queued resource
#   launch/tpu.sh wait                                 until it is there
#   launch/tpu.sh install                              this checkout's commit, on every host
#   launch/tpu.sh train configs/digits.py gs://BUCKET/digits [--config.omni.steps=4000 …]
#   launch/tpu.sh logs [LINES]                         the last lines of every host
#   launch/tpu.sh stop                                 saves first
#   launch/tpu.sh ssh COMMAND                          any command, on every host
#   launch/tpu.sh delete                               the TPU; it costs money until then
# TPU      name of the queued resource             PROJECT  gcloud's default
# TYPE     v5litepod-16 by default                 RUNTIME  image of the hosts, by default that for TYPE
# SPOT=1   cheaper, and taken away at any time     SLICES   number of slices; set config.mesh.data to it
# EXTRAS   to install, tpu,demo,eval by default    SOURCE   https://… that the hosts clone instead
# DRY_RUN=1 prints the commands instead of running them.
#
# Looked up: `gcloud compute tpus queued-resources create|describe|ssh|scp|delete --help` (SDK 528.0.0),
# https://cloud.google.com/tpu/docs/queued-resources (states), https://cloud.google.com/tpu/docs/runtimes (images),
# https://cloud.google.com/tpu/docs/spot (a spot TPU that was taken away has to be created again).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

usage() {
  echo "usage: TPU=name ZONE=zone $0 create | wait | install | train CONFIG WORKDIR [overrides…] | logs [LINES] | stop | ssh COMMAND | delete" >&2
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

# queued VERB […] runs a command of gcloud for queued resources.
queued() {
  run gcloud compute tpus queued-resources "$@" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"}
}

# on_hosts COMMAND runs a command on every host of every slice.
on_hosts() {
  queued ssh "$TPU" --node=all --worker=all "--command=$1"
}

create() {
  local type=${TYPE:-v5litepod-16} slices=${SLICES:-1} runtime
  case $type in
    v5lite*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
  local flags=("--accelerator-type=$type" "--runtime-version=${RUNTIME:-$runtime}")
  if [ "$slices" = 1 ]; then
    flags+=("--node-id=$TPU")
  else
    flags+=("--node-count=$slices" "--node-prefix=$TPU")
  fi
  if [ "${SPOT:-0}" = 1 ]; then
    flags+=(--spot)
  fi
  queued create "$TPU" "${flags[@]}" "$@"
}

wait_for_it() {
  local state='' before
  while true; do
    before=$state
    state=$(queued describe "$TPU" '--format=value(state.state)')
    if [ "$state" != "$before" ]; then
      echo "$state"
    fi
    case $state in
      # A dry run has printed the command.
      ACTIVE | gcloud*) return ;;
      FAILED | SUSPEND* | DELETING) exit 1 ;;
    esac
    sleep "${SECONDS_BETWEEN:-30}"
  done
}

install() {
  local fetch folder extras
  extras=$(printf %q "${EXTRAS:-tpu,demo,eval}")
  if [ -n "${SOURCE:-}" ]; then
    fetch="if [ -d omni_jax/.git ]; then git -C omni_jax pull --ff-only; else git clone $(printf %q "$SOURCE") omni_jax; fi"
  elif ! git -C "$root" rev-parse --verify --quiet HEAD >/dev/null; then
    echo "$root is no git checkout; set SOURCE=https://… for the hosts to clone" >&2
    exit 2
  else
    if [ -n "$(git -C "$root" status --porcelain)" ]; then
      echo "the hosts get $(git -C "$root" rev-parse --short HEAD), without the changes that are not committed" >&2
    fi
    # An archive works without access to the repository from the hosts.
    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder of now
    trap "rm -rf '$folder'" EXIT
    run git -C "$root" archive --format=tar.gz "--output=$folder/omni_jax.tar.gz" HEAD
    queued scp "$folder/omni_jax.tar.gz" "$TPU:" --node=all --worker=all
    fetch='tar -xzOf omni_jax.tar.gz launch/host.sh >host.sh && bash host.sh unpack'
  fi
  on_hosts "$fetch && bash omni_jax/launch/host.sh install $extras"
}

# host VERB […] runs launch/host.sh on every host.
host() {
  on_hosts "bash omni_jax/launch/host.sh$(printf ' %q' "$@")"
}

verb=${1:-}
if [ -z "$verb" ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
  usage
fi
shift
case $verb in
  create) create "$@" ;;
  wait) wait_for_it ;;
  install) install ;;
  train)
    [ $# -ge 2 ] || usage
    host train "$@"
    ;;
  logs) host logs "$@" ;;
  stop) host stop ;;
  ssh)
    [ $# = 1 ] || usage
    on_hosts "$1"
    ;;
  delete) queued delete "$TPU" --force ;;
  *) usage ;;
esac
