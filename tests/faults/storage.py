"""A disk that fails at will: the process stops at its n-th write, folders cannot be renamed, bits flip, room runs out."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np

WRITES = {
  'os.remove',
  'os.mkdir',
  'os.rmdir',
  'os.rename',
  'os.link',
  'os.symlink',
  'os.truncate',
}


class Crash(BaseException):
  """In the place of SIGKILL: nothing is written after it."""


class _Watch:
  """Sees every file operation of Python below a folder (audit events of the interpreter)."""

  def __init__(self):
    self.folder, self.left, self.seen, self._lock = None, None, [], threading.Lock()
    self._installed = False

  def install(self):
    if not self._installed:
      sys.addaudithook(self._hook)
      self._installed = True

  def _hook(self, event, arguments):
    if self.folder is None:
      return
    if event == 'open':
      path, mode, flags = arguments
      if isinstance(path, int) or not (
        (isinstance(mode, str) and set(mode) & set('wax+'))
        or flags & (os.O_WRONLY | os.O_RDWR)
      ):
        return
    elif event in WRITES:
      path = arguments[0]
    else:
      return
    path = os.fspath(path) if not isinstance(path, int) else ''
    path = path.decode() if isinstance(path, bytes) else path
    if os.path.isabs(path) and not path.startswith(self.folder):
      return  # relative ones are those of shutil.rmtree, inside of a folder that it has open
    with self._lock:
      self.seen.append((event, path))
      if self.left is None:
        return
      self.left -= 1
      if self.left < 0:
        raise Crash(f'{event} {path}')


_watch = _Watch()


@contextlib.contextmanager
def watched(folder, *, crash_at=None):
  """Notes the writes below a folder; from the n-th on (counted from 0), every one of them stops the process.

  Yields the list of (event, path).
  """
  _watch.install()
  _watch.folder, _watch.left, _watch.seen = str(folder), crash_at, []
  try:
    yield _watch.seen
  finally:
    _watch.folder = None


@contextlib.contextmanager
def without_rename(monkeypatch):
  """A store as gs:// is: folders cannot be renamed, and a file is copied first and then removed."""

  def move(source, target, **_):
    if os.path.isdir(source):
      raise OSError(f'{source}: this store has no folders to rename')
    shutil.copyfile(source, target)
    os.unlink(source)

  with monkeypatch.context() as patch:
    for name in ('rename', 'replace', 'renames'):
      patch.setattr(os, name, move)
    yield


def flip(path, rng):
  """One random bit of a file."""
  path = pathlib.Path(path)
  data = bytearray(path.read_bytes())
  bit = int(rng.integers(len(data) * 8))
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)
  return bit


def data_files(step):
  """The files of a step in which Orbax keeps arrays."""
  return sorted(
    path
    for path in pathlib.Path(step).rglob('*')
    if path.is_file() and path.parent.name == 'd'
  )


def pick(files, rng):
  """One of the files, by its size: every bit is as likely."""
  sizes = np.array([path.stat().st_size for path in files], np.float64)
  return files[int(rng.choice(len(files), p=sizes / sizes.sum()))]


@contextlib.contextmanager
def small_disk(folder, kilobytes):
  """A file system of its own of this size, where this process may mount one (root, as in a container); else None."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  done = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'tmpfs', str(folder)],
    check=False,
    capture_output=True,
  )
  try:
    yield None if done.returncode else folder
  finally:
    if not done.returncode:
      subprocess.run(['umount', '-l', str(folder)], check=False)
