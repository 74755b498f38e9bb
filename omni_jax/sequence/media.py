"""Reads media files as bytes: regular files of a sensible size, on a disk or in a bucket."""

import os
import stat

from etils import epath

from omni_jax.errors import BadRecord
from omni_jax.modalities.files import check_bytes
from omni_jax.retry import patiently

NONBLOCK = getattr(
  os, 'O_NONBLOCK', 0
)  # a pipe would wait for ever for somebody who writes


def read_media(path: epath.PathLike) -> bytes:
  """The bytes of a media file, if it is a regular file of a sensible size; errors that may pass are waited for."""
  try:
    return patiently(lambda: _read_file(path), path)
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
  file = os.open(
    path, os.O_RDONLY | NONBLOCK
  )  # epath, and open(), cost as much as a small picture
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
  while piece := os.read(
    file, status.st_size + 1
  ):  # one byte more: the first piece is all, and the second tells so
    pieces.append(piece)
    check_bytes(sum(map(len, pieces)))
  return pieces[0] if len(pieces) == 1 else b''.join(pieces)


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path lies in a bucket (gs://…), where there are no links and no devices."""
  return '://' in os.fspath(path)
