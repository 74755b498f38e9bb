"""Reads the files of ready sets.

A file that is missing or damaged as a whole is a UserError, a damaged member of an
archive a BadRecord.
"""

from collections.abc import Mapping
import json
import os
import pathlib
import threading
from typing import Any
import zipfile
import zlib

from omni_jax.errors import BadRecord, one_line, UserError
from omni_jax.modalities.files import check_bytes
from omni_jax.retry import with_retries

# Errors of reading a member of a zip file that is damaged, or that Python cannot
# unpack.
DAMAGE = (
  OSError,
  EOFError,
  ValueError,
  NotImplementedError,
  RuntimeError,
  zipfile.BadZipFile,
  zlib.error,
)
# Also errors of a table or of an npz file that holds something else.
UNREADABLE = (*DAMAGE, KeyError, TypeError)


def unusable(path: str, why: object) -> UserError:
  """Returns an error about a file of a set that cannot be used, with what to do."""
  folder = os.path.basename(os.path.dirname(path))
  return UserError(
    f'{path} cannot be used ({why}): config.data.root must name the folder that holds '
    f'{folder}/, whose README.md and SHA256SUMS list the files'
  )


def read_text(path: str) -> str:
  """Returns the text of a UTF-8 file.

  Raises:
    UserError: if the file cannot be read or is not UTF-8.
  """
  try:
    return with_retries(pathlib.Path(path).read_bytes, path).decode()
  except OSError as error:
    raise unusable(path, error.strerror or error) from error
  except UnicodeDecodeError as error:
    raise unusable(path, f'not UTF-8 at byte {error.start}') from error


def json_rows(path: str, fields: Mapping[str, type]) -> list[dict[str, Any]]:
  """Returns the objects of a JSON lines file.

  Args:
    path: the file.
    fields: type of each field that every object must have.

  Raises:
    UserError: if the file cannot be read, or a line is not such an object.
  """
  rows = []
  for number, line in enumerate(read_text(path).split('\n'), start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise unusable(path, f'line {number} is not JSON: {error}') from error
    values = row if isinstance(row, dict) else {}
    wrong = [
      name for name, kind in fields.items() if not isinstance(values.get(name), kind)
    ]
    if wrong:
      raise unusable(path, f'line {number} has no usable {", ".join(wrong)}')
    rows.append(row)
  return rows


class Archive:
  """The members of a zip file.

  Many threads may read it, and it can be pickled: the file is opened at the first read.

  Raises:
    UserError: if the file is missing or damaged.
  """

  def __init__(self, path: str):
    self.path = path
    self._start()
    try:
      with_retries(self._opened, path)
    except DAMAGE as error:
      raise unusable(path, getattr(error, 'strerror', None) or error) from error

  def _start(self) -> None:
    self._zip: zipfile.ZipFile | None = None
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {'path': self.path}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.path = state['path']
    self._start()

  def _opened(self) -> zipfile.ZipFile:
    if self._zip is None:
      self._zip = zipfile.ZipFile(self.path)
    return self._zip

  def read(self, name: str) -> bytes:
    """Returns the bytes of a member, whose checksum is verified.

    Transient errors are retried.

    Raises:
      BadRecord: if there is no such member, or it cannot be read.
    """
    try:
      return with_retries(lambda: self._read(name), self.path)
    except BadRecord:
      raise
    except KeyError as error:
      raise BadRecord(f'is not in {os.path.basename(self.path)}') from error
    except DAMAGE as error:
      raise BadRecord(f'cannot be read ({one_line(error)})') from error

  def _read(self, name: str) -> bytes:
    with self._lock:
      try:
        archive = self._opened()
        check_bytes(archive.getinfo(name).file_size)
        return archive.read(name)
      except OSError:
        self._zip = None  # the next attempt opens it anew
        raise
