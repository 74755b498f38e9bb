"""Text in 20 languages (several licences, CC BY-SA 4.0 the strictest): lines to continue, sentences to translate."""

import itertools
import os
from typing import NamedTuple

from omni_jax.data.sources.pairs import pair
from omni_jax.data.sources.ready.files import read_text, unusable
from omni_jax.data.sources.ready.ready_set import LANGUAGES, ReadySet
from omni_jax.sequence.example import Example


class _Row(NamedTuple):
  language: str
  line: int  # from 1
  text: str
  source: str  # '' where nothing is translated


class Text20(ReadySet):
  """Plain examples of a line each; `read='en'`: a sentence in English and the same in each of the other languages.

  Lines to be continued are train/LANG.txt in split 'train' and the parallel sentences of the test in 'test';
  translation reads the parallel sentences in both.
  """

  NAME = FOLDER = 'text20'
  READS = LANGUAGES
  LANGUAGES = LANGUAGES

  @property
  def files(self) -> tuple[str, ...]:
    return tuple(
      map(
        self._file,
        dict.fromkeys((*filter(None, [self.asked.read]), *self.asked.languages)),
      )
    )

  def _file(self, language: str) -> str:
    if self.asked.split == 'train' and not self.asked.read:
      return os.path.join(self.folder, 'train', f'{language}.txt')
    return os.path.join(
      self.folder, 'parallel_ntrex', f'{language}.{self.asked.split}.txt'
    )

  def _lines(self, language: str) -> list[str]:
    return [
      line.strip() for line in read_text(self._file(language)).rstrip('\n').split('\n')
    ]

  def _open(self) -> list[_Row]:
    return list(
      itertools.chain.from_iterable(
        self._of(language)
        for language in self.asked.languages
        if language != self.asked.read
      )
    )

  def _of(self, language: str) -> list[_Row]:
    lines = self._lines(language)
    sources = self._lines(self.asked.read) if self.asked.read else [''] * len(lines)
    if len(sources) != len(lines):
      raise unusable(
        self._file(language),
        f'{len(lines)} lines beside {len(sources)} of '
        f'{os.path.basename(self._file(self.asked.read))}',
      )
    found = [
      _Row(language, number, text, source)
      for number, (text, source) in enumerate(zip(lines, sources, strict=True), start=1)
    ]
    return [
      row
      for row in found
      if row.text and (row.source or not self.asked.read) and not self._long(row)
    ]

  def _long(self, row: _Row) -> bool:
    return (
      0 < self.asked.longest < max(len(row.text.encode()), len(row.source.encode()))
    )

  def _example(self, row: _Row) -> Example:
    text = {'type': 'text', 'text': row.text}
    if not self.asked.read:
      return {'id': f'{row.language}/{row.line}', 'content': [text]}
    return {
      'id': f'{self.asked.read}-{row.language}/{row.line}',
      **pair([{'type': 'text', 'text': row.source}], text, row.language),
    }
