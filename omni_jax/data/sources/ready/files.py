"""The files of a ready set: what is missing or damaged as a whole is a UserError, one damaged member a BadRecord."""

from collections.abc import Mapping
import json
import os
import pathlib
import threading
from typing import Any
import zipfile
import zlib

from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.files import MAX_BYTES
from omni_jax.retry import patiently

# What reading a member of a zip file raises where the file is damaged, or packed as Python cannot unpack it.
DAMAGE = (
  OSError,
  EOFError,
  ValueError,
  NotImplementedError,
  RuntimeError,
  zipfile.BadZipFile,
  zlib.error,
)


def unusable(path: str, why: object) -> UserError:
  """That a file of a set cannot be used, and what to do."""
  folder = os.path.basename(os.path.dirname(path))
  return UserError(
    f'{path}: cannot be used ({why}): config.data.root names the folder that holds {folder}/; its '
    'README.md and SHA256SUMS say what belongs there'
  )


def read_text(path: str) -> str:
  """A whole text file."""
  try:
    return patiently(pathlib.Path(path).read_bytes, path).decode()
  except OSError as error:
    raise unusable(path, error.strerror or error) from error
  except UnicodeDecodeError as error:
    raise unusable(path, f'not UTF-8 at byte {error.start}') from error


def json_rows(path: str, fields: Mapping[str, type]) -> list[dict[str, Any]]:
  """The objects of a file of JSON lines; each has the fields, of these types."""
  rows = []
  for number, line in enumerate(read_text(path).split('\n'), start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise unusable(path, f'line {number} is not JSON: {error}') from error
    wrong = [
      name
      for name, kind in fields.items()
      if not isinstance(row, dict) or not isinstance(row.get(name), kind)
    ]
    if wrong:
      raise unusable(path, f'line {number} has no usable {", ".join(wrong)}')
    rows.append(row)
  return rows


class Archive:
  """The members of a zip file. May be read by many threads, and pickled: the file is opened when first read."""

  def __init__(self, path: str):
    self.path = path
    self._start()
    try:
      patiently(self._opened, path)
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
    """The bytes of a member, its checksum compared; errors that may pass are waited for."""
    try:
      return patiently(lambda: self._read(name), self.path)
    except BadRecord:
      raise
    except KeyError as error:
      raise BadRecord(f'is not in {os.path.basename(self.path)}') from error
    except DAMAGE as error:
      raise BadRecord(f'cannot be read ({" ".join(str(error).split())})') from error

  def _read(self, name: str) -> bytes:
    with self._lock:
      try:
        archive = self._opened()
        size = archive.getinfo(name).file_size
        if size > MAX_BYTES:
          raise BadRecord(f'has {size:,} bytes, more than the {MAX_BYTES:,} allowed')
        return archive.read(name)
      except OSError:
        self._zip = None  # opened anew by the next attempt
        raise
