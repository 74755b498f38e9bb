"""Fault 9: the script ends, or raises, right after an asynchronous save began: the save is completed, the exit code kept."""

import signal
import sys
import time

from etils import epath
from faults.toy import finished, fresh, logged, same, start, states
import pytest

from omni_jax.checkpoint import manifest, step_folders
from omni_jax.checkpoint.checkpoints import Checkpoints, SaveFailed


@pytest.mark.parametrize(
  'after, code, step', [('return', 0, 4), ('raise', 1, 4), ('save_and_raise', 1, 1)]
)
def test_fault_09_the_process_ends_with_its_code_and_the_step_is_whole(
  tmp_path, after, code, step
):
  done, _, err = finished(
    start(
      tmp_path / 'run', '--steps=4', '--save_every=4', '--size=1024', f'--after={after}'
    )
  )
  assert done == code, err
  with Checkpoints(str(tmp_path / 'run'), 'toy') as checkpoints:
    assert int(checkpoints.resume(fresh(1024)).state.step) == step
  assert ('torn' in err) == (code == 1)


def test_fault_09_sigterm_in_a_save_still_ends_with_75(tmp_path):
  process = start(
    tmp_path / 'run', '--steps=2000', '--save_every=5', '--size=512', '--pause=0.01'
  )
  while len(logged(tmp_path / 'run')) < 6 and process.poll() is None:
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  code, _, err = finished(process)
  assert code == 75, err
  assert (
    max(step_folders.listed(epath.Path(tmp_path / 'run' / 'checkpoints' / 'toy')))
    == logged(tmp_path / 'run')[-1]['step']
  )


@pytest.mark.parametrize(
  'inside, raised',
  [
    (None, SaveFailed),
    (SystemExit(75), SaveFailed),
    (RuntimeError('mine'), RuntimeError),
  ],
  ids=repr,
)
def test_fault_09_a_save_that_fails_at_the_end_is_said_and_75_never_lies(
  tmp_path, monkeypatch, inside, raised
):
  def full(*_, **__):
    raise OSError('No space left on device')

  monkeypatch.setattr(manifest, 'write', full)
  said = []
  with (
    pytest.raises(raised),
    Checkpoints(str(tmp_path), 'toy', say=said.append) as checkpoints,
  ):
    checkpoints.save(states(1)[0], b'{}')
    if inside:
      raise inside
  assert len(said) == (raised is RuntimeError) and all(
    'saving step 1' in line and 'No space left' in line for line in said
  )


@pytest.mark.parametrize(
  'error', [RuntimeError('mine'), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
def test_fault_09_an_error_inside_is_passed_on_after_the_save(tmp_path, error):
  (one,) = states(1, size=512)
  with (
    pytest.raises(type(error)) as raised,
    Checkpoints(str(tmp_path), 'toy') as checkpoints,
  ):
    checkpoints.save(one, b'{}')
    raise error
  assert raised.value is error
  with Checkpoints(str(tmp_path), 'toy') as checkpoints:
    assert same(checkpoints.resume(fresh(512)).state, one)
  assert sys.exc_info() == (None, None, None)
