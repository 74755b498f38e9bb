"""Runs the train command for test_two_processes.py.

It notes which rows it places, and generates one reply instead of an evaluation.
"""

import hashlib
import json
import os
import signal
import subprocess

from omni_jax.errors import run_command, UserError
from omni_jax.train import __main__ as command


def with_notes(place, notes, *, fails_at, stops_at):
  """Returns a `place` that notes the rows that this process holds.

  Each call appends a line {row of the global batch: digest} to the file `notes`.

  Args:
    place: `sharding.place`.
    notes: file to append to.
    fails_at: number of the call that fails as for bad data; 0 for none.
    stops_at: number of the call before which SIGTERM comes; 0 for none.
  """
  import jax
  import numpy as np

  calls = 0

  def place_and_note(host, mesh):
    nonlocal calls
    calls += 1
    if calls == fails_at:
      raise UserError('unreadable on this host')
    if calls == stops_at:
      os.kill(os.getpid(), signal.SIGTERM)
    placed = place(host, mesh)
    hashes = {}
    for leaf in jax.tree.leaves(placed):
      for shard in leaf.addressable_shards:
        first = shard.index[0].start or 0
        for row, values in enumerate(np.asarray(shard.data), first):
          hashes.setdefault(row, hashlib.sha256()).update(values.tobytes())
    digests = {row: row_hash.hexdigest() for row, row_hash in hashes.items()}
    with open(notes, 'a') as file:
      file.write(json.dumps(digests) + '\n')
    return placed

  return place_and_note


def evaluate(trained, workdir, log):
  """Generates one reply; the evaluation itself is long and tested elsewhere."""
  import jax

  message = 'the other processes would have to wait for the end of this'
  assert not jax.distributed.is_initialized(), message
  (part,) = trained.generate('1', want='audio')
  assert len(part.wave)
  log(f'evaluates step {trained.step} of {workdir}')


def refuse_process(*_, **__):
  """Takes the place of subprocess.Popen and fails."""
  raise AssertionError('a second process would find no device: this one has it')


def start_jax(config, start=command.start_jax):
  """Starts JAX, then replaces functions by those of this file."""
  start(config)
  # These import JAX, whose devices must be set up first.
  from omni_jax.evaluate import run as evaluation
  from omni_jax.train import loop

  loop.place = with_notes(
    loop.place,
    os.environ['NOTES'],
    fails_at=int(os.environ.get('FAILS_AT', '0')),
    stops_at=int(os.environ.get('STOPS_AT', '0')),
  )
  evaluation.run = evaluate
  subprocess.Popen = refuse_process


if __name__ == '__main__':
  command.start_jax = start_jax
  run_command(command.main)
