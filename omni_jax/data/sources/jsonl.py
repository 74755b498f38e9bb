"""Reads JSON lines with media files beside them.

A line has the chat form `{"messages": […]}` or the plain form `{"content": […]}`. The
structure of every line is checked when the file is opened (a `UserError` names file and
line); media are decoded when an example is read (a `BadRecord` names the example).
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
from omni_jax.mirror import local_copy
from omni_jax.modalities.hosts import Hosts
from omni_jax.paths import is_remote
from omni_jax.retry import with_retries
from omni_jax.sequence.example import (
  check_example,
  check_message,
  check_path,
  decoded_part,
  Example,
  map_media,
  Part,
  StoredExamplesBase,
)
from omni_jax.sequence.read_media import read_media

MAX_LINE = 16 << 20  # bytes
# Size of the cache of decoded media: later epochs of a small set need no decoding.
CACHE_BYTES = 256 << 20
BYTE_ORDER_MARK = b'\xef\xbb\xbf'  # some editors put it before the text


class MediaCache:
  """Keeps decoded parts by name, up to a number of bytes of their arrays. Thread-safe.

  The least recently used parts are dropped first.
  """

  def __init__(self, max_bytes: int):
    self._max_bytes = max_bytes
    self._bytes = 0
    self._parts: collections.OrderedDict[tuple[str, str], Part] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def get(self, name: tuple[str, str], make: Callable[[], Part]) -> Part:
    """Returns a copy of the part with a name; calls `make` if it is not cached.

    Its arrays are shared and read-only.
    """
    with self._lock:
      if name in self._parts:
        self._parts.move_to_end(name)
        return dict(self._parts[name])
    # Outside the lock, so that threads decode in parallel; at worst one medium twice.
    part = make()
    for array in _arrays(part):
      array.flags.writeable = False
    with self._lock:
      if name not in self._parts:
        self._parts[name] = part
        self._bytes += _size(part)
      while self._bytes > self._max_bytes:
        _, dropped = self._parts.popitem(last=False)
        self._bytes -= _size(dropped)
    return dict(part)


def _arrays(part: Part) -> list[np.ndarray]:
  return [value for value in part.values() if isinstance(value, np.ndarray)]


def _size(part: Part) -> int:
  return sum(array.nbytes for array in _arrays(part))


class JsonLines(StoredExamplesBase):
  """The examples of one JSON lines file, with random access.

  Texts stay as they are; media become arrays of the run's size. It holds the offsets of
  the lines, not the lines; many threads may read it, and worker processes get it by
  pickling.

  Raises:
    UserError: if the file cannot be read or a line has a mistake; file and line are
      named.
  """

  def __init__(
    self, path: epath.PathLike, hosts: Hosts, *, cache_bytes: int = CACHE_BYTES
  ):
    self.path = epath.Path(path)
    # Kept as strings: asking epath takes as long as reading a line.
    self._name = self.path.name
    self._folder = os.fspath(self.path.parent)
    self.hosts = hosts
    self._cache_bytes = cache_bytes
    self._cache = MediaCache(cache_bytes)
    self._file: int | None = None
    # Start and length in bytes, line number.
    self._lines_n3 = index_lines(self.path, parse_line)
    self._local_path = local_copy(os.fspath(self.path))

  def __getstate__(self) -> dict[str, Any]:
    state = dict(self.__dict__)
    # Neither can be pickled.
    del state['_cache']
    del state['_file']
    return state

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._cache = MediaCache(self._cache_bytes)
    self._file = None

  def __len__(self) -> int:
    return len(self._lines_n3)

  def identity(self) -> str:
    """Returns a digest of the file; the media beside it are not read."""

    def read() -> str:
      digest = hashlib.blake2b(digest_size=8)
      with open(self._local_path, 'rb') as file:
        while piece := file.read(1 << 20):
          digest.update(piece)
      return digest.hexdigest()

    return with_retries(read, self.path)

  def encoded(self, index: SupportsIndex) -> Example:
    """Returns an example with the paths of its media, nothing decoded."""
    start, length, number = self._lines_n3[self.checked_index(index)].tolist()
    name = f'{self._name}:{number}'
    try:
      example = parse_line(with_retries(lambda: self._read(start, length), self.path))
    except OSError as error:
      raise BadRecord(f'the line cannot be read ({error})', name) from error
    except BadRecord as error:
      raise BadRecord(
        f'the file has changed since it was opened ({error})', name
      ) from error
    example['id'] = example['id'] or name
    return example

  def _read(self, start: int, length: int) -> bytes:
    """Returns bytes of the file.

    The file is opened only once, since that takes longer than parsing a line.
    """
    file = self._file
    if file is None:
      file = os.open(self._local_path, os.O_RDONLY)
      self._file = file
      weakref.finalize(self, os.close, file)
    try:
      return os.pread(file, length, start)  # threads share no position
    except OSError:
      # The next attempt opens it anew; other threads may still be reading this one.
      self._file = None
      raise

  def read_file(self, path: str) -> bytes:
    """Returns the bytes of a medium at its path in the file."""
    return read_beside(self._folder, path)

  def decode(self, part: Part) -> Part:
    """Returns a part whose medium is decoded, from its path or from the cache."""
    kind = part['type']
    path = part['path']

    def decode_file() -> Part:
      return decoded_part(kind, self.read_file(path), self.hosts)

    try:
      return self._cache.get((kind, path), decode_file)
    except BadRecord as error:
      raise error.at(path) from error


def read_beside(folder: str, path: str) -> bytes:
  """Returns the bytes of a medium in the folder of a JSON lines file.

  Raises:
    BadRecord: if it cannot be read, or is a link that leaves the folder.
  """
  check_path(path)
  if is_remote(folder):
    return read_media(epath.Path(folder) / path)
  file = os.path.join(folder, path)
  if _has_link(folder, path):
    root = os.path.realpath(folder)
    target = os.path.realpath(file)
    if os.path.commonpath([root, target]) != root:
      raise BadRecord('is a link that leaves the folder of the JSON lines file')
  return read_media(file)


def _has_link(folder: str, path: str) -> bool:
  """Returns whether a part of the path below the folder is a link."""
  for part in path.split('/'):
    folder = os.path.join(folder, part)
    try:
      mode = os.lstat(folder).st_mode
    except OSError:  # it does not exist; reading it reports that
      return False
    if stat.S_ISLNK(mode):
      return True
  return False


def read_prompt(path: epath.PathLike, hosts: Hosts) -> Example:
  """Returns the example of a .json file, decoded.

  Its last message may be one of the assistant without content, which is to be written.

  Raises:
    UserError: if the file is missing or holds no such example; it names the mistake.
  """
  file = epath.Path(path)
  folder = os.fspath(file.parent)

  def decode(part: Part) -> Part:
    return decoded_part(part['type'], read_beside(folder, part['path']), hosts)

  try:
    raw = _load_json(with_retries(file.read_bytes, file))
    answer = _empty_answer(raw)
    if answer is not None:
      filled = {**answer, 'content': ' '}
      answer = check_message(filled, ('the last message',), 'path')
      raw = {**raw, 'messages': raw['messages'][:-1]}
    example = map_media(check_example(raw, 'path'), decode)
  except (OSError, BadRecord) as error:
    raise UserError(f'prompt {file}: {error}') from error
  if answer is not None:
    answer['content'] = []
    example['messages'] = [*example['messages'], answer]
  return example


def _empty_answer(raw: Any) -> dict[str, Any] | None:
  """Returns the last message if it follows others and has no content, else None."""
  messages = raw.get('messages') if isinstance(raw, dict) else None
  if not isinstance(messages, list) or len(messages) < 2:
    return None
  last = messages[-1]
  if not isinstance(last, dict) or last.get('content'):
    return None
  return last


def read(path: epath.PathLike, hosts: Hosts) -> list[Example]:
  """Returns all examples of a file, decoded."""
  return list(JsonLines(path, hosts))


def parse_line(line: bytes) -> Example:
  """Returns the example of a line with its structure checked. Raises BadRecord."""
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
      f'not JSON at character {error.pos + 1} ({error.msg}): write one complete object '
      'per line'
    ) from error
  except (ValueError, RecursionError) as error:
    # A number of thousands of digits, or brackets nested thousands deep.
    raise BadRecord(f'not usable JSON ({error})') from error


def index_lines(
  path: epath.Path, check: Callable[[bytes], Any] | None = None
) -> np.ndarray:
  """Returns the places of the lines of a file, int64 (lines, 3), without blank lines.

  The columns are start and length in bytes, and the line number from 1.

  Args:
    path: the file.
    check: function that is called with each line; a BadRecord refuses the line.

  Raises:
    UserError: if the file cannot be read, is empty, or a line is refused or too long.
  """
  try:
    lines = with_retries(lambda: _lines_of(path, check), path)
  except OSError as error:
    raise UserError(
      f'{path} cannot be read ({error.strerror or error}): name a file of JSON lines'
    ) from error
  if not lines:
    raise UserError(f'{path} holds no examples: write one JSON object per line')
  return np.array(lines, np.int64)


def _lines_of(
  path: epath.Path, check: Callable[[bytes], Any] | None
) -> list[tuple[int, int, int]]:
  lines: list[tuple[int, int, int]] = []
  start = 0
  number = 0
  with epath.Path(local_copy(os.fspath(path))).open('rb') as file:
    while line := file.readline(MAX_LINE + 1):
      number += 1
      text = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
      try:
        if len(line) > MAX_LINE:
          raise BadRecord(
            f'longer than {MAX_LINE:,} bytes: write one object per line, and put media '
            'in files'
          )
        if text.strip():
          if check is not None:
            check(text)
          text_start = start + len(line) - len(text)
          lines.append((text_start, len(text), number))
      except BadRecord as error:
        raise UserError(f'{path} line {number}: {error.reason}') from error
      start += len(line)
  return lines
