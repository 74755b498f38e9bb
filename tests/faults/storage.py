"""Imitates storage that fails: crashes, no renames, flipped bits and full disks."""

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
}  # names of audit events

# Orbax writes these files of a step after the manifest, and nobody reads them.
UNREAD = ('_CHECKPOINT_METADATA', 'commit_success.txt')


class Crash(BaseException):
  """Takes the place of SIGKILL: nothing is written after it."""


class _Recorder:
  """Records every write of Python below a folder, through audit events."""

  def __init__(self):
    self.folder = None
    self.writes_left = None  # writes before the crash; None for no crash
    self.writes = []
    self._lock = threading.Lock()
    self._installed = False

  def install(self):
    if not self._installed:
      sys.addaudithook(self._hook)
      self._installed = True

  def _hook(self, event, arguments):
    if self.folder is None:
      return
    if event == 'open':
      if not _opens_for_writing(*arguments):
        return
    elif event not in WRITES:
      return
    path = _text_of(arguments[0])
    # Relative paths are those of shutil.rmtree, inside of a folder that it has open.
    if os.path.isabs(path) and not path.startswith(self.folder):
      return
    with self._lock:
      self.writes.append((event, path))
      if self.writes_left is None:
        return
      self.writes_left -= 1
      if self.writes_left < 0:
        raise Crash(f'{event} {path}')


def _opens_for_writing(path, mode, flags):
  if isinstance(path, int):
    return False
  if isinstance(mode, str) and set(mode) & set('wax+'):
    return True
  return bool(flags & (os.O_WRONLY | os.O_RDWR))


def _text_of(path):
  """Returns a path as text; '' for a file descriptor."""
  if isinstance(path, int):
    return ''
  path = os.fspath(path)
  return path.decode() if isinstance(path, bytes) else path


_recorder = _Recorder()


@contextlib.contextmanager
def record_writes(folder, *, crash_at=None):
  """Records the writes below a folder, and yields the list of (event, path).

  Args:
    folder: folder whose writes are recorded.
    crash_at: number of the write, counted from 0, from which on every write raises
      Crash; None for no crash.
  """
  _recorder.install()
  _recorder.folder = str(folder)
  _recorder.writes_left = crash_at
  _recorder.writes = []
  try:
    yield _recorder.writes
  finally:
    _recorder.folder = None


@contextlib.contextmanager
def without_rename(monkeypatch):
  """Imitates gs://: folders cannot be renamed, and files are copied and then removed."""

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
  """Flips one random bit of a file."""
  path = pathlib.Path(path)
  data = bytearray(path.read_bytes())
  bit = int(rng.integers(len(data) * 8))
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def files_below(folder):
  """Returns all files below a folder, at any depth."""
  return [path for path in pathlib.Path(folder).rglob('*') if path.is_file()]


def files_read(step):
  """Returns the files of a step that restoring reads."""
  unread = [step / name for name in UNREAD]
  return [path for path in files_below(step) if path not in unread]


def data_files(step):
  """Returns the files of a step in which Orbax keeps arrays."""
  return sorted(path for path in files_below(step) if path.parent.name == 'd')


def largest(files):
  """Returns the largest of these files."""
  return max(files, key=lambda path: path.stat().st_size)


def flip_in_arrays(folder, seed):
  """Flips one random bit of the largest file with arrays below a folder."""
  flip(largest(data_files(folder)), np.random.default_rng(seed))


def pick(files, rng):
  """Returns a random file, with probabilities in proportion to their sizes."""
  sizes = np.array([path.stat().st_size for path in files], np.float64)
  return files[int(rng.choice(len(files), p=sizes / sizes.sum()))]


@contextlib.contextmanager
def small_disk(folder, kilobytes):
  """Mounts a file system of this size on a folder, which it creates and yields.

  It yields None if this process may not mount one. Root may, as in a container.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  options = f'size={kilobytes}k'
  result = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)],
    check=False,
    capture_output=True,
  )
  is_mounted = not result.returncode
  try:
    yield folder if is_mounted else None
  finally:
    if is_mounted:
      subprocess.run(['umount', '-l', str(folder)], check=False)
