"""Fault 28: the storage fails for a moment while a checkpoint is read: a few more attempts, each said, and not for ever."""

import errno

from etils import epath
from faults.toy import fresh, same, states
import orbax.checkpoint as ocp
import pytest

from omni_jax.errors import UserError
from omni_jax.train import manifest, steps
from omni_jax.train.checkpoint import Checkpoints


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  monkeypatch.setattr(manifest, 'PAUSE', 0.01)
  with Checkpoints(str(tmp_path), 'toy') as checkpoints:
    for one in states(1, 2):
      checkpoints.save(one, b'{}')
  return tmp_path


def failing(monkeypatch, owner, name, times, error):
  """The function fails so often, and then works."""
  right, calls = getattr(owner, name), []
  def wrong(*args, **kwargs):
    calls.append(1)
    if len(calls) <= times:
      raise error
    return right(*args, **kwargs)
  monkeypatch.setattr(owner, name, wrong)
  return calls


def resumed(workdir, said):
  with Checkpoints(str(workdir), 'toy', say=said.append) as checkpoints:
    return checkpoints.resume(fresh())


@pytest.mark.parametrize('owner, name', [(ocp.PyTreeCheckpointHandler, 'restore'), (type(epath.Path('/')), 'read_bytes')], ids=['arrays', 'manifest'])
def test_fault_28_two_failures_are_waited_for_and_said(workdir, monkeypatch, caplog, owner, name):
  said = []
  failing(monkeypatch, owner, name, 2, OSError(errno.EIO, 'a moment please'))
  assert same(resumed(workdir, said).state, states(2)[0]) and not said
  lines = [record.getMessage() for record in caplog.records if 'cannot be read' in record.getMessage()]
  assert len(lines) == 2 and 'attempt 2 of 3 follows' in lines[0] and 'attempt 3 of 3 follows' in lines[1]


def test_fault_28_what_lasts_ends_the_command_and_puts_no_good_step_aside(workdir, monkeypatch):
  said = []
  calls = failing(monkeypatch, ocp.PyTreeCheckpointHandler, 'restore', 99, OSError(errno.EIO, 'gone for long'))
  with pytest.raises(UserError, match=r'toy/2/model cannot be read: .*gone for long; start again when it can'):
    resumed(workdir, said)
  assert len(calls) == 3 and not said
  folder = epath.Path(workdir / 'checkpoints' / 'toy')
  assert steps.listed(folder) == [1, 2] and not steps.aside(folder)
