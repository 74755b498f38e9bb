"""Fault 5: a file of a checkpoint is cut short or gone. Never a silent start from new weights."""

import pathlib
import shutil

from faults.toy import fresh, resumed, same, stage, states
import pytest

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.errors import UserError
from omni_jax.sharding import make_mesh
from omni_jax.train import loop

IGNORED = {
  ('_CHECKPOINT_METADATA',),
  ('commit_success.txt',),
}  # of Orbax, after the manifest; nobody reads them


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
  path.unlink()


def empty(path):
  path.write_bytes(b'')


def grow(path):
  path.write_bytes(path.read_bytes() + b'\0')


@pytest.mark.parametrize(
  'harm', [cut, remove, empty, grow], ids=lambda harm: harm.__name__
)
def test_fault_05_every_file_of_a_step_is_missed(two_steps, tmp_path, harm):
  names = [
    path.relative_to(two_steps)
    for path in (two_steps / 'checkpoints' / 'toy' / '2').rglob('*')
    if path.is_file()
  ]
  names = [name for name in names if name.parts[3:] not in IGNORED]
  assert {'manifest.json', '_METADATA', 'manifest.ocdbt', 'metadata'} <= {
    name.name for name in names
  }
  for k, name in enumerate(names):
    workdir = tmp_path / str(k)
    shutil.copytree(two_steps, workdir)
    harm(workdir / name)
    found, said = resumed(workdir)
    assert same(found.state, states(1)[0]), name
    assert (
      len(said) == 1
      and 'WARNING' in said[0]
      and name.name in said[0]
      and '1.0' not in said[0]
    ), said


def test_fault_05_a_folder_of_a_step_is_missed(two_steps, tmp_path):
  for item in ('model', 'train', 'iterator'):
    workdir = tmp_path / item
    shutil.copytree(two_steps, workdir)
    shutil.rmtree(workdir / 'checkpoints' / 'toy' / '2' / item)
    found, said = resumed(workdir)
    assert int(found.state.step) == 1
    assert f'{item}/' in said[0] and 'is missing' in said[0], said


def test_fault_05_the_run_stops_rather_than_begin_anew(tmp_path):
  """With its only step damaged: at once, and again when it is started again."""
  loop.run(stage(2), str(tmp_path), make_mesh())
  folder = tmp_path / 'checkpoints' / 'toy'
  for path in folder.glob('*/manifest.json'):
    path.unlink()
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  for _ in range(2):
    with pytest.raises(
      UserError, match='no good step in .*remove .* to begin this stage anew'
    ):
      loop.run(stage(4), str(tmp_path), make_mesh())
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before
  assert len(list((folder / 'quarantine').iterdir())) == 1, (
    'moved, and nothing of it removed'
  )
  log = (tmp_path / 'log.txt').read_text()
  assert log.count('WARNING') == 1 and 'manifest.json is missing' in log


def test_fault_05_checkpoints_of_older_code_are_refused_in_one_line(
  two_steps, tmp_path
):
  shutil.copytree(two_steps, tmp_path / 'run')
  for path in (tmp_path / 'run').rglob('manifest.json'):
    path.unlink()
  like = {'params': fresh().params, 'buffers': fresh().buffers}
  with (
    Checkpoints(str(tmp_path / 'run'), 'toy', read_only=True) as checkpoints,
    pytest.raises(
      UserError, match=r'no step in .*toy that counts: \[1, 2\] have no manifest.json'
    ),
  ):
    checkpoints.restore_model(like)


def test_fault_05_training_goes_on_from_the_step_before_to_the_same_end(tmp_path):
  whole = loop.run(stage(6), str(tmp_path / 'whole'), make_mesh())
  loop.run(stage(4), str(tmp_path / 'parts'), make_mesh())
  step = tmp_path / 'parts' / 'checkpoints' / 'toy' / '4'
  cut(
    max(
      (path for path in pathlib.Path(step).rglob('*') if path.is_file()),
      key=lambda path: path.stat().st_size,
    )
  )
  ended = loop.run(stage(6), str(tmp_path / 'parts'), make_mesh())
  assert same(ended, whole)
  assert 'step 2 is used instead' in (tmp_path / 'parts' / 'log.txt').read_text()
