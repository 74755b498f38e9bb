"""Faults 2 and 6 at every write: the process ends at its n-th write of a save that also removes an old step.

Whatever n, on a disk and on a store that cannot rename: no listed step is partial, none is lost, and the next save works.
"""

import contextlib
import os
import signal

from etils import epath
from faults.storage import Crash, watched, without_rename
from faults.toy import finished, fresh, same, start, states
import pytest

from omni_jax.train import steps
from omni_jax.train.checkpoint import Checkpoints, SaveFailed

STORES = {'disk': lambda _: contextlib.nullcontext(), 'object_store': without_rename}
every_store = pytest.mark.parametrize('store', STORES)


def saved(workdir, *wanted):
  with Checkpoints(str(workdir), 'toy', keep=2) as checkpoints:
    for one in states(*wanted):
      checkpoints.save(one, f'{{"next": {int(one.step)}}}'.encode())


def crashed(workdir, crash_at):
  """Saves step 3, which removes step 1; the process ends at that write, if there are so many. Returns the writes."""
  folder = workdir / 'checkpoints'
  checkpoints = Checkpoints(str(workdir), 'toy', keep=2)
  with watched(folder, crash_at=crash_at) as seen, contextlib.suppress(Crash, SaveFailed), checkpoints:
    checkpoints.save(states(3)[0], b'{"next": 3}')
  return list(seen)


def check(workdir):
  """Every listed step is whole, as readers see it before and writers after the rest was tidied away."""
  folder = epath.Path(workdir / 'checkpoints' / 'toy')
  listed = steps.listed(folder)
  like = {'params': fresh().params, 'buffers': fresh().buffers}
  with Checkpoints(str(workdir), 'toy', read_only=True) as checkpoints:
    for step in listed:
      assert same(checkpoints.restore_model(like, step)[0]['params'], states(step)[0].params)
  said = []
  with Checkpoints(str(workdir), 'toy', say=said.append) as checkpoints:
    found = checkpoints.resume(fresh())
    assert steps.listed(folder) == listed and steps.folders(folder) == listed
    assert not list(folder.glob('*.unfinished')) and not steps.aside(folder)
    assert same(found.state, states(max(listed))[0]) and found.iterator == f'{{"next": {max(listed)}}}'.encode()
    checkpoints.save(states(4)[0], b'{"next": 4}')
  assert max(steps.listed(folder)) == 4
  return listed, said


@every_store
def test_fault_02_and_06_whatever_the_write_at_which_the_process_ends_every_listed_step_is_whole(store, tmp_path, monkeypatch, request):
  with STORES[store](monkeypatch):
    saved(tmp_path / 'all', 1, 2)
    writes = crashed(tmp_path / 'all', None)
    names = [f'{event} {os.path.basename(path)}' for event, path in writes]
    order = [next(k for k, name in enumerate(names) if wanted in name) for wanted in ('3.unfinished', 'manifest.json')]
    assert order == sorted(order) and any('os.rmdir' in name for name in names), names
    # Below the manifest is the end; before it, where Orbax writes, one write is much like the next.
    some = range(len(writes)) if request.config.getoption('long') else sorted({*range(1, order[1], 12), *range(order[1] - 1, order[1] + 6), *range(order[1] + 6, len(writes), 12)})
    outcomes = set()
    for n in some:
      saved(tmp_path / str(n), 1, 2)
      crashed(tmp_path / str(n), n)
      listed, said = check(tmp_path / str(n))
      outcomes.add(tuple(listed))
      assert all('is removed' in line for line in said)
  assert outcomes == {(1, 2), (1, 2, 3), (2, 3)}


DYING = '''
import os, signal, sys, shutil
from faults import toy
from omni_jax.train import steps
remove = steps.remove
def dying(folder, step):
  rmtree, unlink = shutil.rmtree, os.unlink
  gone = []
  def unlink_and_die(path, **kwargs):
    unlink(path, **kwargs)
    gone.append(path)
    if len(gone) == 5:
      os.kill(os.getpid(), signal.SIGKILL)
  os.unlink = unlink_and_die
  remove(folder, step)
steps.remove = dying
toy.main()
'''


def test_fault_02_sigkill_while_an_old_step_is_deleted(tmp_path):
  """The real signal, in the middle of the deletion of a folder."""
  script = tmp_path / 'dying.py'
  script.write_text(DYING)
  code, _, err = finished(start(tmp_path / 'run', '--steps=8', script=script))
  assert code == -signal.SIGKILL, err
  folder = epath.Path(tmp_path / 'run' / 'checkpoints' / 'toy')
  assert steps.folders(folder)[:3] == [2, 4, 6] and steps.listed(folder)[:2] == [4, 6]
  code, out, err = finished(start(tmp_path / 'run', '--steps=8'))
  assert code == 0 and f'{folder}/2 was not finished and is removed' in out, err
  assert steps.folders(folder) == [6, 8]
