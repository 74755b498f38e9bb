"""Fault 1: SIGKILL at random times, mostly during a save.

The run ends with the same bits as one that was left alone.
"""

import signal
import time

from faults.toy import finished, logged, run, stage_folder, start, wait_until
import numpy as np
import pytest

from omni_jax.checkpoint import manifest, step_folders

SIZE = 256
EVERY = 3  # a step waits 10 ms for its batch, so a save is always in progress
PER_KILL = 45  # steps


@pytest.fixture(scope='module')
def kills(request):
  return 20 if request.config.getoption('long') else 3


def last_step(workdir):
  return max(step_folders.complete(stage_folder(workdir)), default=0)


def leaves(workdir, step):
  return manifest.read(stage_folder(workdir) / str(step)).leaves


def killed_after_a_save(workdir, arguments, delay):
  """Runs until it has saved another step, and kills it some seconds later."""
  before = last_step(workdir)
  process = start(workdir, *arguments)
  wait_until(lambda: last_step(workdir) != before, process)
  time.sleep(delay)
  process.send_signal(signal.SIGKILL)
  return finished(process)


def test_fault_01_random_kills_end_in_the_same_bits(tmp_path, kills):
  uninterrupted = tmp_path / 'uninterrupted'
  workdir = tmp_path / 'killed'
  steps = PER_KILL * (kills + 1)
  arguments = [
    f'--steps={steps}',
    f'--save_every={EVERY}',
    f'--size={SIZE}',
    '--pause=0.01',
  ]
  code, _, err = run(uninterrupted, *arguments, seconds=300)
  assert code == 0, err
  rng = np.random.default_rng(time.time_ns())
  resumed = []
  for _ in range(kills):
    code, out, err = killed_after_a_save(workdir, arguments, rng.uniform(0, 0.3))
    assert code == -signal.SIGKILL, err
    assert 'WARNING' not in out + err, 'a kill damages nothing'
    resumed.append(last_step(workdir))
  code, out, err = run(workdir, *arguments, seconds=300)
  assert code == 0, err
  assert f'resumed at step {resumed[-1]} of' in out, err
  assert resumed == sorted(resumed)
  assert resumed[-1] > 0
  assert leaves(workdir, steps) == leaves(uninterrupted, steps)
  assert len(leaves(workdir, steps)) == 10
  assert logged(workdir) == logged(uninterrupted)
  assert [line['step'] for line in logged(workdir)] == list(range(1, steps + 1))
