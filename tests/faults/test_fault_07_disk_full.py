"""Fault 7: the disk is full in the middle of a save.

The next step reports it, and the last good step is unchanged.
"""

import errno
import subprocess

from faults.storage import small_disk
from faults.toy import logged_metrics, Numbers, same, stage
import pytest

from omni_jax.checkpoint.checkpoints import Checkpoints, SaveFailed
from omni_jax.errors import UserError
from omni_jax.sharding import make_mesh
from omni_jax.train import goodput, loop, writer

SIZE = 512
PAUSE = 0.3  # seconds of a step


def test_fault_07_a_full_disk_is_reported_by_the_next_step_and_nothing_good_is_lost(
  tmp_path,
):
  uninterrupted = loop.run(stage(6, SIZE), str(tmp_path / 'uninterrupted'), make_mesh())
  message = (
    r'saving step 6 in .*toy failed: .*; the last good step is 3; make room or repair'
  )
  with small_disk(tmp_path / 'disk', kilobytes=5000) as disk:
    if disk is None:
      pytest.skip('only root may mount a small disk')
    slow = stage(20, SIZE, Numbers(PAUSE), save_every=3)
    with pytest.raises(SaveFailed, match=message):
      loop.run(slow, str(disk), make_mesh())
    last_step = logged_metrics(disk)[-1]['step']
    assert last_step <= 8, 'a failed save must be reported within a step or two'
    subprocess.run(['mount', '-o', 'remount,size=50000k', str(disk)], check=True)
    with Checkpoints(str(disk), 'toy', read_only=True) as checkpoints:
      assert checkpoints.latest() == 3
    assert same(loop.run(stage(6, SIZE), str(disk), make_mesh()), uninterrupted)
    assert 'resumed at step 3' in (disk / 'log.txt').read_text()


def test_fault_07_a_full_disk_at_the_last_step_is_reported_before_the_end(tmp_path):
  with small_disk(tmp_path / 'disk', kilobytes=2000) as disk:
    if disk is None:
      pytest.skip('only root may mount a small disk')
    with pytest.raises(SaveFailed, match='saving step 2 .* the last good step is None'):
      loop.run(stage(2, SIZE), str(disk), make_mesh())


@pytest.mark.parametrize(
  'owner', [goodput.Goodput, writer.Writer], ids=lambda owner: owner.__name__
)
def test_fault_07_a_log_that_cannot_be_written_ends_the_run_in_one_line(
  tmp_path, monkeypatch, owner
):
  """The last step is good, and the run resumes from it."""
  write = owner.write
  full_at = 4  # number of the call that fails
  calls = []

  def write_or_fail(self, *arguments):
    calls.append(1)
    if len(calls) == full_at:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return write(self, *arguments)

  message = (
    'toy: .* can no longer be written to: .*No space left on device; '
    'the checkpoints are intact'
  )
  monkeypatch.setattr(owner, 'write', write_or_fail)
  with pytest.raises(UserError, match=message):
    loop.run(stage(8), str(tmp_path), make_mesh())
  monkeypatch.setattr(owner, 'write', write)
  resumed = loop.run(stage(8), str(tmp_path), make_mesh())
  uninterrupted = loop.run(stage(8), str(tmp_path / 'uninterrupted'), make_mesh())
  assert same(resumed, uninterrupted)
  assert 'resumed at step' in (tmp_path / 'log.txt').read_text()
