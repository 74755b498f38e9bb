"""Noto emoji and flags (Apache-2.0, public domain) with their Unicode names in 20 languages, to be named or drawn."""

import os
from typing import NamedTuple

from omni_jax.data.sources.pairs import pair
from omni_jax.data.sources.ready.files import json_rows
from omni_jax.data.sources.ready.ready_set import LANGUAGES, ReadySet
from omni_jax.sequence.example import Example

PARTS = {
  'emoji.jsonl': 'emoji64.zip',
  'flags.jsonl': 'flags64.zip',
}  # index -> pictures


class _Row(NamedTuple):
  archive: str
  file: str
  language: str
  name: str


class Emoji(ReadySet):
  """A picture and its name in each language in turn; `write='image'`: the name and the picture.

  Pictures are transparent; `decode_image` puts them on white.
  """

  NAME = FOLDER = 'emoji'
  WRITES = ('text', 'image')
  LANGUAGES = LANGUAGES

  @property
  def files(self) -> tuple[str, ...]:
    return tuple(
      os.path.join(self.folder, name) for part in PARTS.items() for name in part
    )

  def _open(self) -> list[_Row]:
    return [
      _Row(archive, row['file'], language, name)
      for index, archive in PARTS.items()
      for row in json_rows(
        os.path.join(self.folder, index), {'file': str, 'names': dict, 'split': str}
      )
      for language in self.asked.languages
      if row['split'] == self.asked.split
      and isinstance(name := row['names'].get(language), str)
      and name
    ]

  def _example(self, row: _Row) -> Example:
    name = {'type': 'text', 'text': row.name}
    picture = {'type': 'image', 'path': f'{row.archive}/{row.file}'}
    made = (
      pair([picture], name, row.language)
      if self.asked.write == 'text'
      else pair([name], picture)
    )
    return {'id': f'{row.file}/{row.language}', **made}
