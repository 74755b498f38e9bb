"""The base of all ready sets: selection of examples, media in zip files, identity."""

from collections.abc import Sequence
import hashlib
import os
from typing import Any, NamedTuple, SupportsIndex

from ml_collections import ConfigDict

from omni_jax.data.sources.pairs import WORD_OF_MEDIUM
from omni_jax.data.sources.ready.files import Archive, unusable
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.hosts import Hosts
from omni_jax.sequence.example import (
  decoded_part,
  Example,
  map_media,
  Part,
  StoredExamplesBase,
)

# The languages of the sets in twenty languages.
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
)


class Selection(NamedTuple):
  """The selection of a set's examples, and their form.

  Its repr is a part of the identity of the data.

  Attributes:
    split: one of the official splits.
    write: kind of the answer, 'text', 'image' or 'audio'; '' for text.
    read: for text20, the language to translate from; '' for text that is continued.
    languages: languages of the names or of the text; () for all that the set has.
    longest: for text20, the largest number of bytes of a line; longer ones are left
      out; 0 for no limit.
  """

  split: str
  write: str = ''
  read: str = ''
  languages: tuple[str, ...] = ()
  longest: int = 0


def selection_of(config: ConfigDict, split: str) -> Selection:
  """Returns the selection of `config.data`; commas separate several languages."""
  names = [name.strip() for name in config.language.split(',')]
  languages = tuple(name for name in names if name)
  return Selection(split, config.write, config.read, languages, config.longest)


class ReadySet(StoredExamplesBase):
  """The examples of one split of a ready set.

  Many threads may read it, and worker processes get it by pickling. A subclass defines
  the constants and `files`, lists its rows (`_open`) and builds an example of a row
  (`_example`): in the chat or the plain form, with an id, and with media whose 'path'
  is ARCHIVE/MEMBER.

  Args:
    root: the folder that holds the set's folder.
    selection: selection of the examples.
    hosts: hosts that decode the media.

  Raises:
    UserError: if files are missing or damaged, or the set does not have what is
      requested.
  """

  NAME = ''
  FOLDER = ''
  SPLITS: Sequence[str] = ('train', 'test')
  WRITES: Sequence[str] = ('text',)
  READS: Sequence[str] = ()
  LANGUAGES: Sequence[str] = ('en',)

  def __init__(self, root: str, selection: Selection, hosts: Hosts):
    self.folder = os.path.join(root, self.FOLDER)
    self.hosts = hosts
    write = selection.write or 'text'
    languages = selection.languages or tuple(self.LANGUAGES)
    self.selection = selection._replace(write=write, languages=languages)
    self._check('split', self.SPLITS, [selection.split])
    self._check('write', self.WRITES, [write])
    if selection.read:
      self._check('read', self.READS, [selection.read])
    self._check('language', self.LANGUAGES, languages)
    self.path = f'{self.NAME}/{selection.split}'
    self._archives: dict[str, Archive] = {}
    for path in self.files:
      if path.endswith('.zip'):
        self._archives[os.path.basename(path)] = Archive(path)
    self._rows = self._open()
    if not self._rows:
      raise UserError(
        f'{self.folder} holds no examples of split {selection.split!r}, languages '
        f'{", ".join(languages)}'
      )

  def _check(self, key: str, known: Sequence[str], names: Sequence[str]) -> None:
    """Raises UserError if one of the names is unknown."""
    for name in names:
      if name not in known:
        options = ', '.join(known) or 'none'
        raise UserError(f'{self.NAME}: no {key} {name!r}; there are {options}')

  @property
  def files(self) -> Sequence[str]:
    """Paths of all files that are read."""
    raise NotImplementedError

  def _open(self) -> list[Any]:
    """Returns the rows that are selected."""
    raise NotImplementedError

  def _example(self, row: Any) -> Example:
    """Returns the example of a row."""
    raise NotImplementedError

  def __len__(self) -> int:
    return len(self._rows)

  def identity(self) -> str:
    """Returns a digest of the files and of the selection."""
    digest = hashlib.blake2b(repr(self.selection).encode(), digest_size=8)
    for path in self.files:
      try:
        with open(path, 'rb') as file:
          file_digest = hashlib.file_digest(file, 'blake2b')
      except OSError as error:
        raise unusable(path, error.strerror or error) from error
      digest.update(file_digest.digest())
    return digest.hexdigest()

  def encoded(self, index: SupportsIndex) -> Example:
    """Returns an example with the paths of its media, nothing read.

    Its 'meta' has the group of an evaluation.
    """
    example = self._example(self._rows[self.checked_index(index)])
    meta = {'group': self._group(example)}
    meta.update(example.get('meta', {}))
    example['id'] = f'{self.path}/{example["id"]}'
    example['meta'] = meta
    return example

  def _group(self, example: Example) -> str:
    if 'content' in example:
      return self.NAME
    question, answer = example['messages']
    source = WORD_OF_MEDIUM[question['content'][0]['type']]
    target = WORD_OF_MEDIUM[answer['content'][0]['type']]
    return f'{self.NAME}_{source}_to_{target}'

  def stored(self, index: SupportsIndex) -> Example:
    """Returns an example with the encoded bytes of its media under 'data'.

    Raises:
      BadRecord: if a medium cannot be read.
    """
    example = self.encoded(index)
    try:
      return map_media(example, self._with_data)
    except BadRecord as error:
      raise error.of(example['id']) from error

  def _with_data(self, part: Part) -> Part:
    return {'type': part['type'], 'data': self.read_file(part['path'])}

  def read_file(self, path: str) -> bytes:
    """Returns the bytes of a medium at its path in an example. Raises BadRecord."""
    archive, _, member = path.partition('/')
    try:
      return self._archives[archive].read(member)
    except BadRecord as error:
      raise error.at(member) from error

  def decode(self, part: Part) -> Part:
    """Returns a part whose medium is decoded, from its path."""
    return decoded_part(part['type'], self.read_file(part['path']), self.hosts)
