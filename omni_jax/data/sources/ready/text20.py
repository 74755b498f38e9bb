"""The ready set of text in 20 languages: lines to continue, or sentences to translate.

It has several licences, of which CC BY-SA 4.0 is the strictest.
"""

import os
from typing import NamedTuple

from omni_jax.data.sources.pairs import pair_example
from omni_jax.data.sources.ready.files import read_text, unusable
from omni_jax.data.sources.ready.ready_set import LANGUAGES, ReadySet
from omni_jax.sequence.example import Example, text_part


class _Row(NamedTuple):
  """A line of a file.

  Attributes:
    language: language of the text.
    line: line number, from 1.
    text: text to write.
    source: sentence to translate; '' if nothing is translated.
  """

  language: str
  line: int
  text: str
  source: str


class Text20(ReadySet):
  """Plain examples of one line each; or, with `read='en'`, translations from English.

  A translation is a sentence in the language `read` and the same sentence in one of the
  other languages. Lines to continue are train/LANG.txt in the split 'train' and the
  parallel sentences of the test in 'test'; translation uses the parallel sentences in
  both.
  """

  NAME = FOLDER = 'text20'
  READS = LANGUAGES
  LANGUAGES = LANGUAGES

  @property
  def files(self) -> tuple[str, ...]:
    languages = list(self.selection.languages)
    if self.selection.read:
      languages.insert(0, self.selection.read)
    return tuple(self._file(language) for language in dict.fromkeys(languages))

  def _file(self, language: str) -> str:
    if self.selection.split == 'train' and not self.selection.read:
      return os.path.join(self.folder, 'train', f'{language}.txt')
    name = f'{language}.{self.selection.split}.txt'
    return os.path.join(self.folder, 'parallel_ntrex', name)

  def _lines(self, language: str) -> list[str]:
    text = read_text(self._file(language)).rstrip('\n')
    return [line.strip() for line in text.split('\n')]

  def _open(self) -> list[_Row]:
    rows: list[_Row] = []
    for language in self.selection.languages:
      if language != self.selection.read:
        rows += self._rows_of(language)
    return rows

  def _rows_of(self, language: str) -> list[_Row]:
    """Returns the rows of a language, without empty and too long lines."""
    lines = self._lines(language)
    sources = [''] * len(lines)
    if self.selection.read:
      sources = self._lines(self.selection.read)
    if len(sources) != len(lines):
      source_file = os.path.basename(self._file(self.selection.read))
      raise unusable(
        self._file(language),
        f'{len(lines)} lines, but {source_file} has {len(sources)}',
      )
    rows: list[_Row] = []
    pairs = zip(lines, sources, strict=True)
    for number, (text, source) in enumerate(pairs, start=1):
      missing = not text or (self.selection.read and not source)
      if not missing and not self._too_long(text, source):
        rows.append(_Row(language, number, text, source))
    return rows

  def _too_long(self, text: str, source: str) -> bool:
    size = max(len(text.encode()), len(source.encode()))
    return 0 < self.selection.longest < size

  def _example(self, row: _Row) -> Example:
    text = text_part(row.text)
    if not self.selection.read:
      return {'id': f'{row.language}/{row.line}', 'content': [text]}
    source = text_part(row.source)
    id = f'{self.selection.read}-{row.language}/{row.line}'
    return {'id': id, **pair_example([source], text, row.language)}
