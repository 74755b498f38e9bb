"""The ready set of emoji and flags with names in 20 languages, to name or to draw.

The pictures are Noto's (Apache-2.0, public domain), the names are those of Unicode.
"""

import os
from typing import Any, NamedTuple

from omni_jax.data.sources.pairs import pair_example
from omni_jax.data.sources.ready.files import json_rows
from omni_jax.data.sources.ready.ready_set import LANGUAGES, ReadySet
from omni_jax.sequence.example import Example, text_part

# The archive of pictures of each index.
PARTS = {'emoji.jsonl': 'emoji64.zip', 'flags.jsonl': 'flags64.zip'}


class _Row(NamedTuple):
  archive: str
  file: str
  language: str
  name: str


class Emoji(ReadySet):
  """Pictures and their names, an example for each language that has a name.

  With `write='text'` the picture is shown and named, with `write='image'` the name is
  shown and the picture drawn. Pictures are transparent; `decode_image` puts them on
  white.
  """

  NAME = FOLDER = 'emoji'
  WRITES = ('text', 'image')
  LANGUAGES = LANGUAGES

  @property
  def files(self) -> tuple[str, ...]:
    paths: list[str] = []
    for index, archive in PARTS.items():
      paths.append(os.path.join(self.folder, index))
      paths.append(os.path.join(self.folder, archive))
    return tuple(paths)

  def _open(self) -> list[_Row]:
    rows: list[_Row] = []
    fields = {'file': str, 'names': dict, 'split': str}
    for index, archive in PARTS.items():
      for row in json_rows(os.path.join(self.folder, index), fields):
        if row['split'] == self.selection.split:
          rows += self._rows_of(row, archive)
    return rows

  def _rows_of(self, row: dict[str, Any], archive: str) -> list[_Row]:
    """Returns the rows of a picture in the selected languages."""
    rows: list[_Row] = []
    for language in self.selection.languages:
      name = row['names'].get(language)
      if name and isinstance(name, str):
        rows.append(_Row(archive, row['file'], language, name))
    return rows

  def _example(self, row: _Row) -> Example:
    name = text_part(row.name)
    picture = {'type': 'image', 'path': f'{row.archive}/{row.file}'}
    id = f'{row.file}/{row.language}'
    if self.selection.write == 'text':
      return {'id': id, **pair_example([picture], name, row.language)}
    return {'id': id, **pair_example([name], picture)}
