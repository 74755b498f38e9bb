"""Writes the recordings of FSDD and the images of MNIST as media files."""

from collections.abc import Mapping
import csv
import math
from pathlib import Path
import re
from typing import NamedTuple
import zipfile

import numpy as np

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.ready import fsdd, mnist
from omni_jax.data.sources.ready.files import UNREADABLE
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import decode_audio, wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image.files import png_bytes
from omni_jax.types import FRAMES_PER_SECOND

WORDS = DIGIT_WORDS['en']
SPLITS = ('train', 'valid', 'test')
VALID_TAKES = range(5, 8)  # of the training part
RATE = 8000  # samples per second of FSDD
# Numbers of recordings that are joined into a string of digits.
FEWEST_IN_STRING = 2
MOST_IN_STRING = 5
# The pattern also prevents names in the index from leaving the output folder.
RECORDING = re.compile(r'\d_[a-z]+_\d+\.wav')


class Item(NamedTuple):
  """A file, or a text, with one digit or a string of digits.

  Attributes:
    digits: the digits.
    path: path of the file in the output folder; '' for text.
    voice: voice of a recording.
  """

  digits: tuple[int, ...]
  path: str = ''
  voice: str = ''

  @property
  def words(self) -> str:
    return ' '.join(WORDS[digit] for digit in self.digits)


def write_speech(
  source: Path, output: Path, seconds: float
) -> tuple[dict[str, list[Item]], list[str]]:
  """Writes the clips to `output`/speech.

  Returns the clips of each split, and a line on each kind of clip that was left out.

  Args:
    source: folder of FSDD.
    output: output folder.
    seconds: longest clip.

  Raises:
    UserError: if the files of FSDD cannot be used.
  """
  clips: dict[str, list[Item]] = {split: [] for split in SPLITS}
  config = sizes_for(seconds)
  unreadable = 0
  too_long = 0
  try:
    with (
      zipfile.ZipFile(source / fsdd.ARCHIVE) as archive,
      open(source / fsdd.INDEX, newline='') as index,
    ):
      for row in csv.DictReader(index):
        file = row['file']
        if not RECORDING.fullmatch(file):
          raise UserError(
            f'{source}/{fsdd.INDEX}: file {file!r} is not named DIGIT_SPEAKER_TAKE.wav'
          )
        if int(row['samples']) > seconds * int(row['sample_rate']):
          too_long += 1
          continue
        data = archive.read(fsdd.member_of(file))
        try:
          decode_audio(data, config)
        except BadRecord:
          unreadable += 1
          continue
        (output / 'speech' / file).write_bytes(data)
        digit = int(row['digit'])
        clip = Item((digit,), f'speech/{file}', row['speaker'])
        clips[_split_of(row)].append(clip)
  except UNREADABLE as error:
    raise _unusable(error, f'{source}/{fsdd.ARCHIVE} and {fsdd.INDEX}') from error
  lines = []
  if unreadable:
    lines.append(f'left out {unreadable} unreadable clips')
  if too_long:
    lines.append(f'left out {too_long} clips longer than {seconds} s')
  return clips, lines


def sizes_for(seconds: float) -> AudioConfig:
  """Returns sizes whose longest clip, a whole number of frames, holds `seconds`."""
  frames = math.ceil(seconds * FRAMES_PER_SECOND)
  return AudioConfig(rate=RATE, seconds=frames / FRAMES_PER_SECOND)


def _split_of(row: Mapping[str, str]) -> str:
  """Returns the split of a row of the index."""
  if row['split'] == 'train' and int(row['index']) in VALID_TAKES:
    return 'valid'
  return row['split']


def write_images(
  source: Path, output: Path, count: int, rng: np.random.Generator
) -> dict[str, list[Item]]:
  """Writes images to `output`/images; returns those of each split.

  Args:
    source: folder of MNIST.
    output: output folder.
    count: number of training images. A tenth as many are for valid, from the rest of
      the training set; all test images are for test.
    rng: decides which images are used, and their order.

  Raises:
    UserError: if the file of MNIST cannot be used, or has too few images.
  """
  parts = _mnist_parts(source / mnist.ARCHIVE)
  tenth = max(1, count // 10)
  train = len(parts['train'].labels)
  test = len(parts['test'].labels)
  if not 0 < count <= train - tenth:
    raise UserError(
      f'--images={count}: {source}/{mnist.ARCHIVE} has {train} training images, of which '
      f'{count + tenth} would be used'
    )
  order = rng.permutation(train)
  chosen = {
    'train': order[:count],
    'valid': order[count : count + tenth],
    'test': rng.permutation(test),
  }
  items: dict[str, list[Item]] = {split: [] for split in SPLITS}
  for split, numbers in chosen.items():
    part = 'test' if split == 'test' else 'train'
    images, labels = parts[part]
    for number in numbers:
      digit = int(labels[number])
      path = f'images/{digit}_{part}_{number:05d}.png'
      (output / path).write_bytes(png_bytes(images[number][..., None]))
      items[split].append(Item((digit,), path))
  return items


def _mnist_parts(path: Path) -> dict[str, mnist.MnistSplit]:
  """Returns the images and digits of both parts. Raises UserError."""
  try:
    return {part: mnist.read_split(str(path), part) for part in ('train', 'test')}
  except UNREADABLE as error:
    raise _unusable(error, str(path)) from error


def write_strings(
  output: Path,
  clips: list[Item],
  count: int,
  seconds: float,
  rng: np.random.Generator,
  split: str,
) -> list[Item]:
  """Writes `count` strings, each of two to five recordings of one speaker.

  Returns the strings. Recordings that would make a string too long are dropped from its
  end.

  Args:
    output: output folder, which holds the clips; strings are written to
      `output`/strings.
    clips: clips of one split.
    count: number of strings.
    seconds: longest string.
    rng: decides which clips are joined.
    split: name of the split, for the names of the files.
  """
  folder = output / 'strings'
  folder.mkdir(exist_ok=True)
  config = sizes_for(seconds)
  waves: dict[str, np.ndarray] = {}
  for clip in clips:
    data = (output / clip.path).read_bytes()
    waves[clip.path] = decode_audio(data, config)
  voices = sorted({clip.voice for clip in clips})
  strings: list[Item] = []
  for number in range(count if clips else 0):
    voice = voices[number % len(voices)]
    own_clips = [clip for clip in clips if clip.voice == voice]
    size = min(len(own_clips), int(rng.integers(FEWEST_IN_STRING, MOST_IN_STRING + 1)))
    numbers = rng.choice(len(own_clips), size, replace=False)
    joined = [own_clips[k] for k in numbers]
    while sum(len(waves[clip.path]) for clip in joined) > seconds * RATE:
      joined.pop()
    digits = tuple(clip.digits[0] for clip in joined)
    string = Item(digits, f'strings/{split}_{number:05d}.wav', voice)
    wave_S = np.concatenate([waves[clip.path] for clip in joined])
    (output / string.path).write_bytes(wav_bytes(wave_S, RATE))
    strings.append(string)
  return strings


def _unusable(error: Exception, files: str) -> UserError:
  """Returns a UserError as it is; any other error becomes one about unusable files."""
  if isinstance(error, UserError):
    return error
  return UserError(
    f'{files} cannot be used ({type(error).__name__}: {error}): --source must name the '
    'folder that holds fsdd/ and mnist/'
  )
