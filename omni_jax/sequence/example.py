"""The format of an example: its structure is checked here, and its media are decoded.

`StoredExamplesBase` is the base class of all data sets of stored examples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import operator
from typing import Any, NamedTuple, Protocol, runtime_checkable, SupportsIndex

from omni_jax.errors import BadRecord
from omni_jax.modalities.hosts import HOSTS, Hosts, TEXT
from omni_jax.paths import is_remote

ROLES = ('user', 'assistant')
# Optional keys of a message -> kinds of the special tokens that they become.
CONTROLS = {'language': 'lang', 'task': 'task', 'voice': 'voice'}
MEDIA = {name: host for name, (_, host) in HOSTS.items() if name != TEXT}

Example = dict[str, Any]
Part = dict[str, Any]


def text_part(text: str) -> Part:
  """Returns the part of an example for a text."""
  return {'type': TEXT, 'text': text}


def decoded_part(kind: str, data: bytes, hosts: Hosts) -> Part:
  """Returns the part of an example for an encoded medium. Raises BadRecord."""
  host = hosts.of_part(kind)
  return {'type': kind, host.key: host.decode(data)}


def check_path(path: Any) -> str:
  """Returns the path of a medium as written in a JSON line.

  Raises:
    BadRecord: if it is not a relative path inside the file's folder.
  """
  if not isinstance(path, str) or not path or '\0' in path:
    raise BadRecord(f'path {path!r} is not a file name')
  if '\\' in path:
    raise BadRecord(f'path {path!r} has backslashes: separate folders by /')
  if path.startswith('/') or is_remote(path) or '..' in path.split('/'):
    raise BadRecord(
      f'path {path!r} leaves the folder of the JSON lines file: put the media into '
      'that folder and use a relative path'
    )
  return path


def check_data(data: Any) -> bytes:
  """Returns an encoded medium that is stored in a record.

  Raises:
    BadRecord: if it is not bytes.
  """
  if not isinstance(data, bytes):
    raise BadRecord(f'data is of type {type(data).__name__}, not bytes')
  return data


# Where an encoded medium is: in a file beside the JSON lines ('path'), or in the record
# itself ('data', ArrayRecord).
MEDIA_KEYS: Mapping[str, Callable[[Any], str | bytes]] = {
  'path': check_path,
  'data': check_data,
}


class Keys(NamedTuple):
  """The keys that an object may have, and those that it must have."""

  known: tuple[str, ...]
  required: frozenset[str]
  all: frozenset[str]

  @classmethod
  def of(cls, *required: str, optional: tuple[str, ...] = ()) -> 'Keys':
    """Returns the required and the optional keys together."""
    known = required + optional
    return cls(known, frozenset(required), frozenset(known))


EXAMPLE_KEYS = Keys.of(optional=('messages', 'content', 'id', 'meta'))
MESSAGE_KEYS = Keys.of('role', 'content', optional=tuple(CONTROLS))


def _part_keys(media_key: str) -> dict[str, Keys]:
  """Returns the keys of a part by its type, where media are under `media_key`."""
  keys = {TEXT: Keys.of('type', 'text')}
  for name, host in MEDIA.items():
    extra = host.record_keys if media_key == 'data' else ()
    keys[name] = Keys.of('type', media_key, optional=host.labels + extra)
  return keys


PART_KEYS = {media_key: _part_keys(media_key) for media_key in MEDIA_KEYS}

# A place in an example. It becomes text only when something is wrong there.
Location = tuple[str | int, ...]


def _location_text(location: Location) -> str:
  """Returns a place as messages name it, such as 'messages[0].content'."""
  text = ''
  for key in location:
    text += f'[{key}]' if isinstance(key, int) else f'.{key}'
  return text.removeprefix('.')


def check_example(raw: Any, media_key: str) -> Example:
  """Returns the example in its one form: id a string, content always a list of parts.

  The id is '' if there is none.

  Args:
    raw: what JSON or msgpack returned.
    media_key: 'path' or 'data', the key of the medium in an image or audio part.

  Raises:
    BadRecord: with the place in the example and what is wrong there.
  """
  _check_keys(raw, ('the example',), EXAMPLE_KEYS)
  if ('messages' in raw) == ('content' in raw):
    raise BadRecord('needs exactly one of "messages" (a chat) and "content" (plain)')
  id = raw.get('id', '')
  if not isinstance(id, str | int) or isinstance(id, bool):
    raise BadRecord(f'"id" is {id!r}, not a string')
  example: Example = {'id': _check_text(str(id), (), 'id')}
  if 'meta' in raw:
    if not isinstance(raw['meta'], dict):
      raise BadRecord(f'"meta" is of type {type(raw["meta"]).__name__}, not an object')
    example['meta'] = raw['meta']
  if 'content' in raw:
    example['content'] = _check_content(raw['content'], ('content',), media_key)
    return example
  messages = raw['messages']
  if not isinstance(messages, list) or not messages:
    raise BadRecord('"messages" is not a list of at least one message')
  example['messages'] = [
    check_message(message, ('messages', i), media_key)
    for i, message in enumerate(messages)
  ]
  return example


def check_message(raw: Any, location: Location, media_key: str) -> dict[str, Any]:
  """Returns a message whose content is a list of parts.

  Args:
    location: its place in the example, for errors.
    media_key: as in `check_example`.

  Raises:
    BadRecord: with the place in the example and what is wrong there.
  """
  _check_keys(raw, location, MESSAGE_KEYS)
  role = raw['role']
  if role not in ROLES:
    raise BadRecord(
      f'{_location_text(location)}: role {role!r} is not one of {", ".join(ROLES)}'
    )
  message = {'role': role}
  message.update(_strings(raw, location, CONTROLS))
  empty = [key for key, value in message.items() if not value]
  if empty:
    keys = ' or '.join(empty)
    raise BadRecord(f'{_location_text(location)}: empty {keys}: leave the key out')
  message['content'] = _check_content(raw['content'], (*location, 'content'), media_key)
  return message


def _strings(
  raw: dict[str, Any], location: Location, keys: Iterable[str]
) -> dict[str, str]:
  """Returns the strings under those of the keys that an object has."""
  return {key: _check_text(raw[key], location, key) for key in keys if key in raw}


def _check_content(raw: Any, location: Location, media_key: str) -> list[Part]:
  if isinstance(raw, str):
    raw = [text_part(raw)]
  if not isinstance(raw, list) or not raw:
    raise BadRecord(
      f'{_location_text(location)} is neither a string nor a list of at least one part'
    )
  return [_check_part(part, (*location, i), media_key) for i, part in enumerate(raw)]


def _check_part(raw: Any, location: Location, media_key: str) -> Part:
  kind = raw.get('type') if isinstance(raw, dict) else None
  if not isinstance(kind, str) or kind not in PART_KEYS[media_key]:
    known = ', '.join((TEXT, *MEDIA))
    raise BadRecord(f'{_location_text(location)}: type {kind!r} is not one of {known}')
  _check_keys(raw, location, PART_KEYS[media_key][kind])
  if kind == TEXT:
    return text_part(_check_text(raw['text'], location, 'text'))
  host = MEDIA[kind]
  labels = _strings(raw, location, host.labels)
  try:
    extra = {key: check_data(raw[key]) for key in host.record_keys if key in raw}
    medium = MEDIA_KEYS[media_key](raw[media_key])
  except BadRecord as error:
    raise error.at(_location_text(location)) from error
  return {'type': kind, media_key: medium, **labels, **extra}


def _check_keys(raw: Any, location: Location, keys: Keys) -> None:
  if isinstance(raw, dict) and keys.required <= raw.keys() <= keys.all:
    return
  if not isinstance(raw, dict):
    raise BadRecord(
      f'{_location_text(location)} is of type {type(raw).__name__}, not an object'
    )
  absent = keys.required - raw.keys()
  missing = [key for key in keys.known if key in absent]
  if missing:
    raise BadRecord(f'{_location_text(location)}: missing {", ".join(missing)}')
  # A misspelt key would be ignored silently.
  unknown = ', '.join(str(key) for key in raw if key not in keys.all)
  known = ', '.join(keys.known)
  hint = '; fields of your own go under "meta"' if 'meta' in keys.all else ''
  raise BadRecord(
    f'{_location_text(location)}: unknown {unknown}; the known keys are {known}{hint}'
  )


def _check_text(text: Any, location: Location, key: str) -> str:
  if not isinstance(text, str):
    place = _text_place(location, key)
    raise BadRecord(f'{place} is of type {type(text).__name__}, not a string')
  try:
    text.encode()
  except UnicodeEncodeError as error:
    # JSON can escape half a surrogate pair, which no tokenizer accepts.
    place = _text_place(location, key)
    raise BadRecord(
      f'{place} holds half a surrogate pair at character {error.start}'
    ) from error
  return text


def _text_place(location: Location, key: str) -> str:
  return f'{_location_text(location)}: "{key}"' if location else f'"{key}"'


def map_media(example: Example, change: Callable[[Part], Part]) -> Example:
  """Returns the example with every part that is not text replaced; labels stay."""

  def mapped(content: list[Part]) -> list[Part]:
    parts = []
    for part in content:
      if part['type'] != TEXT:
        part = change(part) | labels_of(part)
      parts.append(part)
    return parts

  if 'content' in example:
    return example | {'content': mapped(example['content'])}
  messages = []
  for message in example['messages']:
    messages.append(message | {'content': mapped(message['content'])})
  return example | {'messages': messages}


def labels_of(part: Part) -> dict[str, str]:
  """Returns the label of a medium and its voice, if they are known."""
  return {key: part[key] for key in MEDIA[part['type']].labels if key in part}


def parts_of(example: Example) -> list[Part]:
  """Returns all parts of all messages, or of a plain example, in order."""
  parts = []
  for message in example.get('messages', [example]):
    parts += message['content']
  return parts


@runtime_checkable
class StoredExamples(Protocol):
  """Examples with random access that can also be read without decoding their media."""

  path: Any

  def __len__(self) -> int: ...

  def __getitem__(self, index: SupportsIndex, /) -> Example: ...

  def encoded(self, index: SupportsIndex, /) -> Example: ...


class StoredExamplesBase(Sequence):
  """Examples with random access, whose media are decoded when one is read.

  A subclass has `__len__` and `encoded`, and `decode` if a medium is not under 'data'.

  Attributes:
    hosts: the hosts that decode the media.
    path: name of the data in messages.
  """

  hosts: Hosts
  path: Any

  def encoded(self, index: SupportsIndex) -> Example:
    """Returns the example with nothing decoded; a BadRecord names the example."""
    raise NotImplementedError

  def undecoded(self, index: SupportsIndex) -> Example:
    """Returns the example as `decode` needs it.

    A subclass overrides this if `encoded` leaves the media out.
    """
    return self.encoded(index)

  def decode(self, part: Part) -> Part:
    """Returns the part with its medium as an array of the run's size."""
    return decoded_part(part['type'], part['data'], self.hosts)

  def __getitem__(self, index: SupportsIndex) -> Example:  # type: ignore[override]  # no slices
    example = self.undecoded(index)
    try:
      return map_media(example, self.decode)
    except BadRecord as error:
      raise error.of(example['id']) from error

  def checked_index(self, index: SupportsIndex) -> int:
    """Returns the index counted from the beginning. Raises IndexError outside."""
    index = operator.index(index)
    if not -len(self) <= index < len(self):
      raise IndexError(f'example {index} of {len(self)}')
    return index % len(self)
