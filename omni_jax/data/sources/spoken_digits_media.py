"""The recordings of FSDD and the images of MNIST as media files, for spoken_digits.py."""

import csv
import math
from pathlib import Path
import re
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import decode_audio, wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image.files import png_bytes
from omni_jax.types import FRAMES_PER_SECOND

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SPLITS = ('train', 'valid', 'test')
VALID_TAKES = range(5, 8)
RATE = 8000  # of FSDD
# What zip, npz and csv files raise when they are missing, damaged or something else.
DAMAGE = (
  OSError,
  KeyError,
  TypeError,
  ValueError,
  EOFError,
  zipfile.BadZipFile,
  zlib.error,
)
MOST_IN_STRING = 5  # recordings that are joined into one of a digit string; 2 at least
RECORDING = re.compile(
  r'\d_[a-z]+_\d+\.wav'
)  # also keeps names of the index from leaving the output folder


class Item(NamedTuple):
  """Something that shows one digit or a string of them: a file, or the digits themselves where there is none."""

  digits: tuple[int, ...]
  path: str = ''
  voice: str = ''

  @property
  def words(self) -> str:
    return ' '.join(WORDS[digit] for digit in self.digits)


def write_speech(
  source: Path, output: Path, seconds: float
) -> tuple[dict[str, list[Item]], list[str]]:
  """The clips of each split, and a line on each kind of clip that was left out."""
  clips: dict[str, list[Item]] = {split: [] for split in SPLITS}
  # The longest clip of a run is a whole number of frames; the exact limit is checked below.
  config = AudioConfig(
    rate=RATE, seconds=math.ceil(seconds * FRAMES_PER_SECOND) / FRAMES_PER_SECOND
  )
  skipped = {'unreadable': 0, f'longer than {seconds} s': 0}
  unreadable, long = skipped
  try:
    with (
      zipfile.ZipFile(source / 'recordings.zip') as archive,
      open(source / 'index.csv', newline='') as index,
    ):
      for row in csv.DictReader(index):
        if not RECORDING.fullmatch(row['file']):
          raise UserError(
            f'{source}/index.csv: file {row["file"]!r} is not named DIGIT_SPEAKER_TAKE.wav'
          )
        if int(row['samples']) > seconds * int(row['sample_rate']):
          skipped[long] += 1
          continue
        data = archive.read(f'recordings/{row["file"]}')
        try:
          decode_audio(data, config)
        except BadRecord:
          skipped[unreadable] += 1
          continue
        (output / 'speech' / row['file']).write_bytes(data)
        split = (
          'valid'
          if row['split'] == 'train' and int(row['index']) in VALID_TAKES
          else row['split']
        )
        clips[split].append(
          Item((int(row['digit']),), f'speech/{row["file"]}', row['speaker'])
        )
  except DAMAGE as error:
    raise _unusable(error, f'{source}/recordings.zip and index.csv') from error
  return clips, [
    f'left out {count} clips {why}' for why, count in skipped.items() if count
  ]


def write_images(
  source: Path, output: Path, count: int, rng: np.random.Generator
) -> dict[str, list[Item]]:
  """`count` training images, a tenth as many for valid (from the rest of the training set), all test images."""
  try:
    with (
      open(source / 'mnist.npz', 'rb') as file,
      np.load(file) as mnist,
    ):  # never unpickles, by default
      arrays = {
        name: mnist[name]
        for name in ('train_images', 'train_labels', 'test_images', 'test_labels')
      }
    for part in ('train', 'test'):
      images, labels = arrays[f'{part}_images'], arrays[f'{part}_labels']
      if (
        images.ndim != 3 or labels.shape != images.shape[:1] or images.dtype != np.uint8
      ):
        raise ValueError(
          f'{part}_images {images.dtype}{images.shape}, {part}_labels {labels.shape}'
        )
  except DAMAGE as error:
    raise _unusable(error, f'{source}/mnist.npz') from error
  tenth = max(1, count // 10)
  train, test = len(arrays['train_labels']), len(arrays['test_labels'])
  if not 0 < count <= train - tenth:
    raise UserError(
      f'--images={count}: {source}/mnist.npz has {train} training images, of which {count + tenth} would '
      'be used'
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
    for number in numbers:
      digit = int(arrays[f'{part}_labels'][number])
      path = f'images/{digit}_{part}_{number:05d}.png'
      pixels_hwc = arrays[f'{part}_images'][number][..., None].astype(np.float32) / 255
      (output / path).write_bytes(png_bytes(pixels_hwc))
      items[split].append(Item((digit,), path))
  return items


def write_strings(
  output: Path,
  clips: list[Item],
  count: int,
  seconds: float,
  rng: np.random.Generator,
  split: str,
) -> list[Item]:
  """Joins two to five recordings of one speaker to each of `count` strings; what would be too long is cut short."""
  folder = output / 'strings'
  folder.mkdir(exist_ok=True)
  config = AudioConfig(
    rate=RATE, seconds=math.ceil(seconds * FRAMES_PER_SECOND) / FRAMES_PER_SECOND
  )
  waves = {
    clip.path: decode_audio((output / clip.path).read_bytes(), config) for clip in clips
  }
  voices = sorted({clip.voice for clip in clips})
  items = []
  for number in range(count if clips else 0):
    own = [clip for clip in clips if clip.voice == voices[number % len(voices)]]
    drawn = [
      own[k]
      for k in rng.choice(
        len(own), min(len(own), rng.integers(2, MOST_IN_STRING + 1)), replace=False
      )
    ]
    while sum(len(waves[clip.path]) for clip in drawn) > seconds * RATE:
      drawn.pop()
    item = Item(
      tuple(clip.digits[0] for clip in drawn),
      f'strings/{split}_{number:05d}.wav',
      drawn[0].voice,
    )
    (output / item.path).write_bytes(
      wav_bytes(np.concatenate([waves[clip.path] for clip in drawn]), RATE)
    )
    items.append(item)
  return items


def _unusable(error: Exception, files: str) -> UserError:
  """The mistake of our own that was found, or one about files that are missing or not what they should be."""
  if isinstance(error, UserError):
    return error
  return UserError(
    f'{files}: cannot be used ({type(error).__name__}: {error}): --source names the folder that holds '
    'fsdd/ and mnist/'
  )
