"""Fault 1: SIGKILL at random times, most of them in a save. The run ends in the same bits as one that was left alone."""

import signal
import time

from etils import epath
from faults.toy import finished, logged, start
import numpy as np
import pytest

from omni_jax.checkpoint import manifest, step_folders

SIZE, EVERY, PER_KILL = (
  256,
  3,
  45,
)  # a step waits 10 ms for its batch, so a save is always under way


@pytest.fixture(scope='module')
def kills(request):
  return 20 if request.config.getoption('long') else 3


def arguments(kills):
  return [
    f'--steps={PER_KILL * (kills + 1)}',
    f'--save_every={EVERY}',
    f'--size={SIZE}',
    '--pause=0.01',
  ]


def test_fault_01_random_kills_end_in_the_same_bits(tmp_path, kills):
  code, _, err = finished(start(tmp_path / 'whole', *arguments(kills)), seconds=300)
  assert code == 0, err
  rng, resumed, workdir = np.random.default_rng(time.time_ns()), [], tmp_path / 'killed'
  folder = epath.Path(workdir / 'checkpoints' / 'toy')
  for _ in range(kills):
    before, process = (
      max(step_folders.listed(folder), default=0),
      start(workdir, *arguments(kills)),
    )
    while (
      max(step_folders.listed(folder), default=0) == before and process.poll() is None
    ):
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    code, out, err = finished(process)
    assert code == -signal.SIGKILL, err
    assert 'WARNING' not in out + err, 'a kill damages nothing'
    resumed.append(max(step_folders.listed(folder), default=0))
  code, out, err = finished(start(workdir, *arguments(kills)), seconds=300)
  assert code == 0 and f'resumed at step {resumed[-1]} of' in out, err
  assert resumed == sorted(resumed) and resumed[-1] > 0
  last = PER_KILL * (kills + 1)
  ours, theirs = (
    manifest.read(epath.Path(tmp_path / name / 'checkpoints' / 'toy' / str(last)))
    for name in ('killed', 'whole')
  )
  assert ours.leaves == theirs.leaves and len(ours.leaves) == 10
  assert logged(workdir) == logged(tmp_path / 'whole')
  assert [line['step'] for line in logged(workdir)] == list(range(1, last + 1))
