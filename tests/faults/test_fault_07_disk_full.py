"""Fault 7: the disk is full in the middle of a save. Said by the next step, the last good step is as it was."""

import errno
import subprocess

from faults.storage import small_disk
from faults.toy import logged, Numbers, same, stage
import pytest

from omni_jax.checkpoint.checkpoints import Checkpoints, SaveFailed
from omni_jax.errors import UserError
from omni_jax.sharding import make_mesh
from omni_jax.train import goodput, loop, writer

SIZE, PAUSE = 512, 0.3


def long_stage(steps):
  return stage(steps, SIZE, Numbers(PAUSE), save_every=3)


def test_fault_07_a_full_disk_is_reported_by_the_next_step_and_nothing_good_is_lost(
  tmp_path,
):
  whole = loop.run(stage(6, SIZE), str(tmp_path / 'whole'), make_mesh())
  with small_disk(tmp_path / 'disk', 5000) as disk:
    if disk is None:
      pytest.skip('only root may mount a small disk')
    with pytest.raises(
      SaveFailed,
      match=r'saving step 6 in .*toy failed: .*; the last good step is 3; make room',
    ):
      loop.run(long_stage(20), str(disk), make_mesh())
    assert logged(disk)[-1]['step'] <= 8, (
      'the save needs the time of one step or two to find out'
    )
    subprocess.run(['mount', '-o', 'remount,size=50000k', str(disk)], check=True)
    with Checkpoints(str(disk), 'toy', read_only=True) as checkpoints:
      assert checkpoints.latest() == 3
    assert same(loop.run(stage(6, SIZE), str(disk), make_mesh()), whole)
    assert 'resumed at step 3' in (disk / 'log.txt').read_text()


def test_fault_07_at_the_last_step_it_is_reported_before_the_end(tmp_path):
  with small_disk(tmp_path / 'disk', 2000) as disk:
    if disk is None:
      pytest.skip('only root may mount a small disk')
    with pytest.raises(SaveFailed, match='saving step 2 .* the last good step is None'):
      loop.run(stage(2, SIZE), str(disk), make_mesh())


@pytest.mark.parametrize(
  'owner', [goodput.Goodput, writer.Writer], ids=lambda owner: owner.__name__
)
def test_fault_07_the_disk_is_full_for_a_line_of_a_log(tmp_path, monkeypatch, owner):
  """One line and no traceback; the step saved before is good, and the run goes on from it."""
  calls, right = [], owner.write

  def full(self, *arguments):
    calls.append(1)
    if len(calls) == 4:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return right(self, *arguments)

  monkeypatch.setattr(owner, 'write', full)
  with pytest.raises(
    UserError,
    match='toy: .* can no longer be written to: .*No space left on device; the checkpoints are intact',
  ):
    loop.run(stage(8), str(tmp_path), make_mesh())
  monkeypatch.setattr(owner, 'write', right)
  assert same(
    loop.run(stage(8), str(tmp_path), make_mesh()),
    loop.run(stage(8), str(tmp_path / 'whole'), make_mesh()),
  )
  assert 'resumed at step' in (tmp_path / 'log.txt').read_text()
