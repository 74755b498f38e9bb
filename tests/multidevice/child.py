"""The train command as test_two_processes.py starts it: it notes which rows it placed where, and evaluates one prompt."""

import hashlib
import json
import os
import signal
import subprocess

from omni_jax.errors import run_command, UserError
from omni_jax.train import __main__ as command


def watched(place, notes, *, fails_at, stops_at):
  """`place` that appends {row of the global batch: digest} to `notes`, of the rows that this process holds.

  In its call number `fails_at` the data are bad, in number `stops_at` SIGTERM comes; 0 for never.
  """
  import jax
  import numpy as np

  calls = 0

  def noted(host, mesh):
    nonlocal calls
    calls += 1
    if calls == fails_at:
      raise UserError('torn on this host')
    if calls == stops_at:
      os.kill(os.getpid(), signal.SIGTERM)
    placed, rows = place(host, mesh), {}
    for leaf in jax.tree.leaves(placed):
      for shard in leaf.addressable_shards:
        for n, row in enumerate(np.asarray(shard.data), shard.index[0].start or 0):
          rows.setdefault(n, hashlib.sha256()).update(row.tobytes())
    with open(notes, 'a') as file:
      file.write(json.dumps({n: row.hexdigest() for n, row in rows.items()}) + '\n')
    return placed

  return noted


def evaluate(trained, workdir, log):
  """In the place of the evaluation, which is long and tested elsewhere: one reply."""
  import jax

  assert not jax.distributed.is_initialized(), (
    'the other processes would have to wait for the end of this'
  )
  (part,) = trained.generate('1', want='audio')
  assert len(part.wave)
  log(f'evaluates step {trained.step} of {workdir}')


def started(*_, **__):
  raise AssertionError('a second process would find no device: this one has it')


def start_jax(config, start=command.start_jax):
  start(config)
  # After the devices are set up.
  from omni_jax.evaluate import run as evaluation
  from omni_jax.train import loop

  at = {
    name.lower(): int(os.environ.get(name, '0')) for name in ('FAILS_AT', 'STOPS_AT')
  }
  loop.place = watched(loop.place, os.environ['NOTES'], **at)
  evaluation.run = evaluate
  subprocess.Popen = started


if __name__ == '__main__':
  command.start_jax = start_jax
  run_command(command.main)
