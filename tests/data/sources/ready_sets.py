"""Small ready sets whose media show what they are, and functions that open them."""

import csv
import io
import itertools
import json
import pathlib
import zipfile

import numpy as np
from PIL import Image
import pytest
from samples import hosts_of

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.ready.ready_set import Selection
from omni_jax.data.sources.ready.sets import READY
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image.sizes import ImageConfig

WORDS = DIGIT_WORDS['en']
GRAY = {'train': 20, 'test': 21}  # times the digit, the gray of an image
HOSTS = hosts_of(
  image=ImageConfig(height=4, width=4, channels=3),
  audio=AudioConfig(rate=8000, seconds=0.96),
)
# The file of each set that tests damage.
FILES = {
  'fsdd': 'fsdd/recordings.zip',
  'mnist': 'mnist/mnist.npz',
  'emoji': 'emoji/emoji64.zip',
  'barista': 'barista_speech/audio.zip',
  'text20': 'text20/train/en.txt',
}
DIRECTIONS = [(name, write) for name, kind in READY.items() for write in kind.WRITES]
every_set = pytest.mark.parametrize('name', READY)
every_direction = pytest.mark.parametrize('name, write', DIRECTIONS)


def sound_file(level: float, samples: int = 400) -> bytes:
  """Returns a WAV file of one level."""
  return wav_bytes(np.full(samples, level, np.float32), 8000)


def write_zip(path: pathlib.Path, members: dict[str, bytes]) -> None:
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def image_file(color: tuple[int, ...]) -> bytes:
  """Returns a PNG file of one colour, given as red, green, blue and alpha."""
  out = io.BytesIO()
  Image.new('RGBA', (4, 4), color).save(out, format='PNG')
  return out.getvalue()


def write_sets(folder: pathlib.Path) -> None:
  """Writes all five sets in small.

  Their media show what they are: a digit is the level of a sound or a gray.
  """
  write_fsdd(folder / 'fsdd')
  write_mnist(folder / 'mnist')
  write_emoji(folder / 'emoji')
  write_barista(folder / 'barista_speech')
  write_text20(folder / 'text20')


def write_fsdd(folder):
  folder.mkdir()
  rows = [('file', 'digit', 'speaker', 'index', 'split')]
  recordings = {}
  for digit, speaker, take in itertools.product((3, 7), ('ann', 'bob'), range(3)):
    name = f'{digit}_{speaker}_{take}.wav'
    rows.append((name, digit, speaker, take, 'train' if take else 'test'))
    samples = 400 + 10 * take
    if speaker == 'ann':
      samples += 12
    recordings[f'recordings/{name}'] = sound_file(digit / 16, samples)
  with open(folder / 'index.csv', 'w', newline='') as file:
    csv.writer(file).writerows(rows)
  write_zip(folder / 'recordings.zip', recordings)


def write_mnist(folder):
  folder.mkdir()
  digits = {'train': np.arange(10, dtype=np.uint8), 'test': np.array([5, 2], np.uint8)}
  arrays = {}
  for split, labels in digits.items():
    arrays[f'{split}_labels'] = labels
    arrays[f'{split}_images'] = np.repeat(GRAY[split] * labels, 16).reshape(-1, 4, 4)
  np.savez_compressed(folder / 'mnist.npz', **arrays)


def write_emoji(folder):
  folder.mkdir()
  red = {'en': 'red', 'de': 'rot', 'fr': 'rouge'}
  green = {'en': 'green', 'de': 'grün', 'fr': 'vert'}
  emoji = [
    {'file': 'red.png', 'names': red, 'split': 'train'},
    {'file': 'green.png', 'names': green, 'split': 'test'},
  ]
  flags = [{'file': 'clear.png', 'names': {'en': 'flag'}, 'split': 'train'}]
  write_lines(folder / 'emoji.jsonl', emoji)
  write_lines(folder / 'flags.jsonl', flags)
  pictures = {
    'red.png': image_file((255, 0, 0, 255)),
    'green.png': image_file((0, 255, 0, 255)),
  }
  write_zip(folder / 'emoji64.zip', pictures)
  write_zip(folder / 'flags64.zip', {'clear.png': image_file((0, 0, 0, 0))})


def write_barista(folder):
  folder.mkdir()
  rows = []
  for k in range(3):
    row = {
      'file': f'{k}.wav',
      'intent': 'orderDrink',
      'slots': {'size': 'small', 'coffeeDrink': f'latte {k}'},
      'split': 'test' if k == 2 else 'train',
    }
    rows.append(row)
  write_lines(folder / 'labels.jsonl', rows)
  write_zip(folder / 'audio.zip', {f'{k}.wav': sound_file(k / 8) for k in range(3)})


def write_text20(folder):
  (folder / 'train').mkdir(parents=True)
  (folder / 'parallel_ntrex').mkdir()
  for language in READY['text20'].LANGUAGES:
    text = f'{language} one\n\n{language} a long third line\n'
    (folder / f'train/{language}.txt').write_text(text)
    for split in ('train', 'test'):
      text = f'{language} {split} 1\n{language} {split} 2\n'
      (folder / f'parallel_ntrex/{language}.{split}.txt').write_text(text)


def open_set(root, name, split='train', hosts=HOSTS, **selection):
  return READY[name](str(root), Selection(split, **selection), hosts)


def prompt_and_answer(example):
  """Returns the part of the prompt, that of the answer, and the answer's message."""
  user, assistant = example['messages']
  assert (user['role'], assistant['role']) == ('user', 'assistant')
  return user['content'][0], assistant['content'][0], assistant
