"""Fault 9: the script ends or raises an error right after an asynchronous save began.

The save is completed, and the exit code is kept.
"""

import signal
import sys

from faults.toy import (
  initial_state,
  logged_metrics,
  run,
  same,
  stage_folder,
  start,
  state_at,
  wait_for,
  wait_until,
)
import pytest

from omni_jax.checkpoint import manifest, step_folders
from omni_jax.checkpoint.checkpoints import Checkpoints, SaveFailed


@pytest.mark.parametrize(
  'after, code, step', [('return', 0, 4), ('raise', 1, 4), ('save_and_raise', 1, 1)]
)
def test_fault_09_the_process_ends_with_its_code_and_the_step_is_complete(
  tmp_path, after, code, step
):
  workdir = tmp_path / 'run'
  options = ('--steps=4', '--save_every=4', '--size=1024', f'--after={after}')
  actual_code, _, err = run(workdir, *options)
  assert actual_code == code, err
  with Checkpoints(str(workdir), 'toy') as checkpoints:
    assert int(checkpoints.resume(initial_state(1024)).state.step) == step
  assert ('crashed' in err) == (code == 1)


def test_fault_09_sigterm_in_a_save_still_ends_with_75(tmp_path):
  workdir = tmp_path / 'run'
  options = ('--steps=2000', '--save_every=5', '--size=512', '--pause=0.01')
  process = start(workdir, *options)
  wait_until(lambda: len(logged_metrics(workdir)) >= 6, process)
  process.send_signal(signal.SIGTERM)
  code, _, err = wait_for(process)
  assert code == 75, err
  saved_steps = step_folders.complete(stage_folder(workdir))
  assert max(saved_steps) == logged_metrics(workdir)[-1]['step']


@pytest.mark.parametrize(
  'error_inside, expected, logged_lines',
  [
    (None, SaveFailed, 0),
    (SystemExit(75), SaveFailed, 0),
    (RuntimeError('mine'), RuntimeError, 1),
  ],
  ids=repr,
)
def test_fault_09_a_save_that_fails_at_the_end_is_reported_and_never_ends_with_75(
  tmp_path, monkeypatch, error_inside, expected, logged_lines
):
  def full(*_, **__):
    raise OSError('No space left on device')

  monkeypatch.setattr(manifest, 'write', full)
  lines = []
  with (
    pytest.raises(expected),
    Checkpoints(str(tmp_path), 'toy', say=lines.append) as checkpoints,
  ):
    checkpoints.save(state_at(1), b'{}')
    if error_inside:
      raise error_inside
  assert len(lines) == logged_lines
  for line in lines:
    assert 'saving step 1' in line
    assert 'No space left' in line


@pytest.mark.parametrize(
  'error', [RuntimeError('mine'), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
def test_fault_09_an_error_inside_is_passed_on_after_the_save(tmp_path, error):
  state = state_at(1, size=512)
  with (
    pytest.raises(type(error)) as raised,
    Checkpoints(str(tmp_path), 'toy') as checkpoints,
  ):
    checkpoints.save(state, b'{}')
    raise error
  assert raised.value is error
  with Checkpoints(str(tmp_path), 'toy') as checkpoints:
    assert same(checkpoints.resume(initial_state(512)).state, state)
  assert sys.exc_info() == (None, None, None)
