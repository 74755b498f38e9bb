"""Reserves a run's folder for one trainer, after checking that it can be written."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import socket
from typing import IO

from etils import epath

from omni_jax.errors import UserError
from omni_jax.paths import is_remote
from omni_jax.run_folder import CHECKPOINTS
from omni_jax.run_log import say

NAME = 'lock'


@contextlib.contextmanager
def exclusive(workdir: str) -> Iterator[None]:
  """Keeps a second trainer out of a folder until the context is left.

  The folder is created if it does not exist. The kernel holds a lock on a file in it,
  which ends with the process that owns it, even after SIGKILL. Object stores have no
  locks: there the scheduler has to start a run only once, and a line in the log says so.

  Raises:
    UserError: if another process holds the lock, or if nothing can be written there.
  """
  folder = epath.Path(workdir)
  try:
    _write_probe(folder)
    lock = contextlib.nullcontext() if is_remote(folder) else _locked_file(folder)
  except OSError as error:
    raise UserError(
      f'--workdir={workdir} cannot be written: {error}; make room there, grant write '
      'access, or use another --workdir'
    ) from error
  if is_remote(folder):
    say(
      workdir,
      f'{workdir} cannot be locked: make sure that no other process trains there',
    )
  with lock:
    yield


def _write_probe(folder: epath.Path) -> None:
  """Creates the folder, and writes and removes a file in it.

  Raises:
    OSError: if one of these fails.
  """
  checkpoints = folder / CHECKPOINTS
  checkpoints.mkdir(parents=True, exist_ok=True)
  probe = checkpoints / f'probe.{os.getpid()}'
  probe.write_text('written before the first step, to check that writing works')
  probe.unlink()


def _locked_file(folder: epath.Path) -> IO[str]:
  """Returns the open lock file, which names its owner; closing it releases the lock."""
  # Closed by the caller, or when the process ends.
  file = open(folder / NAME, 'a+')  # noqa: SIM115
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    other = file.read().strip() or 'unknown'
    file.close()
    raise UserError(
      f'--workdir={folder} is in use by another trainer ({other}): wait until it ends, '
      'stop it, or use another --workdir'
    ) from None
  owner = {'host': socket.gethostname(), 'pid': os.getpid()}
  file.truncate(0)
  file.write(json.dumps(owner) + '\n')
  file.flush()
  return file
