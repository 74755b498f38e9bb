#!/usr/bin/env bash
# What launch/tpu.sh runs on every host of a TPU. The code is in ~/omni_jax, the output of the run in
# ~/omni_jax.log.
#   host.sh unpack            puts the code of ~/omni_jax.tar.gz there, in place of what was there
#   host.sh install EXTRAS    installs the code and a Python for it
#   host.sh train CONFIG WORKDIR [overrides…]
#   host.sh logs [LINES]
#   host.sh stop
set -euo pipefail
code=$HOME/omni_jax log=$HOME/omni_jax.log pid_file=$HOME/omni_jax.pid

# Puts the host's name before every line of its input: the output of all hosts is mixed.
named() {
  sed "s/^/$(hostname): /"
}

# Returns whether a run is going on. After a restart of the host another process may have the number.
is_running() {
  [ -e "$pid_file" ] && grep -qa launch/local.sh "/proc/$(cat "$pid_file")/cmdline" 2>/dev/null
}

refuse_if_running() {
  if is_running; then
    echo "a run is going on (process $(cat "$pid_file")); stop it first" | named >&2
    exit 1
  fi
}

# Whatever the archive has at its top is replaced as a whole; runs/, data/ and .venv/ stay.
unpack() {
  refuse_if_running
  mkdir -p "$code"
  cd "$code"
  tar -tzf "$HOME/omni_jax.tar.gz" | cut -d/ -f1 | sort -u | xargs -d '\n' rm -rf --
  tar -xzf "$HOME/omni_jax.tar.gz"
}

# The images have Python 3.10 (Ubuntu 22.04); omni_jax needs 3.11. uv is one static binary, and downloads a
# Python that is ready to run; pyenv would compile one on every host.
# https://docs.astral.sh/uv/getting-started/installation/
install() {
  refuse_if_running
  export PATH=$HOME/.local/bin:$PATH
  if ! command -v uv >/dev/null; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
  fi
  uv venv --quiet --allow-existing --python 3.12 "$code/.venv"
  uv pip install --quiet --python "$code/.venv/bin/python" --editable "${code}[$1]"
  echo installed | named
}

# Starts launch/local.sh, which starts again after exit code 75, in a session of its own: it outlives the
# connection. jax finds the other hosts by itself.
train() {
  local config=$1 workdir=$2
  shift 2
  refuse_if_running
  cd "$code"
  printf '== %s: %s %s %s\n' "$(date -u +%FT%TZ)" "$config" "$workdir" "$*" >>"$log"
  export PYTHON=$code/.venv/bin/python PYTHONUNBUFFERED=1
  # shellcheck disable=SC2016  # for the inner bash, whose number launch/local.sh keeps
  setsid bash -c 'echo $$ >"$0"; exec "$@"' "$pid_file" \
    launch/local.sh "$config" "$workdir" --config.distributed=True --config.cpu_devices=1 "$@" \
    >>"$log" 2>&1 </dev/null &
  echo "started; the output goes to $log" | named
}

logs() {
  {
    if is_running; then
      echo 'a run is going on'
    else
      echo 'no run is going on'
    fi
    tail -n "${1:-20}" "$log" 2>/dev/null || echo 'no output yet'
  } | named
}

# The run saves at the end of its step (minutes for a large one) and ends with code 75.
stop() {
  if is_running; then
    local pid
    pid=$(cat "$pid_file")
    kill -TERM "$pid"
    while kill -0 "$pid" 2>/dev/null; do
      sleep 1
    done
  fi
  logs 1
}

case ${1:-} in
  unpack | install | train | logs | stop) "$@" ;;
  *)
    echo "usage: $0 unpack | install EXTRAS | train CONFIG WORKDIR [overrides…] | logs [LINES] | stop" >&2
    exit 2
    ;;
esac
