"""Pairs FSDD (spoken digits) and MNIST (handwritten digits) as JSON lines.

  python -m omni_jax.data.sources.spoken_digits --source=../shared/data --output=DIR

The command pairs them in every direction. It writes DIR/{train,valid,test}.jsonl,
DIR/images/*.png, DIR/speech/*.wav and DIR/strings/*.wav. Recordings follow FSDD's
official split (test has the takes 0-4 of every speaker and digit; valid has the takes
5-7 of the training part), and images follow MNIST's. Every medium is labelled with what
it shows or says and with its voice. speaker_NAME.jsonl holds all recordings of one
speaker and speakers.jsonl those of all, for runs that leave one out. The same seed
gives the same files.
"""

import argparse
from collections.abc import Iterator, Mapping
import json
import math
import os
from pathlib import Path
import shutil
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.sources.spoken_digits_media import (
  Item,
  RATE,
  sizes_for,
  SPLITS,
  WORDS,
  write_images,
  write_speech,
  write_strings,
)
from omni_jax.errors import run_command, UserError
from omni_jax.modalities.text.tokenizer import ANY, TASKS
from omni_jax.sequence.example import text_part

LANGUAGE = 'en'
# Largest number of rows of a kind that draws or speaks, in valid and in test.
MOST_HELD_OUT = 1000
NOTICE = """# Spoken and handwritten digits, paired
Made by `python -m omni_jax.data.sources.spoken_digits`.
Images and recordings of the same digit are paired at random.
- speech/: Free Spoken Digit Dataset, Zohar Jackson and the speakers, CC BY-SA 4.0
  (unchanged files)
- images/: MNIST, Y. LeCun, C. Cortes, C. Burges (stored as PNG)
"""


class Kind(NamedTuple):
  """One kind of rows: a direction such as image to text.

  Attributes:
    question: what the user shows: a medium, 'text', 'numeral' or 'string'.
    reply: types of the answer's parts.
    share: number of rows per image.
  """

  question: str
  reply: tuple[str, ...]
  share: float

  @property
  def task(self) -> str:
    """Returns the task of the answer."""
    return TASKS[self.reply[0] if len(self.reply) == 1 else ANY]


# Handwriting varies most, so many rows read it; speech comes from few recordings and
# makes long rows.
KINDS = {
  'image_to_text': Kind('image', ('text',), 1.5),
  'speech_to_text': Kind('audio', ('text',), 0.3),
  'string_to_text': Kind('string', ('text',), 0.25),
  'text_to_text': Kind('numeral', ('text',), 0.02),
  'text_to_image': Kind('text', ('image',), 0.25),
  'image_to_image': Kind('image', ('image',), 0.1),
  'speech_to_image': Kind('audio', ('image',), 0.1),
  'text_to_speech': Kind('text', ('audio',), 0.3),
  'image_to_speech': Kind('image', ('audio',), 0.08),
  'speech_to_speech': Kind('audio', ('audio',), 0.08),
  'reply': Kind('image', ('text', 'image', 'audio'), 0.08),
}


class SplitMedia(NamedTuple):
  """The media of a split that are paired."""

  images: list[Item]
  clips: list[Item]
  strings: list[Item]

  def sources(self, question: str) -> list[Item]:
    """Returns the items that the user shows in rows of a kind, see `Kind.question`."""
    if question in ('text', 'numeral'):
      return [Item((digit,)) for digit in range(10)]
    media = {'image': self.images, 'audio': self.clips, 'string': self.strings}
    return media[question]

  def by_digit(self) -> dict[str, list[list[Item]]]:
    """Returns the images and the clips of each digit, by type of the part."""
    return {'image': _by_digit(self.images), 'audio': _by_digit(self.clips)}


def _by_digit(items: list[Item]) -> list[list[Item]]:
  groups: list[list[Item]] = [[] for _ in range(10)]
  for item in items:
    groups[item.digits[0]].append(item)
  return groups


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
  """Writes the folder, which appears only when it is complete; returns a summary.

  Args:
    source: folder that holds fsdd/ and mnist/.
    output: folder to write; it must not exist.
    images: number of training images.
    strings: number of strings of digits for training.
    seconds: longest clip.
    string_seconds: longest string.
    seed: seed of all random choices.

  Raises:
    UserError: if the output exists, a value is out of range, or the source is unusable.
  """
  if output.exists():
    raise UserError(
      f'--output={output} already exists: remove it or name another folder'
    )
  if not 0 < seconds <= string_seconds < 3600 or seed < 0 or strings < 10:
    raise UserError(
      f'--seconds={seconds} --string_seconds={string_seconds} --strings={strings} '
      f'--seed={seed}: give 0 < seconds <= string_seconds < 3600, at least 10 strings, '
      'and a seed that is not negative'
    )
  rng = np.random.default_rng(seed)
  partial = output.with_name(f'{output.name}.partial-{os.getpid()}')
  lines: list[str] = []
  try:
    (partial / 'speech').mkdir(parents=True)
    (partial / 'images').mkdir()
    clips, skipped = write_speech(source / 'fsdd', partial, seconds)
    pictures = write_images(source / 'mnist', partial, images, rng)
    joined: dict[str, list[Item]] = {}
    for split in SPLITS:
      count = strings if split == 'train' else max(1, strings // 10)
      joined[split] = write_strings(
        partial, clips[split], count, string_seconds, rng, split
      )
    everything: list[Item] = []
    for split in SPLITS:
      media = SplitMedia(pictures[split], clips[split], joined[split])
      lines.append(_write_split(partial, split, media, rng))
      everything += clips[split]
    lines.append(_write_speakers(partial, everything))
    (partial / 'README.md').write_text(NOTICE)
    os.rename(partial, output)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  lines += skipped
  fits = sizes_for(string_seconds).seconds
  lines.append(
    f'wrote {output}: a run needs audio rate {RATE} and seconds of at least {fits}'
  )
  return '\n'.join(lines)


def _write_speakers(output: Path, clips: list[Item]) -> str:
  """Writes speaker_NAME.jsonl and speakers.jsonl; returns a line of the summary.

  The former hold all recordings of one speaker, to be transcribed; the latter holds
  those of all speakers.
  """
  names = sorted({clip.voice for clip in clips})
  all_lines: list[str] = []
  for name in names:
    lines: list[str] = []
    for clip in clips:
      if clip.voice == name:
        id = f'speaker_{name}/{len(lines)}'
        row = _row(id, KINDS['speech_to_text'], clip, {'text': clip})
        lines.append(json.dumps(row) + '\n')
    (output / f'speaker_{name}.jsonl').write_text(''.join(lines))
    all_lines += lines
  (output / 'speakers.jsonl').write_text(''.join(all_lines))
  return f'speaker_NAME.jsonl of {", ".join(names)}, speakers.jsonl of all'


def _write_split(
  output: Path, split: str, media: SplitMedia, rng: np.random.Generator
) -> str:
  """Writes the split's rows in shuffled order; returns its line of the summary."""
  for name, items in (('images', media.images), ('clips', media.clips)):
    missing = set(range(10)) - {item.digits[0] for item in items}
    if missing:
      words = ', '.join(WORDS[digit] for digit in sorted(missing))
      raise UserError(
        f'no {name} of {words} in split {split}: raise --images or --seconds'
      )
  rows: list[dict[str, Any]] = []
  counts: list[str] = []
  for name, kind in KINDS.items():
    numbers = _source_numbers(kind, media, rng, repeat=split == 'train')
    rows += _examples(f'{split}/{name}', kind, media, numbers, rng)
    counts.append(f'{name} {len(numbers)}')
  with open(output / f'{split}.jsonl', 'w') as file:
    for number in rng.permutation(len(rows)):
      file.write(json.dumps(rows[number]) + '\n')
  return (
    f'{split}: {len(rows)} rows of {len(media.images)} images and '
    f'{len(media.clips)} clips ({", ".join(counts)})'
  )


def _source_numbers(
  kind: Kind, media: SplitMedia, rng: np.random.Generator, *, repeat: bool
) -> np.ndarray:
  """Returns the number of the source of each row of a kind, shape (rows,).

  Sources are used about equally often, and at most once unless `repeat`; where the
  target differs each time, a source may be used again.
  """
  sources = len(media.sources(kind.question))
  count = max(1, round(kind.share * len(media.images)))
  if not repeat:
    writes_text = kind.reply == ('text',)
    if writes_text or kind.question in ('image', 'audio', 'string'):
      count = min(count, sources)
    if not writes_text:
      count = min(count, MOST_HELD_OUT)
  rounds = math.ceil(count / sources)
  permutations = [rng.permutation(sources) for _ in range(rounds)]
  return np.concatenate(permutations)[:count]


def _examples(
  name: str,
  kind: Kind,
  media: SplitMedia,
  numbers: np.ndarray,
  rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
  """Yields a row of a kind for each number of a source."""
  sources = media.sources(kind.question)
  targets = media.by_digit()
  for n, number in enumerate(numbers):
    source = sources[number]
    answers = {'text': source}
    if len(source.digits) == 1:
      for medium, items in targets.items():
        answers[medium] = _other(items[source.digits[0]], source, rng)
    yield _row(f'{name}/{n}', kind, source, answers)


def _row(
  name: str, kind: Kind, source: Item, answers: Mapping[str, Item]
) -> dict[str, Any]:
  """Returns the example of one line; evaluation groups it by the folder of its name.

  Args:
    name: id of the example.
    kind: kind of the row.
    source: item that the user shows.
    answers: item of the answer for each type of part.
  """
  assistant: dict[str, Any] = {
    'role': 'assistant',
    'language': LANGUAGE,
    'task': kind.task,
  }
  if 'audio' in kind.reply:
    assistant['voice'] = answers['audio'].voice
  assistant['content'] = [_part(medium, answers[medium]) for medium in kind.reply]
  user = {'role': 'user', 'content': [_part(kind.question, source)]}
  return {
    'id': name,
    'meta': {'group': name.split('/')[-2]},
    'messages': [user, assistant],
  }


def _other(items: list[Item], source: Item, rng: np.random.Generator) -> Item:
  """Returns a random item, not the source itself unless it is the only one."""
  number = rng.integers(len(items))
  if items[number] == source:
    number = (number + 1) % len(items)
  return items[number]


def _part(medium: str, item: Item) -> dict[str, str]:
  if medium == 'numeral':
    return text_part(str(item.digits[0]))
  if medium == 'text' or not item.path:
    return text_part(item.words)
  if medium == 'image':
    return {'type': 'image', 'path': item.path, 'label': item.words}
  return {'type': 'audio', 'path': item.path, 'label': item.words, 'voice': item.voice}


def main() -> None:
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.data.sources.spoken_digits',
    description=__doc__.split('\n')[0],
  )
  add = parser.add_argument
  add('--source', type=Path, required=True, help='folder that holds fsdd/ and mnist/')
  add('--output', type=Path, required=True, help='folder to write; it must not exist')
  add(
    '--images',
    type=int,
    default=50_000,
    help='training images; a tenth as many for valid',
  )
  add(
    '--strings',
    type=int,
    default=5_000,
    help='joined recordings for training; a tenth as many for valid and for test',
  )
  add('--seconds', type=float, default=1.0, help='longest recording that is used')
  add('--string_seconds', type=float, default=3.2, help='longest joined recording')
  add('--seed', type=int, default=0, help='seed of all random choices')
  args = vars(parser.parse_args())
  print(build(args.pop('source'), args.pop('output'), **args))


if __name__ == '__main__':
  run_command(main)
