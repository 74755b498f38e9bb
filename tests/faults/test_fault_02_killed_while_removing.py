"""Faults 2 and 6 at every write: the process ends at its n-th write of a save that also removes an old step.

Whatever n, on a disk and on a store that cannot rename: no listed step is partial, none is lost, and the next save works.
"""

import contextlib
import errno
import os
import pathlib
import signal

from etils import epath
from faults.storage import Crash, data_files, flip, watched, without_rename
from faults.toy import finished, fresh, resumed, same, saved, start, states
import numpy as np
import pytest

from omni_jax.checkpoint import step_folders
from omni_jax.checkpoint.checkpoints import Checkpoints, SaveFailed

STORES = {'disk': lambda _: contextlib.nullcontext(), 'object_store': without_rename}
every_store = pytest.mark.parametrize('store', STORES)


def crashed(workdir, crash_at):
  """Saves step 3, which removes step 1; the process ends at that write, if there are so many. Returns the writes."""
  folder = workdir / 'checkpoints'
  checkpoints = Checkpoints(str(workdir), 'toy', keep=2)
  with (
    watched(folder, crash_at=crash_at) as seen,
    contextlib.suppress(Crash, SaveFailed),
    checkpoints,
  ):
    checkpoints.save(states(3)[0], b'{"next": 3}')
  return list(seen)


def check(workdir):
  """Every listed step is whole, as readers see it before and writers after the rest was tidied away."""
  folder = epath.Path(workdir / 'checkpoints' / 'toy')
  listed = step_folders.listed(folder)
  like = {'params': fresh().params, 'buffers': fresh().buffers}
  with Checkpoints(str(workdir), 'toy', read_only=True) as checkpoints:
    for step in listed:
      assert same(
        checkpoints.restore_model(like, step)[0]['params'], states(step)[0].params
      )
  said = []
  with Checkpoints(str(workdir), 'toy', say=said.append) as checkpoints:
    found = checkpoints.resume(fresh())
    assert (
      step_folders.listed(folder) == listed and step_folders.folders(folder) == listed
    )
    assert not list(folder.glob('*.unfinished')) and not step_folders.aside(folder)
    assert (
      same(found.state, states(max(listed))[0])
      and found.iterator == f'{{"next": {max(listed)}}}'.encode()
    )
    checkpoints.save(states(4)[0], b'{"next": 4}')
  assert max(step_folders.listed(folder)) == 4
  return listed, said


@every_store
def test_fault_02_and_06_whatever_the_write_at_which_the_process_ends_every_listed_step_is_whole(
  store, tmp_path, monkeypatch, request
):
  with STORES[store](monkeypatch):
    saved(tmp_path / 'all', 1, 2)
    writes = crashed(tmp_path / 'all', None)
    names = [f'{event} {os.path.basename(path)}' for event, path in writes]
    order = [
      next(k for k, name in enumerate(names) if wanted in name)
      for wanted in ('3.unfinished', 'manifest.json')
    ]
    assert order == sorted(order) and any('os.rmdir' in name for name in names), names
    # Below the manifest is the end; before it, where Orbax writes, one write is much like the next.
    some = (
      range(len(writes))
      if request.config.getoption('long')
      else sorted(
        {
          *range(1, order[1], 12),
          *range(order[1] - 1, order[1] + 6),
          *range(order[1] + 6, len(writes), 12),
        }
      )
    )
    outcomes = set()
    for n in some:
      saved(tmp_path / str(n), 1, 2)
      crashed(tmp_path / str(n), n)
      listed, said = check(tmp_path / str(n))
      outcomes.add(tuple(listed))
      assert all('is removed' in line for line in said)
  assert outcomes == {(1, 2), (1, 2, 3), (2, 3)}


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.999])
def test_fault_02_a_manifest_of_which_a_killed_process_wrote_a_part_is_no_damage(
  share, tmp_path
):
  """Creating a file and writing it are two things, and a kill may come between."""
  saved(tmp_path, 1, 2)
  folder = epath.Path(tmp_path / 'checkpoints' / 'toy')
  path, said = folder / '2' / 'manifest.json', []
  whole = path.read_bytes()
  path.write_bytes(whole[: int(share * len(whole))])
  step_folders.begin(folder, 2)
  with Checkpoints(str(tmp_path), 'toy', say=said.append) as checkpoints:
    assert same(checkpoints.resume(fresh()).state, states(1)[0])
  assert said[0] == f'{folder}/2 was not finished and is removed' and not any(
    'WARNING' in line for line in said
  )
  assert (
    step_folders.folders(folder) == [1]
    and not list(folder.glob('*.unfinished'))
    and not step_folders.aside(folder)
  )


DYING = """
import os, signal
from faults import toy
from omni_jax.checkpoint import step_folders
right, write, done = step_folders.FUNCTION, os.WRITE, []
def write_and_die(*arguments, **options):
  write(*arguments, **options)
  done.append(arguments)
  if len(done) == AFTER:
    os.kill(os.getpid(), signal.SIGKILL)
def dying(*arguments):
  os.WRITE = write_and_die
  right(*arguments)
step_folders.FUNCTION = dying
toy.main()
"""


def dying(tmp_path, function, write, after):
  """The small run as a script that kills itself in a function of step_folders.py, after so many calls of one of os."""
  script = tmp_path / 'dying.py'
  script.write_text(
    DYING.replace('FUNCTION', function)
    .replace('WRITE', write)
    .replace('AFTER', str(after))
  )
  return script


def test_fault_02_sigkill_while_an_old_step_is_deleted(tmp_path):
  """The real signal, in the middle of the deletion of a folder."""
  code, _, err = finished(
    start(tmp_path / 'run', '--steps=8', script=dying(tmp_path, 'remove', 'unlink', 5))
  )
  assert code == -signal.SIGKILL, err
  folder = epath.Path(tmp_path / 'run' / 'checkpoints' / 'toy')
  assert step_folders.folders(folder)[:3] == [2, 4, 6] and step_folders.listed(folder)[
    :2
  ] == [4, 6]
  code, out, err = finished(start(tmp_path / 'run', '--steps=8'))
  assert code == 0 and f'{folder}/2 was not finished and is removed' in out, err
  assert step_folders.folders(folder) == [6, 8]


def files_of(folder):
  return {
    str(path.relative_to(folder))
    for path in pathlib.Path(folder).rglob('*')
    if path.is_file()
  }


def damaged(workdir):
  """A run of steps 1 and 2, the second with a flipped bit. Returns the names of its files."""
  saved(workdir, 1, 2)
  step = workdir / 'checkpoints' / 'toy' / '2'
  flip(
    max(data_files(step / 'model'), key=lambda path: path.stat().st_size),
    np.random.default_rng(0),
  )
  return files_of(step)


@every_store
def test_fault_02_and_04_whatever_the_write_at_which_a_step_is_put_aside_it_stays_together_and_the_run_goes_on(
  store, tmp_path, monkeypatch, request
):
  """No listed step is partial, and what was begun to be put aside is found in one folder, every file of it."""
  with STORES[store](monkeypatch):
    damaged(tmp_path / 'all')
    with watched(tmp_path / 'all' / 'checkpoints') as writes:
      resumed(tmp_path / 'all')
    total = len(writes)
    assert total > 20
    ends = {
      *range(6),
      *range(total - 5, total + 1),
    }  # between them it is one file like the other
    still_listed = set()
    for n in (
      range(total + 1)
      if request.config.getoption('long')
      else sorted({*ends, *range(6, total, 9)})
    ):
      workdir = tmp_path / str(n)
      names = damaged(workdir)
      folder = epath.Path(workdir / 'checkpoints' / 'toy')
      with watched(workdir / 'checkpoints', crash_at=n), contextlib.suppress(Crash):
        resumed(workdir)
      still_listed.add(2 in step_folders.listed(folder))
      assert 1 in step_folders.listed(folder)
      if 2 in step_folders.listed(folder):
        assert files_of(workdir / 'checkpoints' / 'toy' / '2') == names, (
          'a step that is listed is all there'
        )
      assert same(resumed(workdir)[0].state, states(1)[0])
      assert step_folders.listed(folder) == step_folders.folders(folder) == [1]
      (aside,) = step_folders.aside(folder)
      assert (
        files_of(aside) == names | {'why.txt'}
        and 'has digest' in (aside / 'why.txt').read_text()
      ) or n == total, n
      assert not list((workdir / 'checkpoints').rglob('*.unfinished')), n
      saved(workdir, 3)
      assert step_folders.listed(folder) == [1, 3]
  assert still_listed == {True, False}


@pytest.mark.parametrize('after', [1, 5])
def test_fault_02_and_04_sigkill_while_a_damaged_step_is_put_aside(tmp_path, after):
  """The real signal, after so many files are moved: the first is the manifest."""
  code, _, err = finished(start(tmp_path / 'run', '--steps=4'))
  assert code == 0, err
  folder = epath.Path(tmp_path / 'run' / 'checkpoints' / 'toy')
  names = files_of(tmp_path / 'run' / 'checkpoints' / 'toy' / '4')
  flip(
    max(data_files(folder / '4' / 'model'), key=lambda path: path.stat().st_size),
    np.random.default_rng(0),
  )
  code, _, err = finished(
    start(
      tmp_path / 'run',
      '--steps=6',
      script=dying(tmp_path, 'put_aside', 'replace', after),
    )
  )
  assert code == -signal.SIGKILL, err
  assert step_folders.listed(folder) == [2] and step_folders.folders(folder) == [2, 4]
  code, out, err = finished(start(tmp_path / 'run', '--steps=6'))
  assert code == 0 and 'resumed at step 2 of 6' in out, err
  assert step_folders.listed(folder) == [4, 6] and files_of(
    folder / 'quarantine' / '4.0'
  ) == names | {'why.txt'}


def test_fault_02_and_27_a_step_that_cannot_be_removed_is_said_and_removed_by_the_next_save(
  tmp_path, monkeypatch
):
  """As on NFS, where a reader has a file of it open: the run goes on, and the step does not count."""
  saved(tmp_path, 1, 2)
  rmtree, said, calls = type(epath.Path(tmp_path)).rmtree, [], []

  def busy(self, *rest, **options):
    calls.append(self)
    if len(calls) == 1:
      raise OSError(errno.ENOTEMPTY, 'Directory not empty')
    return rmtree(self, *rest, **options)

  monkeypatch.setattr(type(epath.Path(tmp_path)), 'rmtree', busy)
  folder = epath.Path(tmp_path / 'checkpoints' / 'toy')
  with Checkpoints(str(tmp_path), 'toy', keep=2, say=said.append) as checkpoints:
    for one in states(3):
      checkpoints.save(one, b'{}')
    assert checkpoints.latest() == 3
    assert step_folders.listed(folder) == [2, 3] and step_folders.folders(folder) == [
      1,
      2,
      3,
    ]
    assert (
      len(said) == 1
      and 'toy/1 cannot be removed now' in said[0]
      and 'Directory not empty' in said[0]
    )
    checkpoints.save(states(4)[0], b'{}')
    assert checkpoints.latest() == 4
  assert (
    step_folders.listed(folder) == step_folders.folders(folder) == [3, 4]
    and len(said) == 1
    and not list(folder.glob('*.unfinished'))
  )
