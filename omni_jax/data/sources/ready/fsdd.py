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
from omni_jax.sequence.example import Example

WORDS = DIGIT_WORDS['en']
DIGITS = '0123456789'


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
    index = os.path.join(self.folder, 'index.csv')
    return index, os.path.join(self.folder, 'recordings.zip')

  def _open(self) -> list[_Row]:
    index = self.files[0]
    rows: list[_Row] = []
    try:
      for row in csv.DictReader(io.StringIO(read_text(index))):
        if row['split'] == self.asked.split:
          digit = DIGITS.index(row['digit'])
          rows.append(_Row(row['file'], digit, row['speaker']))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
      raise unusable(index, f'{type(error).__name__}: {error}') from error
    return rows

  def _example(self, row: _Row) -> Example:
    word = {'type': 'text', 'text': WORDS[row.digit]}
    clip = {
      'type': 'audio',
      'path': f'recordings.zip/recordings/{row.file}',
      'label': WORDS[row.digit],
      'voice': row.speaker,
    }
    if self.asked.write == 'text':
      return {'id': row.file, **pair_example([clip], word, 'en')}
    return {'id': row.file, **pair_example([word], clip, 'en', row.speaker)}
