"""A run's folder belongs to one trainer at a time, and can be written: found out before anything is."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import socket
from typing import IO

from etils import epath

from omni_jax.errors import UserError
from omni_jax.run_log import say

NAME = 'lock'


def is_local(path: epath.PathLike) -> bool:
  return '://' not in os.fspath(path)


@contextlib.contextmanager
def claimed(workdir: str) -> Iterator[None]:
  """Keeps the folder, which is made where there is none, from a second trainer until the context is left.

  A lock of the kernel on a file in it: it ends with its owner, be it by SIGKILL. Object stores have none: there it is
  up to the scheduler to start a run once, which a line in the log recalls.

  Raises:
    UserError: if another process has it, or if nothing can be written there.
  """
  folder = epath.Path(workdir)
  try:
    (folder / 'checkpoints').mkdir(parents=True, exist_ok=True)
    probe = folder / 'checkpoints' / f'probe.{os.getpid()}'
    probe.write_text('written before the first step, to see that it can be')
    probe.unlink()
    held = _held(folder) if is_local(folder) else contextlib.nullcontext()
  except OSError as error:
    raise UserError(
      f'--workdir={workdir} cannot be written: {error}; make room there or rights to it, or take another'
    ) from error
  if not is_local(folder):
    say(
      workdir,
      f'{workdir} cannot be locked: see to it that no other process trains there',
    )
  with held:
    yield


def _held(folder: epath.Path) -> IO[str]:
  """The open lock file, with its owner's name in it; its close gives the lock back."""
  file = open(folder / NAME, 'a+')  # noqa: SIM115 (closed by the caller, or with the process)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    owner = file.read().strip() or 'unknown'
    file.close()
    raise UserError(
      f'--workdir={folder} is in use by another trainer ({owner}): wait for its end or stop it, or take '
      'another --workdir'
    ) from None
  file.truncate(0)
  file.write(json.dumps({'host': socket.gethostname(), 'pid': os.getpid()}) + '\n')
  file.flush()
  return file
