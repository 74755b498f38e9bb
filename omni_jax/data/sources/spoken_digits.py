"""Turns FSDD (spoken digits) and MNIST (handwritten digits) into JSON lines that pair them in every direction.

  python -m omni_jax.data.sources.spoken_digits --source=../shared/data --output=DIR

writes DIR/{train,valid,test}.jsonl, DIR/images/*.png, DIR/speech/*.wav. Recordings follow FSDD's official split (test
is the takes 0-4 of every speaker and digit; valid the takes 5-7 of its training part), images MNIST's. Every medium is
labelled with what it shows or says and with its voice. speaker_NAME.jsonl holds all recordings of one speaker and
speakers.jsonl those of all, for runs that leave one out. The same seed gives the same files.
"""

import argparse
from collections.abc import Iterator
import json
import math
import os
from pathlib import Path
import shutil
from typing import NamedTuple

import numpy as np

from omni_jax.data.sources.spoken_digits_media import (
  Item,
  RATE,
  SPLITS,
  WORDS,
  write_images,
  write_speech,
  write_strings,
)
from omni_jax.errors import run_command, UserError
from omni_jax.types import FRAMES_PER_SECOND

LANGUAGE = 'en'
MOST_HELD_OUT = 1000  # rows of a kind that draws or speaks, in valid and test
NOTICE = """# Spoken and handwritten digits, paired
Made by `python -m omni_jax.data.sources.spoken_digits`. Which image goes with which recording is chance, by digit.
- speech/: Free Spoken Digit Dataset, Zohar Jackson and the speakers, CC BY-SA 4.0 (unchanged files)
- images/: MNIST, Y. LeCun, C. Cortes, C. Burges (stored as PNG)
"""


class Kind(NamedTuple):
  """One direction: what is given, what is asked for, what is replied, and how many rows for each training image."""

  given: str
  task: str
  reply: tuple[str, ...]
  share: float


# Handwriting differs most and is read by many rows; what is spoken comes from few recordings and takes long rows.
KINDS = {
  'image_to_text': Kind('image', 'write', ('text',), 1.5),
  'speech_to_text': Kind('audio', 'write', ('text',), 0.3),
  'string_to_text': Kind('string', 'write', ('text',), 0.25),
  'text_to_text': Kind('numeral', 'write', ('text',), 0.02),
  'text_to_image': Kind('text', 'draw', ('image',), 0.25),
  'image_to_image': Kind('image', 'draw', ('image',), 0.1),
  'speech_to_image': Kind('audio', 'draw', ('image',), 0.1),
  'text_to_speech': Kind('text', 'speak', ('audio',), 0.3),
  'image_to_speech': Kind('image', 'speak', ('audio',), 0.08),
  'speech_to_speech': Kind('audio', 'speak', ('audio',), 0.08),
  'reply': Kind('image', 'reply', ('text', 'image', 'audio'), 0.08),
}


class Pool(NamedTuple):
  """What a split has to pair."""

  images: list[Item]
  clips: list[Item]
  strings: list[Item]

  def sources(self, given: str) -> list[Item]:
    digits = [Item((digit,)) for digit in range(10)]
    return {
      'image': self.images,
      'audio': self.clips,
      'string': self.strings,
      'text': digits,
      'numeral': digits,
    }[given]

  def by_digit(self) -> dict[str, list[list[Item]]]:
    media = {'image': self.images, 'audio': self.clips}
    return {
      medium: [[item for item in items if item.digits == (d,)] for d in range(10)]
      for medium, items in media.items()
    }


def build(
  source: Path,
  output: Path,
  *,
  images: int,
  strings: int,
  seconds: float,
  string_seconds: float,
  seed: int,
) -> str:
  """Writes the folder, which appears only when it is whole; returns a summary for the person who asked."""
  if output.exists():
    raise UserError(
      f'--output={output} exists already: remove it or name another folder'
    )
  if not 0 < seconds <= string_seconds < 3600 or seed < 0 or strings < 10:
    raise UserError(
      f'--seconds={seconds} --string_seconds={string_seconds} --strings={strings} --seed={seed}: seconds '
      'lie between 0 and 3600, strings of digits are no shorter and at least 10, a seed is not negative'
    )
  rng = np.random.default_rng(seed)
  partial = output.with_name(f'{output.name}.partial-{os.getpid()}')
  try:
    (partial / 'speech').mkdir(parents=True)
    (partial / 'images').mkdir()
    clips, skipped = write_speech(source / 'fsdd', partial, seconds)
    pictures = write_images(source / 'mnist', partial, images, rng)
    counts = {
      'train': strings,
      'valid': max(1, strings // 10),
      'test': max(1, strings // 10),
    }
    joined = {
      split: write_strings(
        partial, clips[split], counts[split], string_seconds, rng, split
      )
      for split in SPLITS
    }
    lines = [
      _write_split(
        partial, split, Pool(pictures[split], clips[split], joined[split]), rng
      )
      for split in SPLITS
    ]
    lines += _write_speakers(
      partial, [clip for split in SPLITS for clip in clips[split]]
    )
    (partial / 'README.md').write_text(NOTICE)
    os.rename(partial, output)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  fits = math.ceil(string_seconds * FRAMES_PER_SECOND) / FRAMES_PER_SECOND
  return '\n'.join(
    [
      *lines,
      *skipped,
      f'wrote {output}: a run needs audio rate {RATE} and seconds of at least {fits}',
    ]
  )


def _write_speakers(output: Path, clips: list[Item]) -> list[str]:
  """speaker_NAME.jsonl: every recording of one speaker, to be transcribed; speakers.jsonl: those of all."""
  names = sorted({clip.voice for clip in clips})
  lines = {
    name: [
      json.dumps(
        _row(f'speaker_{name}/{n}', KINDS['speech_to_text'], clip, {'text': clip})
      )
      + '\n'
      for n, clip in enumerate(clip for clip in clips if clip.voice == name)
    ]
    for name in names
  }
  for name, own in lines.items():
    (output / f'speaker_{name}.jsonl').write_text(''.join(own))
  (output / 'speakers.jsonl').write_text(
    ''.join(line for own in lines.values() for line in own)
  )
  return [f'speaker_NAME.jsonl of {", ".join(names)}, speakers.jsonl of all']


def _write_split(output: Path, split: str, pool: Pool, rng: np.random.Generator) -> str:
  """Writes the split's lines in shuffled order; returns its line of the summary."""
  for name, items in (('images', pool.images), ('clips', pool.clips)):
    if missing := set(range(10)) - {item.digits[0] for item in items}:
      raise UserError(
        f'no {name} of {", ".join(WORDS[d] for d in sorted(missing))} in split {split}: raise --images '
        'or --seconds'
      )
  rows, counts = [], {}
  for name, kind in KINDS.items():
    examples = list(
      _examples(f'{split}/{name}', kind, pool, rng, repeat=split == 'train')
    )
    counts[name] = len(examples)
    rows += examples
  with open(output / f'{split}.jsonl', 'w') as file:
    for number in rng.permutation(len(rows)):
      file.write(json.dumps(rows[number]) + '\n')
  detail = ', '.join(f'{name} {count}' for name, count in counts.items())
  return f'{split}: {len(rows)} rows of {len(pool.images)} images and {len(pool.clips)} clips ({detail})'


def _examples(
  name: str, kind: Kind, pool: Pool, rng: np.random.Generator, *, repeat: bool
) -> Iterator[dict]:
  """Rows of one kind; every source is used about equally often, and once at most unless `repeat`."""
  sources, targets = pool.sources(kind.given), pool.by_digit()
  count = max(1, round(kind.share * len(pool.images)))
  if not repeat and (
    kind.given in ('image', 'audio', 'string') or kind.reply == ('text',)
  ):
    count = min(count, len(sources))  # elsewhere the target differs each time
  if not repeat and kind.reply != ('text',):
    count = min(count, MOST_HELD_OUT)
  rounds = [
    rng.permutation(len(sources)) for _ in range(math.ceil(count / len(sources)))
  ]
  for n, number in enumerate(np.concatenate(rounds)[:count]):
    source = sources[number]
    shown = {'text': source}
    if len(source.digits) == 1:
      shown |= {
        medium: _other(items[source.digits[0]], source, rng)
        for medium, items in targets.items()
      }
    yield _row(f'{name}/{n}', kind, source, shown)


def _row(name: str, kind: Kind, source: Item, shown: dict[str, Item]) -> dict:
  """One line; evaluation groups it by the folder of its name."""
  assistant = {'role': 'assistant', 'language': LANGUAGE, 'task': kind.task}
  if 'audio' in kind.reply:
    assistant['voice'] = shown['audio'].voice
  assistant['content'] = [_part(medium, shown[medium]) for medium in kind.reply]
  user = {'role': 'user', 'content': [_part(kind.given, source)]}
  return {
    'id': name,
    'meta': {'group': name.split('/')[-2]},
    'messages': [user, assistant],
  }


def _other(items: list[Item], source: Item, rng: np.random.Generator) -> Item:
  """A random item, but not the source itself where there is another."""
  number = rng.integers(len(items))
  return items[number] if items[number] != source else items[(number + 1) % len(items)]


def _part(medium: str, item: Item) -> dict[str, str]:
  if medium in ('text', 'numeral') or not item.path:
    return {
      'type': 'text',
      'text': str(item.digits[0]) if medium == 'numeral' else item.words,
    }
  if medium == 'image':
    return {'type': 'image', 'path': item.path, 'label': item.words}
  return {'type': 'audio', 'path': item.path, 'label': item.words, 'voice': item.voice}


def main() -> None:
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.data.sources.spoken_digits',
    description=__doc__.split('\n')[0],
  )
  parser.add_argument(
    '--source', type=Path, required=True, help='folder that holds fsdd/ and mnist/'
  )
  parser.add_argument('--output', type=Path, required=True, help='folder to make')
  parser.add_argument(
    '--images',
    type=int,
    default=50_000,
    help='training images; a tenth as many for valid',
  )
  parser.add_argument(
    '--strings',
    type=int,
    default=5_000,
    help='joined recordings; a tenth for valid and test each',
  )
  parser.add_argument(
    '--seconds', type=float, default=1.0, help='longer recordings are left out'
  )
  parser.add_argument(
    '--string_seconds', type=float, default=3.2, help='of joined recordings, at most'
  )
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  print(
    build(
      args.source,
      args.output,
      images=args.images,
      strings=args.strings,
      seconds=args.seconds,
      string_seconds=args.string_seconds,
      seed=args.seed,
    )
  )


if __name__ == '__main__':
  run_command(main)
