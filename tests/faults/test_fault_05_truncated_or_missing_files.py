"""Fault 5: a file of a checkpoint is truncated or missing.

A run never starts silently from fresh weights.
"""

import shutil

from faults.storage import files_below, files_read, largest
from faults.toy import initial_state, model_of, resume, same, stage, state_at
import pytest

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.errors import UserError
from omni_jax.sharding import make_mesh
from omni_jax.train import loop


def cut(path):
  """Removes the second half of a file."""
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
  path.unlink()


def empty(path):
  path.write_bytes(b'')


def grow(path):
  path.write_bytes(path.read_bytes() + b'\0')


@pytest.mark.parametrize(
  'damage', [cut, remove, empty, grow], ids=lambda damage: damage.__name__
)
def test_fault_05_a_change_of_any_file_of_a_step_is_found(two_steps, tmp_path, damage):
  step = two_steps / 'checkpoints' / 'toy' / '2'
  paths = files_read(step)
  expected = {'manifest.json', '_METADATA', 'manifest.ocdbt', 'metadata'}
  assert expected <= {path.name for path in paths}
  for k, path in enumerate(paths):
    name = path.relative_to(two_steps)
    workdir = tmp_path / str(k)
    shutil.copytree(two_steps, workdir)
    damage(workdir / name)
    restored, lines = resume(workdir)
    assert same(restored.state, state_at(1)), name
    assert len(lines) == 1, lines
    assert 'WARNING' in lines[0]
    assert name.name in lines[0]
    assert '1.0' not in lines[0], 'step 1 must not be moved to quarantine'


def test_fault_05_a_missing_folder_of_a_step_is_found(two_steps, tmp_path):
  for item in ('model', 'train', 'iterator'):
    workdir = tmp_path / item
    shutil.copytree(two_steps, workdir)
    shutil.rmtree(workdir / 'checkpoints' / 'toy' / '2' / item)
    restored, lines = resume(workdir)
    assert int(restored.state.step) == 1
    assert f'{item}/' in lines[0], lines
    assert 'is missing' in lines[0], lines


def test_fault_05_the_run_stops_rather_than_start_from_scratch(tmp_path):
  """If its only step is damaged, it stops at once, and again when it is restarted."""
  loop.run(stage(2), str(tmp_path), make_mesh())
  folder = tmp_path / 'checkpoints' / 'toy'
  for path in folder.glob('*/manifest.json'):
    path.unlink()
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  message = 'no good step in .*remove .* to start this stage from scratch'
  for _ in range(2):
    with pytest.raises(UserError, match=message):
      loop.run(stage(4), str(tmp_path), make_mesh())
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before
  quarantine = list((folder / 'quarantine').iterdir())
  assert len(quarantine) == 1, 'the step must be moved once and not be removed'
  log = (tmp_path / 'log.txt').read_text()
  assert log.count('WARNING') == 1
  assert 'manifest.json is missing' in log


def test_fault_05_checkpoints_of_older_code_are_refused_in_one_line(
  two_steps, tmp_path
):
  shutil.copytree(two_steps, tmp_path / 'run')
  for path in (tmp_path / 'run').rglob('manifest.json'):
    path.unlink()
  message = r'no complete step in .*toy: \[1, 2\] have no manifest.json'
  with (
    Checkpoints(str(tmp_path / 'run'), 'toy', read_only=True) as checkpoints,
    pytest.raises(UserError, match=message),
  ):
    checkpoints.restore_model(model_of(initial_state()))


def test_fault_05_training_resumes_from_the_step_before_and_ends_the_same(tmp_path):
  parts = tmp_path / 'parts'
  uninterrupted = loop.run(stage(6), str(tmp_path / 'uninterrupted'), make_mesh())
  loop.run(stage(4), str(parts), make_mesh())
  cut(largest(files_below(parts / 'checkpoints' / 'toy' / '4')))
  resumed = loop.run(stage(6), str(parts), make_mesh())
  assert same(resumed, uninterrupted)
  assert 'step 2 is used instead' in (parts / 'log.txt').read_text()
