"""The form of an example: its structure checked, its media decoded; what all stored examples have in common."""

from collections.abc import Callable, Mapping, Sequence
import operator
from typing import Any, NamedTuple, SupportsIndex

from omni_jax.errors import BadRecord
from omni_jax.modalities.hosts import HOSTS, Hosts, TEXT

ROLES = ('user', 'assistant')
MESSAGE_STRINGS = ('language', 'task', 'voice')  # optional keys of a message
MEDIA = {name: host for name, (_, host) in HOSTS.items() if name != TEXT}

Example = dict[str, Any]
Part = dict[str, Any]


def decoded_part(kind: str, data: bytes, hosts: Hosts) -> Part:
  """Returns the part that an example holds of an encoded medium. Raises BadRecord."""
  host = hosts.of_part(kind)
  return {'type': kind, host.key: host.decode(data)}


def check_path(path: Any) -> str:
  """A media path as written in a JSON line: relative, and inside the file's folder."""
  if not isinstance(path, str) or not path or '\0' in path:
    raise BadRecord(f'path {path!r} is not a file name')
  if '\\' in path:
    raise BadRecord(f'path {path!r} has backslashes: separate folders by /')
  if path.startswith('/') or '://' in path or '..' in path.split('/'):
    raise BadRecord(
      f'path {path!r} leaves the folder of the JSON lines file: put the media in it, use a relative path'
    )
  return path


def check_data(data: Any) -> bytes:
  """Encoded media inside a record."""
  if not isinstance(data, bytes):
    raise BadRecord(f'data is of type {type(data).__name__}, not bytes')
  return data


# Where an encoded medium is: beside the file ('path': JSON lines) or in the record itself ('data': ArrayRecord).
MEDIA_KEYS: Mapping[str, Callable[[Any], str | bytes]] = {
  'path': check_path,
  'data': check_data,
}


class Keys(NamedTuple):
  """Which keys an object has."""

  known: tuple[str, ...]
  required: frozenset[str]
  all: frozenset[str]

  @classmethod
  def of(cls, *required: str, optional: tuple[str, ...] = ()) -> 'Keys':
    return cls(required + optional, frozenset(required), frozenset(required + optional))


EXAMPLE_KEYS = Keys.of(optional=('messages', 'content', 'id', 'meta'))
MESSAGE_KEYS = Keys.of('role', 'content', optional=MESSAGE_STRINGS)


def _part_keys(where: str) -> dict[str, Keys]:
  """Returns the keys of a part by its type, where media are under the key `where`."""
  keys = {TEXT: Keys.of('type', 'text')}
  for name, host in MEDIA.items():
    beside = host.record_keys if where == 'data' else ()
    keys[name] = Keys.of('type', where, optional=host.labels + beside)
  return keys


PART_KEYS = {where: _part_keys(where) for where in MEDIA_KEYS}

Where = tuple[
  str | int, ...
]  # a place in an example, put into words only for those who did something wrong there


def _words(where: Where) -> str:
  return ''.join(
    f'[{step}]' if isinstance(step, int) else f'.{step}' for step in where
  ).removeprefix('.')


def check_example(raw: Any, media_key: str) -> Example:
  """The example with its structure checked: id a string ('' if none), content always a list of parts.

  Args:
    raw: what JSON or msgpack returned.
    media_key: 'path' or 'data', the key under which an image or audio part keeps its medium.
  """
  _check_keys(raw, ('the example',), EXAMPLE_KEYS)
  if ('messages' in raw) == ('content' in raw):
    raise BadRecord('needs exactly one of "messages" (a chat) and "content" (plain)')
  id = raw.get('id', '')
  if not isinstance(id, str | int) or isinstance(id, bool):
    raise BadRecord(f'"id" is {id!r}, not a string')
  example = {'id': _check_text(str(id), (), 'id')}
  if 'meta' in raw:
    if not isinstance(raw['meta'], dict):
      raise BadRecord(f'"meta" is of type {type(raw["meta"]).__name__}, not an object')
    example['meta'] = raw['meta']
  if 'content' in raw:
    return example | {
      'content': _check_content(raw['content'], ('content',), media_key)
    }
  messages = raw['messages']
  if not isinstance(messages, list) or not messages:
    raise BadRecord('"messages" is not a list of at least one message')
  example['messages'] = [
    check_message(m, ('messages', i), media_key) for i, m in enumerate(messages)
  ]
  return example


def check_message(raw: Any, where: Where, media_key: str) -> dict[str, Any]:
  _check_keys(raw, where, MESSAGE_KEYS)
  if raw['role'] not in ROLES:
    raise BadRecord(
      f'{_words(where)}: role {raw["role"]!r} is none of {", ".join(ROLES)}'
    )
  strings = {
    key: _check_text(raw[key], where, key) for key in MESSAGE_STRINGS if key in raw
  }
  if '' in strings.values():
    empty = ' or '.join(key for key in strings if not strings[key])
    raise BadRecord(f'{_words(where)}: empty {empty}: leave the key out')
  return {
    'role': raw['role'],
    **strings,
    'content': _check_content(raw['content'], (*where, 'content'), media_key),
  }


def _check_content(raw: Any, where: Where, media_key: str) -> list[Part]:
  if isinstance(raw, str):
    raw = [{'type': 'text', 'text': raw}]
  if not isinstance(raw, list) or not raw:
    raise BadRecord(
      f'{_words(where)} is neither a string nor a list of at least one part'
    )
  return [_check_part(part, (*where, i), media_key) for i, part in enumerate(raw)]


def _check_part(raw: Any, where: Where, media_key: str) -> Part:
  kind = raw.get('type') if isinstance(raw, dict) else None
  if not isinstance(kind, str) or kind not in PART_KEYS[media_key]:
    raise BadRecord(
      f'{_words(where)}: type {kind!r} is none of text, {", ".join(MEDIA)}'
    )
  _check_keys(raw, where, PART_KEYS[media_key][kind])
  if kind == 'text':
    return {'type': 'text', 'text': _check_text(raw['text'], where, 'text')}
  labels = {
    key: _check_text(raw[key], where, key) for key in MEDIA[kind].labels if key in raw
  }
  try:
    beside = {
      key: check_data(raw[key]) for key in MEDIA[kind].record_keys if key in raw
    }
    return {
      'type': kind,
      media_key: MEDIA_KEYS[media_key](raw[media_key]),
      **labels,
      **beside,
    }
  except BadRecord as error:
    raise error.at(_words(where)) from error


def _check_keys(raw: Any, where: Where, keys: Keys) -> None:
  if isinstance(raw, dict) and keys.required <= raw.keys() <= keys.all:
    return
  if not isinstance(raw, dict):
    raise BadRecord(f'{_words(where)} is of type {type(raw).__name__}, not an object')
  if missing := [key for key in keys.known if key in keys.required and key not in raw]:
    raise BadRecord(f'{_words(where)}: without {", ".join(missing)}')
  unknown = [
    str(key) for key in raw if key not in keys.all
  ]  # a misspelt key would be ignored in silence
  hint = '; fields of your own go under "meta"' if 'meta' in keys.all else ''
  raise BadRecord(
    f'{_words(where)}: unknown {", ".join(unknown)}; known are {", ".join(keys.known)}{hint}'
  )


def _check_text(text: Any, where: Where, key: str) -> str:
  if not isinstance(text, str):
    raise BadRecord(
      f'{_text_at(where, key)} is of type {type(text).__name__}, not a string'
    )
  try:
    text.encode()
  except (
    UnicodeEncodeError
  ) as error:  # JSON can escape half a surrogate pair, which no tokenizer takes
    raise BadRecord(
      f'{_text_at(where, key)} holds half a surrogate pair at character {error.start}'
    ) from error
  return text


def _text_at(where: Where, key: str) -> str:
  return f'{_words(where)}: "{key}"' if where else f'"{key}"'


def map_media(example: Example, change: Callable[[Part], Part]) -> Example:
  """The example with every image and audio part replaced; texts and labels stay."""

  def mapped(content: list[Part]) -> list[Part]:
    return [
      part if part['type'] == 'text' else change(part) | labels_of(part)
      for part in content
    ]

  if 'content' in example:
    return example | {'content': mapped(example['content'])}
  return example | {
    'messages': [m | {'content': mapped(m['content'])} for m in example['messages']]
  }


def labels_of(part: Part) -> dict[str, str]:
  """The label of a medium and its voice, as far as they are known."""
  return {key: part[key] for key in MEDIA[part['type']].labels if key in part}


def parts_of(example: Example) -> list[Part]:
  """All parts of all messages, or of a plain example, in order."""
  return [
    part
    for message in example.get('messages', [example])
    for part in message['content']
  ]


class Stored(Sequence):
  """Examples in random order of access, their media decoded when one is asked for.

  A subclass has `__len__` and `encoded`, and `decode` where a medium is not under 'data'.

  Attributes:
    hosts: what media are decoded by.
    path: how messages call the data.
  """

  hosts: Hosts
  path: Any

  def encoded(self, index: SupportsIndex) -> Example:
    """The example, nothing decoded; a BadRecord that it raises names the example."""
    raise NotImplementedError

  def undecoded(self, index: SupportsIndex) -> Example:
    """The example whose media `decode` takes: another one where `encoded` does not hold as much."""
    return self.encoded(index)

  def decode(self, part: Part) -> Part:
    """A medium as an array of the run's size."""
    return decoded_part(part['type'], part['data'], self.hosts)

  def __getitem__(self, index: SupportsIndex) -> Example:
    example = self.undecoded(index)
    try:
      return map_media(example, self.decode)
    except BadRecord as error:
      raise error.of(example['id']) from error

  def place(self, index: SupportsIndex) -> int:
    """The index counted from the beginning."""
    index = operator.index(index)
    if not -len(self) <= index < len(self):
      raise IndexError(f'example {index} of {len(self)}')
    return index % len(self)
