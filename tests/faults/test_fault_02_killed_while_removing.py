"""Faults 2 and 6: the process ends at its n-th write of a save or of a removal.

For every n, on a disk and on a store that cannot rename: no listed step is partial, no
step is lost, and the next save works.
"""

import contextlib
import errno
import os
import signal

from etils import epath
from faults.storage import (
  Crash,
  files_below,
  flip_in_arrays,
  record_writes,
  without_rename,
)
from faults.toy import (
  initial_state,
  model_of,
  resume,
  run,
  same,
  save_steps,
  stage_folder,
  state_at,
)
import pytest

from omni_jax.checkpoint import step_folders
from omni_jax.checkpoint.checkpoints import Checkpoints, SaveFailed

STORES = {'disk': lambda _: contextlib.nullcontext(), 'object_store': without_rename}
every_store = pytest.mark.parametrize('store', STORES)


def marks(folder):
  """Returns the files that mark unfinished steps."""
  return list(folder.glob('*.unfinished'))


def save_step_3(workdir, crash_at):
  """Saves step 3, which removes step 1, and returns the writes.

  The process ends at the write `crash_at`, if there are as many.
  """
  checkpoints = Checkpoints(str(workdir), 'toy', keep=2)
  with (
    record_writes(workdir / 'checkpoints', crash_at=crash_at) as writes,
    contextlib.suppress(Crash, SaveFailed),
    checkpoints,
  ):
    checkpoints.save(state_at(3), b'{"next": 3}')
  return list(writes)


def check_steps(workdir):
  """Checks that every listed step is complete, and that the next save works.

  It restores them as a reader does, before a trainer tidies the folder, and then as a
  trainer does.

  Returns:
    The listed steps, and the lines that the trainer logs.
  """
  folder = stage_folder(workdir)
  listed = step_folders.complete(folder)
  with Checkpoints(str(workdir), 'toy', read_only=True) as checkpoints:
    for step in listed:
      model, _ = checkpoints.restore_model(model_of(initial_state()), step)
      assert same(model['params'], state_at(step).params)
  last = max(listed)
  lines = []
  with Checkpoints(str(workdir), 'toy', say=lines.append) as checkpoints:
    restored = checkpoints.resume(initial_state())
    assert step_folders.complete(folder) == listed
    assert step_folders.folders(folder) == listed
    assert not marks(folder)
    assert not step_folders.quarantined(folder)
    assert same(restored.state, state_at(last))
    assert restored.iterator == f'{{"next": {last}}}'.encode()
    checkpoints.save(state_at(4), b'{"next": 4}')
  assert max(step_folders.complete(folder)) == 4
  return listed, lines


def first_index(names, part):
  """Returns the index of the first name that contains a part."""
  return next(k for k, name in enumerate(names) if part in name)


@every_store
def test_fault_02_and_06_every_listed_step_is_complete_after_a_crash_at_any_write(
  store, tmp_path, monkeypatch, request
):
  with STORES[store](monkeypatch):
    save_steps(tmp_path / 'all', 1, 2)
    writes = save_step_3(tmp_path / 'all', None)
    names = [f'{event} {os.path.basename(path)}' for event, path in writes]
    mark = first_index(names, '3.unfinished')
    manifest = first_index(names, 'manifest.json')
    assert mark <= manifest
    assert any('os.rmdir' in name for name in names), names
    crashes = range(len(writes))
    if not request.config.getoption('long'):
      # Before the manifest Orbax writes, and one write is much like the next.
      while_saving = range(1, manifest, 12)
      around_manifest = range(manifest - 1, manifest + 6)
      while_removing = range(manifest + 6, len(writes), 12)
      crashes = sorted({*while_saving, *around_manifest, *while_removing})
    outcomes = set()
    for n in crashes:
      workdir = tmp_path / str(n)
      save_steps(workdir, 1, 2)
      save_step_3(workdir, n)
      listed, lines = check_steps(workdir)
      outcomes.add(tuple(listed))
      assert all('has been removed' in line for line in lines)
  assert outcomes == {(1, 2), (1, 2, 3), (2, 3)}


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.999])
def test_fault_02_a_manifest_that_a_killed_process_wrote_in_part_is_no_damage(
  share, tmp_path
):
  """A file is created first and then written, and a kill may come in between."""
  save_steps(tmp_path, 1, 2)
  folder = stage_folder(tmp_path)
  path = folder / '2' / 'manifest.json'
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  step_folders.begin(folder, 2)
  lines = []
  with Checkpoints(str(tmp_path), 'toy', say=lines.append) as checkpoints:
    assert same(checkpoints.resume(initial_state()).state, state_at(1))
  assert lines[0] == f'{folder}/2 was unfinished and has been removed'
  assert not any('WARNING' in line for line in lines)
  assert step_folders.folders(folder) == [1]
  assert not marks(folder)
  assert not step_folders.quarantined(folder)


# A script that runs the toy stage and kills itself in FUNCTION of step_folders.py, after
# AFTER calls of os.WRITE.
DYING = """
import os, signal
from faults import toy
from omni_jax.checkpoint import step_folders
function = step_folders.FUNCTION
write = os.WRITE
calls = []
def write_and_die(*arguments, **options):
  write(*arguments, **options)
  calls.append(arguments)
  if len(calls) == AFTER:
    os.kill(os.getpid(), signal.SIGKILL)
def dying_function(*arguments):
  os.WRITE = write_and_die
  function(*arguments)
step_folders.FUNCTION = dying_function
toy.main()
"""


def write_dying_script(tmp_path, function, write, after):
  """Writes the script DYING with these values and returns its path."""
  script = tmp_path / 'dying.py'
  text = DYING.replace('FUNCTION', function)
  text = text.replace('WRITE', write)
  script.write_text(text.replace('AFTER', str(after)))
  return script


def test_fault_02_sigkill_while_an_old_step_is_deleted(tmp_path):
  """The real signal, in the middle of the deletion of a folder."""
  workdir = tmp_path / 'run'
  script = write_dying_script(tmp_path, 'remove', 'unlink', after=5)
  code, _, err = run(workdir, '--steps=8', script=script)
  assert code == -signal.SIGKILL, err
  folder = stage_folder(workdir)
  assert step_folders.folders(folder)[:3] == [2, 4, 6]
  assert step_folders.complete(folder)[:2] == [4, 6]
  code, out, err = run(workdir, '--steps=8')
  assert code == 0, err
  assert f'{folder}/2 was unfinished and has been removed' in out, err
  assert step_folders.folders(folder) == [6, 8]


def names_in(folder):
  """Returns the paths of all files below a folder, relative to it."""
  return {str(path.relative_to(folder)) for path in files_below(folder)}


def save_damaged_step(workdir):
  """Saves steps 1 and 2, flips a bit of step 2, and returns the names of its files."""
  save_steps(workdir, 1, 2)
  step = workdir / 'checkpoints' / 'toy' / '2'
  flip_in_arrays(step / 'model', seed=0)
  return names_in(step)


def writes_of_quarantine(workdir):
  """Returns the number of writes with which a damaged step is moved to quarantine."""
  save_damaged_step(workdir)
  with record_writes(workdir / 'checkpoints') as writes:
    resume(workdir)
  return len(writes)


@every_store
def test_fault_02_and_04_a_step_stays_together_after_a_crash_at_any_write_of_its_move(
  store, tmp_path, monkeypatch, request
):
  """The damaged step ends up in one folder of the quarantine, with all of its files.

  No listed step is partial meanwhile, and the run continues.
  """
  with STORES[store](monkeypatch):
    total = writes_of_quarantine(tmp_path / 'all')
    assert total > 20
    crashes = range(total + 1)
    if not request.config.getoption('long'):
      # Between the first and the last writes, one file is like the next.
      ends = {*range(6), *range(total - 5, total + 1)}
      crashes = sorted({*ends, *range(6, total, 9)})
    still_listed = set()
    for n in crashes:
      workdir = tmp_path / str(n)
      names = save_damaged_step(workdir)
      step = workdir / 'checkpoints' / 'toy' / '2'
      folder = stage_folder(workdir)
      with (
        record_writes(workdir / 'checkpoints', crash_at=n),
        contextlib.suppress(Crash),
      ):
        resume(workdir)
      listed = step_folders.complete(folder)
      still_listed.add(2 in listed)
      assert 1 in listed
      if 2 in listed:
        assert names_in(step) == names, 'a listed step must be complete'
      restored, _ = resume(workdir)
      assert same(restored.state, state_at(1))
      assert step_folders.complete(folder) == step_folders.folders(folder) == [1]
      (quarantined,) = step_folders.quarantined(folder)
      if n != total:
        assert names_in(quarantined) == names | {'why.txt'}, n
        assert 'has digest' in (quarantined / 'why.txt').read_text(), n
      assert not list((workdir / 'checkpoints').rglob('*.unfinished')), n
      save_steps(workdir, 3)
      assert step_folders.complete(folder) == [1, 3]
  assert still_listed == {True, False}


@pytest.mark.parametrize('after', [1, 5])
def test_fault_02_and_04_sigkill_while_a_damaged_step_is_moved_to_quarantine(
  tmp_path, after
):
  """The real signal, after this many files are moved; the first one is the manifest."""
  workdir = tmp_path / 'run'
  code, _, err = run(workdir, '--steps=4')
  assert code == 0, err
  folder = stage_folder(workdir)
  names = names_in(folder / '4')
  flip_in_arrays(folder / '4' / 'model', seed=0)
  script = write_dying_script(tmp_path, 'quarantine', 'replace', after)
  code, _, err = run(workdir, '--steps=6', script=script)
  assert code == -signal.SIGKILL, err
  assert step_folders.complete(folder) == [2]
  assert step_folders.folders(folder) == [2, 4]
  code, out, err = run(workdir, '--steps=6')
  assert code == 0, err
  assert 'resumed at step 2 of 6' in out, err
  assert step_folders.complete(folder) == [4, 6]
  assert names_in(folder / 'quarantine' / '4.0') == names | {'why.txt'}


def test_fault_02_and_27_a_step_that_cannot_be_removed_is_removed_by_the_next_save(
  tmp_path, monkeypatch
):
  """This happens on NFS if a reader has a file of the step open.

  The run continues with a line in the log, and the step does not count.
  """
  save_steps(tmp_path, 1, 2)
  path_type = type(epath.Path(tmp_path))
  rmtree = path_type.rmtree
  calls = []

  def busy_once(self, *rest, **options):
    calls.append(self)
    if len(calls) == 1:
      raise OSError(errno.ENOTEMPTY, 'Directory not empty')
    return rmtree(self, *rest, **options)

  monkeypatch.setattr(path_type, 'rmtree', busy_once)
  folder = stage_folder(tmp_path)
  lines = []
  with Checkpoints(str(tmp_path), 'toy', keep=2, say=lines.append) as checkpoints:
    checkpoints.save(state_at(3), b'{}')
    assert checkpoints.latest() == 3
    assert step_folders.complete(folder) == [2, 3]
    assert step_folders.folders(folder) == [1, 2, 3]
    assert len(lines) == 1
    assert 'toy/1 cannot be removed now' in lines[0]
    assert 'Directory not empty' in lines[0]
    checkpoints.save(state_at(4), b'{}')
    assert checkpoints.latest() == 4
  assert step_folders.complete(folder) == step_folders.folders(folder) == [3, 4]
  assert len(lines) == 1
  assert not marks(folder)
