"""Fault 1: SIGKILL at random times, mostly during a save.

The run ends with the same bits as one that was not killed.
"""

import signal
import time

from faults.toy import (
  initial_state,
  logged_metrics,
  run,
  stage_folder,
  start,
  wait_for,
  wait_until,
)
import jax
import numpy as np
import pytest

from omni_jax.checkpoint import manifest, step_folders

SIZE = 256
SAVE_EVERY = 3  # a step waits 10 ms for its batch, so a save is always in progress
STEPS_PER_KILL = 45


@pytest.fixture(scope='module')
def kills(request):
  """Returns the number of kills."""
  return 20 if request.config.getoption('long') else 3


def last_step(workdir):
  """Returns the last complete step of a run; 0 if there is none."""
  return max(step_folders.complete(stage_folder(workdir)), default=0)


def leaves(workdir, step):
  """Returns the arrays of a step, with their digests, as its manifest lists them."""
  return manifest.read(stage_folder(workdir) / str(step)).leaves


def kill_after_a_save(workdir, arguments, delay):
  """Runs until it has saved another step, and kills it some seconds later."""
  before = last_step(workdir)
  process = start(workdir, *arguments)
  wait_until(lambda: last_step(workdir) != before, process)
  time.sleep(delay)
  process.send_signal(signal.SIGKILL)
  return wait_for(process)


def test_fault_01_random_kills_end_in_the_same_bits(tmp_path, kills):
  uninterrupted = tmp_path / 'uninterrupted'
  workdir = tmp_path / 'killed'
  steps = STEPS_PER_KILL * (kills + 1)
  arguments = [
    f'--steps={steps}',
    f'--save_every={SAVE_EVERY}',
    f'--size={SIZE}',
    '--pause=0.01',
  ]
  code, _, err = run(uninterrupted, *arguments, seconds=300)
  assert code == 0, err
  rng = np.random.default_rng(time.time_ns())
  saved_steps = []
  for _ in range(kills):
    code, out, err = kill_after_a_save(workdir, arguments, rng.uniform(0, 0.3))
    assert code == -signal.SIGKILL, err
    assert 'WARNING' not in out + err, 'a kill must not damage a checkpoint'
    saved_steps.append(last_step(workdir))
  code, out, err = run(workdir, *arguments, seconds=300)
  assert code == 0, err
  assert f'resumed at step {saved_steps[-1]} of' in out, err
  assert saved_steps == sorted(saved_steps)
  assert saved_steps[-1] > 0
  assert leaves(workdir, steps) == leaves(uninterrupted, steps)
  assert len(leaves(workdir, steps)) == len(jax.tree.leaves(initial_state()))
  assert logged_metrics(workdir) == logged_metrics(uninterrupted)
  assert [line['step'] for line in logged_metrics(workdir)] == list(range(1, steps + 1))
