"""What all ready sets have in common: how they are asked, their examples with media in zip files, their identity."""

from collections.abc import Sequence
import hashlib
import os
from typing import Any, NamedTuple, SupportsIndex

from omni_jax.data.sources.ready.files import Archive, unusable
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.hosts import Hosts
from omni_jax.sequence.example import decoded_part, Example, map_media, Part, Stored

LANGUAGES = (
  'ar',
  'de',
  'en',
  'es',
  'fa',
  'fr',
  'gu',
  'hi',
  'it',
  'ja',
  'ko',
  'mr',
  'pt',
  'ru',
  'ta',
  'te',
  'tr',
  'ur',
  'vi',
  'zh',
)  # of the sets in twenty languages
KIND = {
  'text': 'text',
  'image': 'image',
  'audio': 'speech',
}  # as groups of an evaluation are called


class Asked(NamedTuple):
  """Which examples of a set, and in which form.

  Attributes:
    split: an official one.
    write: kind of the answer, 'text', 'image' or 'audio'; '' for text.
    read: text20: the language that is translated from; '' for text that is only continued.
    languages: of what is named or written; () for all that the set has.
    longest: text20: bytes of a line; longer ones are left out. 0 for no end.
  """

  split: str
  write: str = ''
  read: str = ''
  languages: tuple[str, ...] = ()
  longest: int = 0


def asked_of(config: Any, split: str) -> Asked:
  """Returns what `config.data` asks for; several languages have commas between them."""
  languages = tuple(name.strip() for name in config.language.split(',') if name.strip())
  return Asked(split, config.write, config.read, languages, config.longest)


class ReadySet(Stored):
  """One split. May be read by many threads, and pickled into worker processes.

  A subclass names what it has, lists its rows (`_open`) and makes an example of a row (`_example`): in the chat or the
  plain form, with an id of its own, its media by 'path', ARCHIVE/MEMBER.

  Args:
    root: the folder that holds the set's folder.

  Raises:
    UserError: if files are missing or damaged, or the set does not have what is asked.
  """

  NAME = ''
  FOLDER = ''
  SPLITS: Sequence[str] = ('train', 'test')
  WRITES: Sequence[str] = ('text',)
  READS: Sequence[str] = ()
  LANGUAGES: Sequence[str] = ('en',)

  def __init__(self, root: str, asked: Asked, hosts: Hosts):
    self.folder, self.hosts = os.path.join(root, self.FOLDER), hosts
    self.asked = asked._replace(
      write=asked.write or 'text', languages=asked.languages or tuple(self.LANGUAGES)
    )
    self._check('split', self.SPLITS, [self.asked.split])
    self._check('write', self.WRITES, [self.asked.write])
    self._check('read', self.READS, filter(None, [self.asked.read]))
    self._check('language', self.LANGUAGES, self.asked.languages)
    self.path = f'{self.NAME}/{self.asked.split}'
    self._archives = {
      os.path.basename(path): Archive(path)
      for path in self.files
      if path.endswith('.zip')
    }
    self._rows = self._open()
    if not self._rows:
      raise UserError(
        f'{self.folder}: holds no examples of split {self.asked.split!r}, languages '
        f'{", ".join(self.asked.languages)}'
      )

  def _check(self, what: str, known: Sequence[str], asked: Any) -> None:
    if unknown := [name for name in asked if name not in known]:
      raise UserError(
        f'{self.NAME}: no {what} {unknown[0]!r}; there are {", ".join(known) or "none"}'
      )

  @property
  def files(self) -> Sequence[str]:
    """All that is read."""
    raise NotImplementedError

  def _open(self) -> list[Any]:
    raise NotImplementedError

  def _example(self, row: Any) -> Example:
    raise NotImplementedError

  def __len__(self) -> int:
    return len(self._rows)

  def identity(self) -> str:
    """Digest of the files and of what is asked of them."""
    digest = hashlib.blake2b(repr(self.asked).encode(), digest_size=8)
    for path in self.files:
      try:
        with open(path, 'rb') as file:
          digest.update(hashlib.file_digest(file, 'blake2b').digest())
      except OSError as error:
        raise unusable(path, error.strerror or error) from error
    return digest.hexdigest()

  def encoded(self, index: SupportsIndex) -> Example:
    """The example with the paths of its media, nothing read."""
    example = self._example(self._rows[self.place(index)])
    if 'content' in example:
      group = self.NAME
    else:
      shown, answer = (
        KIND[message['content'][0]['type']] for message in example['messages']
      )
      group = f'{self.NAME}_{shown}_to_{answer}'
    return example | {
      'id': f'{self.path}/{example["id"]}',
      'meta': {'group': group} | example.get('meta', {}),
    }

  def stored(self, index: SupportsIndex) -> Example:
    """The example with its media as the bytes of files under 'data'."""
    example = self.encoded(index)
    try:
      return map_media(
        example,
        lambda part: {'type': part['type'], 'data': self.read_file(part['path'])},
      )
    except BadRecord as error:
      raise error.of(example['id']) from error

  def read_file(self, path: str) -> bytes:
    """The bytes of a medium by its path in an example."""
    archive, _, member = path.partition('/')
    try:
      return self._archives[archive].read(member)
    except BadRecord as error:
      raise error.at(member) from error

  def decode(self, part: Part) -> Part:
    """From its path."""
    return decoded_part(part['type'], self.read_file(part['path']), self.hosts)
