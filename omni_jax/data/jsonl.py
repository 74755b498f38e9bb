"""JSON lines with media files, in the chat form `{"messages": […]}` or the plain form `{"content": […]}`.

The structure of every line is checked when the file is opened (a `UserError` names file and line); media are decoded
when an example is asked for (a `BadRecord` names the example).
"""

import collections
from collections.abc import Callable, Mapping
import hashlib
import json
import operator
import os
import stat
import threading
from typing import Any, SupportsIndex
import weakref

from etils import epath
import numpy as np

from omni_jax.data.media import BadRecord, decode_audio, decode_image, is_remote, read_media
from omni_jax.errors import UserError
from omni_jax.types import MediaConfig

MAX_LINE = 16 << 20  # bytes
CACHE_BYTES = 256 << 20  # of decoded media: later epochs of a small set cost no decoding
ROLES = ('user', 'assistant')
MESSAGE_STRINGS = ('language', 'task', 'voice')  # optional keys of a message
# Optional keys of a medium: what it shows or says, who speaks. The model never sees them; judges are fitted to them.
LABELS: Mapping[str, tuple[str, ...]] = {'image': ('label',), 'audio': ('label', 'voice')}

Example = dict[str, Any]
Part = dict[str, Any]

# How each medium goes from bytes to the part that an example holds.
DECODE: Mapping[str, Callable[[bytes, MediaConfig], Part]] = {
    'image': lambda data, media: {'type': 'image', 'pixels': decode_image(data, media.image)},
    'audio': lambda data, media: {'type': 'audio', 'wave': decode_audio(data, media.audio)},
}


def check_path(path: Any) -> str:
  """A media path as written in a JSON line: relative, and inside the file's folder."""
  if not isinstance(path, str) or not path or '\0' in path:
    raise BadRecord(f'path {path!r} is not a file name')
  if '\\' in path:
    raise BadRecord(f'path {path!r} has backslashes: separate folders by /')
  if path.startswith('/') or '://' in path or '..' in path.split('/'):
    raise BadRecord(f'path {path!r} leaves the folder of the JSON lines file: put the media in it, use a relative path')
  return path


def check_data(data: Any) -> bytes:
  """Encoded media inside a record."""
  if not isinstance(data, bytes):
    raise BadRecord(f'data is of type {type(data).__name__}, not bytes')
  return data


# Where an encoded medium is: beside the file ('path': JSON lines) or in the record itself ('data': ArrayRecord).
MEDIA_KEYS: Mapping[str, Callable[[Any], str | bytes]] = {'path': check_path, 'data': check_data}


def check_example(raw: Any, media_key: str) -> Example:
  """The example with its structure checked: id a string ('' if none), content always a list of parts.

  Args:
    raw: what JSON or msgpack returned.
    media_key: 'path' or 'data', the key under which an image or audio part keeps its medium.
  """
  _check_keys(raw, 'the example', required=(), optional=('messages', 'content', 'id', 'meta'))
  if ('messages' in raw) == ('content' in raw):
    raise BadRecord('needs exactly one of "messages" (a chat) and "content" (plain)')
  id = raw.get('id', '')
  if not isinstance(id, str | int) or isinstance(id, bool):
    raise BadRecord(f'"id" is {id!r}, not a string')
  example = {'id': _check_text(str(id), '"id"')}
  if 'meta' in raw:
    if not isinstance(raw['meta'], dict):
      raise BadRecord(f'"meta" is of type {type(raw["meta"]).__name__}, not an object')
    example['meta'] = raw['meta']
  if 'content' in raw:
    return example | {'content': _check_content(raw['content'], 'content', media_key)}
  messages = raw['messages']
  if not isinstance(messages, list) or not messages:
    raise BadRecord('"messages" is not a list of at least one message')
  return example | {'messages': [_check_message(m, f'messages[{i}]', media_key) for i, m in enumerate(messages)]}


def _check_message(raw: Any, where: str, media_key: str) -> dict[str, Any]:
  _check_keys(raw, where, required=('role', 'content'), optional=MESSAGE_STRINGS)
  if raw['role'] not in ROLES:
    raise BadRecord(f'{where}: role {raw["role"]!r} is none of {", ".join(ROLES)}')
  strings = {key: _check_text(raw[key], f'{where}: "{key}"') for key in MESSAGE_STRINGS if key in raw}
  if '' in strings.values():
    raise BadRecord(f'{where}: empty {" or ".join(key for key in strings if not strings[key])}: leave the key out')
  return {'role': raw['role'], **strings, 'content': _check_content(raw['content'], f'{where}.content', media_key)}


def _check_content(raw: Any, where: str, media_key: str) -> list[Part]:
  if isinstance(raw, str):
    raw = [{'type': 'text', 'text': raw}]
  if not isinstance(raw, list) or not raw:
    raise BadRecord(f'{where} is neither a string nor a list of at least one part')
  return [_check_part(part, f'{where}[{i}]', media_key) for i, part in enumerate(raw)]


def _check_part(raw: Any, where: str, media_key: str) -> Part:
  kind = raw.get('type') if isinstance(raw, dict) else None
  if not isinstance(kind, str) or kind not in ('text', *DECODE):
    raise BadRecord(f'{where}: type {kind!r} is none of text, {", ".join(DECODE)}')
  if kind == 'text':
    _check_keys(raw, where, required=('type', 'text'), optional=())
    return {'type': 'text', 'text': _check_text(raw['text'], f'{where}: "text"')}
  digest = ('digest',) if media_key == 'data' else ()
  _check_keys(raw, where, required=('type', media_key), optional=(*LABELS[kind], *digest))
  kept = {key: _check_text(raw[key], f'{where}: "{key}"') for key in LABELS[kind] if key in raw}
  try:
    kept |= {key: check_data(raw[key]) for key in digest if key in raw}
    return {'type': kind, media_key: MEDIA_KEYS[media_key](raw[media_key]), **kept}
  except BadRecord as error:
    raise BadRecord(f'{where}: {error.reason}') from error


def _check_keys(raw: Any, where: str, *, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
  if not isinstance(raw, dict):
    raise BadRecord(f'{where} is of type {type(raw).__name__}, not an object')
  known = required + optional
  if missing := [key for key in required if key not in raw]:
    raise BadRecord(f'{where}: without {", ".join(missing)}')
  if unknown := [str(key) for key in raw if key not in known]:  # a misspelt key would be ignored in silence
    hint = '; fields of your own go under "meta"' if 'meta' in known else ''
    raise BadRecord(f'{where}: unknown {", ".join(unknown)}; known are {", ".join(known)}{hint}')


def _check_text(text: Any, where: str) -> str:
  if not isinstance(text, str):
    raise BadRecord(f'{where} is of type {type(text).__name__}, not a string')
  try:
    text.encode()
  except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which no tokenizer takes
    raise BadRecord(f'{where} holds half a surrogate pair at character {error.start}') from error
  return text


def map_media(example: Example, change: Callable[[Part], Part]) -> Example:
  """The example with every image and audio part replaced; texts and labels stay."""

  def mapped(content: list[Part]) -> list[Part]:
    return [part if part['type'] == 'text' else change(part) | labels_of(part) for part in content]

  if 'content' in example:
    return example | {'content': mapped(example['content'])}
  return example | {'messages': [m | {'content': mapped(m['content'])} for m in example['messages']]}


def labels_of(part: Part) -> dict[str, str]:
  """The label of a medium and its voice, as far as they are known."""
  return {key: part[key] for key in LABELS[part['type']] if key in part}


class MediaCache:
  """Decoded parts by name, least recently used out first, bounded by the bytes of their arrays. Thread-safe."""

  def __init__(self, max_bytes: int):
    self._max_bytes = max_bytes
    self._bytes = 0
    self._parts: collections.OrderedDict[tuple[str, str], Part] = collections.OrderedDict()
    self._lock = threading.Lock()

  def get(self, name: tuple[str, str], make: Callable[[], Part]) -> Part:
    with self._lock:
      if name in self._parts:
        self._parts.move_to_end(name)
        return dict(self._parts[name])
    part = make()  # outside the lock: threads decode side by side, at worst one medium twice
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


class JsonLines(collections.abc.Sequence):
  """The examples of one file, in random order of access: texts as they are, media as arrays of the run's size.

  Holds the offsets of the lines, not the lines; may be read by many threads, and pickled into worker processes.
  """

  def __init__(self, path: epath.PathLike, media: MediaConfig, *, cache_bytes: int = CACHE_BYTES):
    self.path = epath.Path(path)
    self._name, self._folder = self.path.name, os.fspath(self.path.parent)  # epath takes as long as reading a line
    self.media = media
    self._cache_bytes = cache_bytes
    self._cache = MediaCache(cache_bytes)
    self._file: int | None = None
    self._lines_n3 = index_lines(self.path, parse_line)  # start and length in bytes, line number; mistakes found now

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in self.__dict__.items() if key not in ('_cache', '_file')}  # neither pickles

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _cache=MediaCache(state['_cache_bytes']), _file=None)

  def __len__(self) -> int:
    return len(self._lines_n3)

  def identity(self) -> str:
    """Digest of the file; media beside it are not looked at."""
    with self.path.open('rb') as file:
      digest = hashlib.blake2b(digest_size=8)
      while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()

  def __getitem__(self, index: SupportsIndex) -> Example:
    example = self.encoded(index)
    try:
      return map_media(example, self.decode)
    except BadRecord as error:
      raise BadRecord(error.reason, example['id']) from error

  def encoded(self, index: SupportsIndex) -> Example:
    """The example with the paths of its media, nothing decoded."""
    index = operator.index(index)
    if not -len(self) <= index < len(self):
      raise IndexError(f'example {index} of {len(self)}')
    start, length, number = (int(value) for value in self._lines_n3[index])
    name = f'{self._name}:{number}'
    try:
      example = parse_line(self._read(start, length))
    except (OSError, BadRecord) as error:
      raise BadRecord(f'the file has changed since it was opened ({error})', name) from error
    return example | {'id': example['id'] or name}

  def _read(self, start: int, length: int) -> bytes:
    if self._file is None and is_remote(self.path):
      with self.path.open('rb') as file:
        file.seek(start)
        return file.read(length)
    if self._file is None:  # opened once: that costs more than parsing a line
      self._file = os.open(self.path, os.O_RDONLY)
      weakref.finalize(self, os.close, self._file)
    return os.pread(self._file, length, start)  # threads share no position

  def read_file(self, path: str) -> bytes:
    """The bytes of a medium by its path in the file."""
    return read_beside(self._folder, path)

  def decode(self, part: Part) -> Part:
    """A medium as an array of the run's size, from its path; kept for the next time."""
    kind, path = part['type'], part['path']
    try:
      return self._cache.get((kind, path), lambda: DECODE[kind](self.read_file(path), self.media))
    except BadRecord as error:
      raise BadRecord(f'{path}: {error.reason}') from error


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


def read_prompt(path: epath.PathLike, media: MediaConfig) -> Example:
  """One example of a .json file, decoded; a last message of the assistant may be empty: that is what is to be written.

  Raises:
    UserError: for a file that is missing or is no such example, naming what is wrong with it.
  """
  file = epath.Path(path)
  try:
    raw = _load_json(file.read_bytes())
    messages = raw.get('messages') if isinstance(raw, dict) else None
    answer = []
    last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
    if isinstance(last, dict) and not last.get('content'):
      answer = [_check_message(last | {'content': ' '}, 'the last message', 'path') | {'content': []}]
      raw = raw | {'messages': messages[:-1]}
    example = map_media(check_example(raw, 'path'),
                        lambda part: DECODE[part['type']](read_beside(os.fspath(file.parent), part['path']), media))
  except (OSError, BadRecord) as error:
    raise UserError(f'prompt {file}: {error}') from error
  return example | {'messages': example['messages'] + answer} if answer else example


def read(path: epath.PathLike, media: MediaConfig) -> list[Example]:
  """All examples of a file, decoded."""
  return list(JsonLines(path, media))


def parse_line(line: bytes) -> Example:
  """The example of a line, its structure checked."""
  return check_example(_load_json(line), 'path')


def _load_json(line: bytes) -> Any:
  try:
    return json.loads(line.decode('utf-8'))
  except UnicodeDecodeError as error:
    raise BadRecord(f'not UTF-8 at byte {error.start}: save the file as UTF-8') from error
  except json.JSONDecodeError as error:
    raise BadRecord(f'not JSON at character {error.pos + 1} ({error.msg}): one whole object a line') from error
  except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested thousands deep
    raise BadRecord(f'not usable JSON ({error})') from error


def index_lines(path: epath.Path, check: Callable[[bytes], Any] = lambda line: None) -> np.ndarray:
  """Start, length and number of every line that is not blank, (lines, 3); `check` may refuse a line by BadRecord."""
  lines = []
  try:
    with path.open('rb') as file:
      start, number = 0, 0
      while line := file.readline(MAX_LINE + 1):
        number += 1
        bom = 3 if number == 1 and line.startswith(b'\xef\xbb\xbf') else 0  # some editors put a mark before the text
        if len(line) > MAX_LINE:
          raise BadRecord(f'longer than {MAX_LINE:,} bytes: one object a line, media in files beside it')
        if line[bom:].strip():
          check(line[bom:])
          lines.append((start + bom, len(line) - bom, number))
        start += len(line)
  except BadRecord as error:
    raise UserError(f'{path} line {number}: {error.reason}') from error
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror or error}): name a file of JSON lines') from error
  if not lines:
    raise UserError(f'{path}: holds no examples: write one JSON object a line')
  return np.array(lines, np.int64)
