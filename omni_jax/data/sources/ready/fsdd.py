"""The ready set FSDD, the Free Spoken Digit Dataset: digit words, to write or to speak.

It is by Zohar Jackson, CC BY-SA 4.0, and has five speakers.
"""

import csv
import io
import os
from typing import NamedTuple

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.pairs import pair_example
from omni_jax.data.sources.ready.files import read_text, unusable
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.sequence.example import Example, text_part

WORDS = DIGIT_WORDS['en']
DIGITS = '0123456789'
SPEAKERS = ('george', 'jackson', 'nicolas', 'theo', 'yweweler')
INDEX = 'index.csv'
ARCHIVE = 'recordings.zip'


def member_of(file: str) -> str:
  """Returns the name in the archive of a recording that the index lists."""
  return f'recordings/{file}'


class _Row(NamedTuple):
  file: str
  digit: int
  speaker: str


class Fsdd(ReadySet):
  """Recordings of digits by several speakers, and their English words.

  With `write='text'` the recording is heard and written, with `write='audio'` the word
  is shown and spoken in the speaker's voice.
  """

  NAME = FOLDER = 'fsdd'
  WRITES = ('text', 'audio')

  @property
  def files(self) -> tuple[str, ...]:
    index = os.path.join(self.folder, INDEX)
    return index, os.path.join(self.folder, ARCHIVE)

  def _open(self) -> list[_Row]:
    index = self.files[0]
    rows: list[_Row] = []
    try:
      for row in csv.DictReader(io.StringIO(read_text(index))):
        if row['split'] == self.selection.split:
          digit = DIGITS.index(row['digit'])
          rows.append(_Row(row['file'], digit, row['speaker']))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
      raise unusable(index, f'{type(error).__name__}: {error}') from error
    return rows

  def _example(self, row: _Row) -> Example:
    word = text_part(WORDS[row.digit])
    clip = {
      'type': 'audio',
      'path': f'{ARCHIVE}/{member_of(row.file)}',
      'label': WORDS[row.digit],
      'voice': row.speaker,
    }
    if self.selection.write == 'text':
      return {'id': row.file, **pair_example([clip], word, 'en')}
    return {'id': row.file, **pair_example([word], clip, 'en', row.speaker)}
