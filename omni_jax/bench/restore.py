"""Measures the memory of the host while a run is restored onto a mesh.

  python -m omni_jax.bench.restore [--gb=2 --devices=8 --mesh.tensor=8 --folder=DIR]

It writes a run with random parameters, restores it in a process of its own on simulated
CPU devices, and prints the peak of the resident memory during the restore, what remains
after it, and the largest array. Exit code 1: the peak is higher than what remains by more
than the largest array and a tenth of it.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from absl import logging

from omni_jax.command_line import mesh_flags
from omni_jax.config import derived
from omni_jax.errors import run_command, UserError

WIDTH = 1024
HIDDEN = 1024
EXPERTS = 8
TOLERANCE = 1.1
CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'base.py'


def _config(gigabytes: float) -> Any:
  """Returns the config of a run whose fp32 parameters take about this many GB."""
  config = derived(str(CONFIG), 'text')
  layer_bytes = 4 * (EXPERTS * 3 * WIDTH * HIDDEN + 4 * WIDTH**2)
  layers = max(1, round(gigabytes * 1e9 / layer_bytes))
  config.model.decoder.update(
    dict(
      width=WIDTH,
      layers=layers,
      heads=8,
      kv_heads=8,
      head_dim=WIDTH // 8,
      experts=EXPERTS,
      expert_hidden=HIDDEN,
      shared_hidden=0,
    )
  )
  return config


def _write(folder: str, gigabytes: float) -> None:
  """Writes a run with random parameters."""
  import jax
  import jax.numpy as jnp
  import optax

  from omni_jax.checkpoint.checkpoints import Checkpoints
  from omni_jax.checkpoint.saved_config import save_config
  from omni_jax.model import ModelConfig
  from omni_jax.train.state import init_model_state

  config = _config(gigabytes)
  save_config(config, folder)
  model_config = ModelConfig.from_config(config.model)
  tx = optax.identity()
  init = jax.jit(lambda: init_model_state(model_config, tx, {}, seed=0))
  state = init()._replace(step=jnp.int32(1))
  with Checkpoints(folder, 'omni') as checkpoints:
    checkpoints.save(state, b'{}')


def _resident(field: str) -> int:
  """Returns a field of this process's memory, such as VmRSS, in bytes."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(f'{field}:'):
      return 1024 * int(line.split()[1])
  raise UserError(f'/proc/self/status has no {field}: this needs Linux')


def measure(folder: str, devices: int, sizes: dict[str, int] | None) -> dict[str, int]:
  """Restores a run in this process, and returns bytes of memory by what they are."""
  import jax

  jax.config.update('jax_num_cpu_devices', devices)
  from omni_jax.checkpoint.restore import restore_run

  jax.block_until_ready(jax.numpy.zeros(devices))
  before = _resident('VmRSS')
  run = restore_run(folder, None, mesh=sizes)
  leaves = jax.block_until_ready(jax.tree.leaves((run.params, run.buffers)))
  return {
    'state': sum(x.nbytes for x in leaves),
    'largest array': max(x.nbytes for x in leaves),
    'RSS before': before,
    'RSS after': _resident('VmRSS'),
    'peak RSS': _resident('VmHWM'),
  }


def main() -> None:
  """Runs the command."""
  mesh, others = mesh_flags(sys.argv[1:])
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.bench.restore', description=__doc__, allow_abbrev=False
  )
  parser.add_argument('--gb', type=float, default=2.0, help='GB of parameters')
  parser.add_argument('--devices', type=int, default=8, help='simulated CPU devices')
  parser.add_argument('--folder', help='folder to write to; default: a temporary one')
  parser.add_argument('--only-measure', action='store_true', help=argparse.SUPPRESS)
  flags = parser.parse_args(others)
  logging.set_verbosity(logging.ERROR)
  if flags.only_measure:
    print(json.dumps(measure(flags.folder, flags.devices, mesh)))
    return
  with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
    _write(folder, flags.gb)
    command = [sys.executable, '-m', 'omni_jax.bench.restore', '--only-measure']
    command += [f'--folder={folder}', f'--devices={flags.devices}']
    command += [f'--mesh.{axis}={size}' for axis, size in (mesh or {}).items()]
    completed = subprocess.run(
      command, capture_output=True, text=True, check=False, env=os.environ
    )
  if completed.returncode:
    raise UserError(completed.stderr.strip() or 'the restore failed')
  sizes = json.loads(completed.stdout.splitlines()[-1])
  for name, size in sizes.items():
    print(f'{name:<14} {size / 1e9:7.3f} GB')
  above = sizes['peak RSS'] - sizes['RSS after']
  allowed = TOLERANCE * sizes['largest array']
  print(
    f'{"above the rest":<14} {above / 1e9:7.3f} GB of {allowed / 1e9:.3f} GB allowed'
  )
  if above > allowed:
    raise SystemExit(1)


if __name__ == '__main__':
  run_command(main)
