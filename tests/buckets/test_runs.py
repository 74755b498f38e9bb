"""Runs whose folder is in a bucket: killed and resumed, they end with the same bits."""

import signal
import time

from etils import epath
from faults.toy import (
  logged_metrics,
  resume,
  run,
  same,
  save_steps,
  stage_folder,
  start,
  state_at,
  wait_for,
  wait_until,
)
import numpy as np
import pytest

from omni_jax.checkpoint import manifest, step_folders
from omni_jax.train import goodput

STEPS = 12
ARGUMENTS = (f'--steps={STEPS}', '--save_every=3', '--pause=0.02')


@pytest.fixture(scope='module')
def kills(request):
  """Returns the number of kills."""
  return 10 if request.config.getoption('long') else 1


def last_step(workdir):
  """Returns the last complete step of a run; 0 if there is none."""
  return max(step_folders.complete(stage_folder(workdir)), default=0)


def leaves(workdir):
  """Returns the arrays of the last step with their digests."""
  return manifest.read(stage_folder(workdir) / str(STEPS)).leaves


def test_a_killed_run_resumes_in_the_bucket_with_the_same_bits(folder, tmp_path, kills):
  code, _, err = run(tmp_path / 'uninterrupted', *ARGUMENTS)
  assert code == 0, err
  rng = np.random.default_rng(time.time_ns())
  saved_steps = []
  for _ in range(kills):
    process = start(folder, *ARGUMENTS)
    before = last_step(folder)
    wait_until(lambda before=before: last_step(folder) != before, process)
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    code, out, err = wait_for(process)
    assert 'WARNING: ' + folder not in out + err, 'a kill must not damage a checkpoint'
    saved_steps.append(last_step(folder))
  code, out, err = run(folder, *ARGUMENTS)
  assert code == 0, err
  assert saved_steps[-1] > 0
  assert leaves(folder) == leaves(tmp_path / 'uninterrupted')
  metrics = logged_metrics(folder)
  assert metrics == logged_metrics(tmp_path / 'uninterrupted')
  assert [line['step'] for line in metrics] == list(range(1, STEPS + 1))
  names = {path.name for path in epath.Path(folder).iterdir()}
  assert {'metrics.jsonl', 'goodput.jsonl', 'log.txt', 'tensorboard'} <= names
  events = list((epath.Path(folder) / 'tensorboard' / 'toy').iterdir())
  assert sum(path.stat().length for path in events) > 1000
  assert goodput.read(folder)[-1]['step'] == STEPS


def test_a_damaged_step_goes_to_quarantine_and_the_one_before_is_used(folder):
  save_steps(folder, 1, 2)
  array = next((stage_folder(folder) / '2' / 'model').glob('d/*'))
  data = bytearray(array.read_bytes())
  data[len(data) // 2] ^= 1
  array.write_bytes(bytes(data))
  restored, lines = resume(folder)
  assert same(restored.state, state_at(1))
  assert any('is damaged' in line for line in lines)
  assert [path.name for path in step_folders.quarantined(stage_folder(folder))] == [
    '2.0'
  ]
  assert step_folders.complete(stage_folder(folder)) == [1]
  # What is quarantined stays whole, and the run goes on.
  files = set(manifest.files_in(stage_folder(folder) / 'quarantine' / '2.0'))
  assert {'manifest.json', 'why.txt', 'iterator/metadata'} <= files
  save_steps(folder, 2)
  assert same(resume(folder)[0].state, state_at(2))
