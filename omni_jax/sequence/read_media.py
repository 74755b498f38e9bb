"""Reads media files as bytes, from disk or bucket; refuses irregular or huge ones."""

import os
import stat

from etils import epath

from omni_jax.errors import BadRecord
from omni_jax.modalities.files import check_bytes
from omni_jax.paths import is_remote
from omni_jax.retry import with_retries

# Without this flag, opening a pipe would wait forever for a writer.
NONBLOCK = getattr(os, 'O_NONBLOCK', 0)


def read_media(path: epath.PathLike) -> bytes:
  """Returns the bytes of a media file; transient errors are retried.

  Raises:
    BadRecord: if it is missing, not a regular file, too large or unreadable.
  """
  try:
    return with_retries(lambda: _read_file(path), path)
  except FileNotFoundError as error:
    raise BadRecord('no such file') from error
  except IsADirectoryError as error:
    raise BadRecord('is not a regular file') from error
  except OSError as error:
    raise BadRecord(f'cannot be read ({error})') from error


def _read_file(path: epath.PathLike) -> bytes:
  if is_remote(path):
    check_bytes(epath.Path(path).stat().length)
    return epath.Path(path).read_bytes()
  # Not with epath or open(): each costs as much as reading a small picture.
  file = os.open(path, os.O_RDONLY | NONBLOCK)
  try:
    return _read_regular(file)
  finally:
    os.close(file)


def _read_regular(file: int) -> bytes:
  status = os.fstat(file)
  if not stat.S_ISREG(status.st_mode):
    raise BadRecord('is not a regular file')
  check_bytes(status.st_size)
  pieces = []
  size = 0
  # One byte more than the size: the first piece is the whole file, and the second,
  # empty one confirms it.
  while piece := os.read(file, status.st_size + 1):
    pieces.append(piece)
    size += len(piece)
    check_bytes(size)
  return pieces[0] if len(pieces) == 1 else b''.join(pieces)
