"""Free Spoken Digit Dataset (Zohar Jackson, CC BY-SA 4.0): digit words of five speakers, to be written or said."""

import csv
import io
import os
from typing import NamedTuple

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.pairs import pair
from omni_jax.data.sources.ready.files import read_text, unusable
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.sequence.example import Example

WORDS = DIGIT_WORDS['en']


class _Row(NamedTuple):
  file: str
  digit: int
  speaker: str


class Fsdd(ReadySet):
  """A recording and its word; `write='audio'`: the word and its recording, in the speaker's voice."""

  NAME = FOLDER = 'fsdd'
  WRITES = ('text', 'audio')

  @property
  def files(self) -> tuple[str, ...]:
    return os.path.join(self.folder, 'index.csv'), os.path.join(
      self.folder, 'recordings.zip'
    )

  def _open(self) -> list[_Row]:
    try:
      return [
        _Row(row['file'], '0123456789'.index(row['digit']), row['speaker'])
        for row in csv.DictReader(io.StringIO(read_text(self.files[0])))
        if row['split'] == self.asked.split
      ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
      raise unusable(self.files[0], f'{type(error).__name__}: {error}') from error

  def _example(self, row: _Row) -> Example:
    word = {'type': 'text', 'text': WORDS[row.digit]}
    clip = {
      'type': 'audio',
      'path': f'recordings.zip/recordings/{row.file}',
      'label': WORDS[row.digit],
      'voice': row.speaker,
    }
    made = (
      pair([clip], word, 'en')
      if self.asked.write == 'text'
      else pair([word], clip, 'en', row.speaker)
    )
    return {'id': row.file, **made}
