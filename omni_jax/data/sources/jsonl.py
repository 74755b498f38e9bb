"""JSON lines with media files, in the chat form `{"messages": […]}` or the plain form `{"content": […]}`.

The structure of every line is checked when the file is opened (a `UserError` names file and line); media are decoded
when an example is asked for (a `BadRecord` names the example).
"""

import collections
from collections.abc import Callable
import hashlib
import json
import os
import stat
import threading
from typing import Any, SupportsIndex
import weakref

from etils import epath
import numpy as np

from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.hosts import Hosts
from omni_jax.retry import patiently
from omni_jax.sequence.example import (
  check_example,
  check_message,
  check_path,
  decoded_part,
  Example,
  map_media,
  Part,
  Stored,
)
from omni_jax.sequence.media import is_remote, read_media

MAX_LINE = 16 << 20  # bytes
CACHE_BYTES = (
  256 << 20
)  # of decoded media: later epochs of a small set cost no decoding


class MediaCache:
  """Decoded parts by name, least recently used out first, bounded by the bytes of their arrays. Thread-safe."""

  def __init__(self, max_bytes: int):
    self._max_bytes = max_bytes
    self._bytes = 0
    self._parts: collections.OrderedDict[tuple[str, str], Part] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def get(self, name: tuple[str, str], make: Callable[[], Part]) -> Part:
    with self._lock:
      if name in self._parts:
        self._parts.move_to_end(name)
        return dict(self._parts[name])
    part = (
      make()
    )  # outside the lock: threads decode side by side, at worst one medium twice
    for array in _arrays(part):
      array.flags.writeable = False  # it is shared by every epoch
    with self._lock:
      if name not in self._parts:
        self._parts[name] = part
        self._bytes += _size(part)
      while self._bytes > self._max_bytes:
        self._bytes -= _size(self._parts.popitem(last=False)[1])
    return dict(part)


def _arrays(part: Part) -> list[np.ndarray]:
  return [value for value in part.values() if isinstance(value, np.ndarray)]


def _size(part: Part) -> int:
  return sum(array.nbytes for array in _arrays(part))


class JsonLines(Stored):
  """The examples of one file, in random order of access: texts as they are, media as arrays of the run's size.

  Holds the offsets of the lines, not the lines; may be read by many threads, and pickled into worker processes.
  """

  def __init__(
    self, path: epath.PathLike, hosts: Hosts, *, cache_bytes: int = CACHE_BYTES
  ):
    self.path = epath.Path(path)
    self._name, self._folder = (
      self.path.name,
      os.fspath(self.path.parent),
    )  # epath takes as long as reading a line
    self.hosts = hosts
    self._cache_bytes = cache_bytes
    self._cache = MediaCache(cache_bytes)
    self._file: int | None = None
    self._lines_n3 = index_lines(
      self.path, parse_line
    )  # start and length in bytes, line number; mistakes found now

  def __getstate__(self) -> dict[str, Any]:
    return {
      key: value
      for key, value in self.__dict__.items()
      if key not in ('_cache', '_file')
    }  # neither pickles

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _cache=MediaCache(state['_cache_bytes']), _file=None)

  def __len__(self) -> int:
    return len(self._lines_n3)

  def identity(self) -> str:
    """Digest of the file; media beside it are not looked at."""

    def read() -> str:
      with self.path.open('rb') as file:
        digest = hashlib.blake2b(digest_size=8)
        while piece := file.read(1 << 20):
          digest.update(piece)
      return digest.hexdigest()

    return patiently(read, self.path)

  def encoded(self, index: SupportsIndex) -> Example:
    """The example with the paths of its media, nothing decoded."""
    start, length, number = self._lines_n3[self.place(index)].tolist()
    name = f'{self._name}:{number}'
    try:
      example = parse_line(patiently(lambda: self._read(start, length), self.path))
    except OSError as error:
      raise BadRecord(f'the line cannot be read ({error})', name) from error
    except BadRecord as error:
      raise BadRecord(
        f'the file has changed since it was opened ({error})', name
      ) from error
    example['id'] = example['id'] or name
    return example

  def _read(self, start: int, length: int) -> bytes:
    file = self._file
    if file is None and is_remote(self.path):
      with self.path.open('rb') as remote:
        remote.seek(start)
        return remote.read(length)
    if file is None:  # opened once: that costs more than parsing a line
      self._file = file = os.open(self.path, os.O_RDONLY)
      weakref.finalize(self, os.close, file)
    try:
      return os.pread(file, length, start)  # threads share no position
    except OSError:
      self._file = None  # opened anew by the next attempt; other threads may still read by this one
      raise

  def read_file(self, path: str) -> bytes:
    """The bytes of a medium by its path in the file."""
    return read_beside(self._folder, path)

  def decode(self, part: Part) -> Part:
    """From its path; kept for the next time."""
    kind, path = part['type'], part['path']
    try:
      return self._cache.get(
        (kind, path), lambda: decoded_part(kind, self.read_file(path), self.hosts)
      )
    except BadRecord as error:
      raise error.at(path) from error


def read_beside(folder: str, path: str) -> bytes:
  """The bytes of a medium; a link may not lead out of the folder."""
  check_path(path)
  if is_remote(folder):
    return read_media(epath.Path(folder) / path)
  file = os.path.join(folder, path)
  if _has_link(folder, path):
    root = os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(file)]) != root:
      raise BadRecord('is a link that leaves the folder of the JSON lines file')
  return read_media(file)


def _has_link(folder: str, path: str) -> bool:
  """Whether a part of the path below the folder is a link."""
  for part in path.split('/'):
    folder = os.path.join(folder, part)
    try:
      if stat.S_ISLNK(os.lstat(folder).st_mode):
        return True
    except OSError:  # it is not there: reading says so
      return False
  return False


def read_prompt(path: epath.PathLike, hosts: Hosts) -> Example:
  """One example of a .json file, decoded; a last message of the assistant may be empty: that is what is to be written.

  Raises:
    UserError: for a file that is missing or is no such example, naming what is wrong with it.
  """
  file = epath.Path(path)
  try:
    raw = _load_json(patiently(file.read_bytes, file))
    messages = raw.get('messages') if isinstance(raw, dict) else None
    answer = []
    last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
    if isinstance(last, dict) and not last.get('content'):
      answer = [
        check_message(last | {'content': ' '}, ('the last message',), 'path')
        | {'content': []}
      ]
      raw = raw | {'messages': messages[:-1]}
    example = map_media(
      check_example(raw, 'path'),
      lambda part: decoded_part(
        part['type'], read_beside(os.fspath(file.parent), part['path']), hosts
      ),
    )
  except (OSError, BadRecord) as error:
    raise UserError(f'prompt {file}: {error}') from error
  return example | {'messages': example['messages'] + answer} if answer else example


def read(path: epath.PathLike, hosts: Hosts) -> list[Example]:
  """All examples of a file, decoded."""
  return list(JsonLines(path, hosts))


def parse_line(line: bytes) -> Example:
  """The example of a line, its structure checked."""
  return check_example(_load_json(line), 'path')


def _load_json(line: bytes) -> Any:
  try:
    return json.loads(line.decode('utf-8'))
  except UnicodeDecodeError as error:
    raise BadRecord(
      f'not UTF-8 at byte {error.start}: save the file as UTF-8'
    ) from error
  except json.JSONDecodeError as error:
    raise BadRecord(
      f'not JSON at character {error.pos + 1} ({error.msg}): one whole object a line'
    ) from error
  except (
    ValueError,
    RecursionError,
  ) as error:  # a number of thousands of digits; brackets nested thousands deep
    raise BadRecord(f'not usable JSON ({error})') from error


def index_lines(
  path: epath.Path, check: Callable[[bytes], Any] = lambda line: None
) -> np.ndarray:
  """Start, length and number of every line that is not blank, (lines, 3); `check` may refuse a line by BadRecord."""
  try:
    lines = patiently(lambda: _lines_of(path, check), path)
  except OSError as error:
    raise UserError(
      f'{path}: cannot be read ({error.strerror or error}): name a file of JSON lines'
    ) from error
  if not lines:
    raise UserError(f'{path}: holds no examples: write one JSON object a line')
  return np.array(lines, np.int64)


def _lines_of(
  path: epath.Path, check: Callable[[bytes], Any]
) -> list[tuple[int, int, int]]:
  lines = []
  with path.open('rb') as file:
    start, number = 0, 0
    while line := file.readline(MAX_LINE + 1):
      number += 1
      bom = (
        3 if number == 1 and line.startswith(b'\xef\xbb\xbf') else 0
      )  # some editors put a mark before the text
      try:
        if len(line) > MAX_LINE:
          raise BadRecord(
            f'longer than {MAX_LINE:,} bytes: one object a line, media in files beside it'
          )
        if line[bom:].strip():
          check(line[bom:])
          lines.append((start + bom, len(line) - bom, number))
      except BadRecord as error:
        raise UserError(f'{path} line {number}: {error.reason}') from error
      start += len(line)
  return lines
