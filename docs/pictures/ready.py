"""Draws ready_images.png and ready_sounds.png, and prints the texts beside them as docs/ready_sources.md shows them.

python docs/pictures/ready.py --root=../shared/data
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

from omni_jax.data.sources.ready.ready_set import Asked, LANGUAGES, ReadySet
from omni_jax.data.sources.ready.sets import READY
from omni_jax.evaluate.page.shown import grid, spectrogram
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image.files import png_bytes
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig

SIZES = {
  'image': ImageConfig(height=64, width=64, channels=3, patch=8),
  'audio': AudioConfig(seconds=15.04),
}
HOSTS = Hosts(SIZES, Tokenizer(TokenizerConfig()))
FOLDER = pathlib.Path(__file__).parent
COLUMNS, ORDERS, GAP, ZOOM = 10, 3, 6, 2


def spread(examples: ReadySet, n: int) -> list[dict]:
  """n examples, evenly spread over the split."""
  return [examples[k * len(examples) // n] for k in range(n)]


def parts(example: dict) -> tuple[dict, dict, dict]:
  """What is shown, what is answered, and the message of the answer."""
  user, assistant = example['messages']
  return user['content'][0], assistant['content'][0], assistant


def said(title: str, examples: list[dict]) -> None:
  print(f'\n{title}:')
  for number, (_, answer, message) in enumerate(map(parts, examples), start=1):
    print(
      f'{number}. `<lang:{message["language"]}> <task:{message["task"]}>` {answer["text"]}'
    )


def strip(pictures: list[np.ndarray], width: int) -> np.ndarray:
  """Pictures of one height side by side on white, with gaps; cut to the width."""
  gap = np.ones((pictures[0].shape[0], GAP, 3))
  row = np.concatenate(
    [piece for picture in pictures for piece in (picture, gap)], axis=1
  )[:, :width]
  return np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=1)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--root',
    required=True,
    help='folder that holds mnist/, emoji/, fsdd/ and barista_speech/',
  )
  root = parser.parse_args().root

  def test(name: str, language: str = '') -> ReadySet:
    return READY[name](
      root, Asked('test', languages=(language,) if language else ()), HOSTS
    )

  digits = spread(test('mnist'), COLUMNS)
  faces = [
    spread(test('emoji', LANGUAGES[2 * k]), COLUMNS)[k] for k in range(COLUMNS)
  ]  # each in another language
  rows = [[parts(example)[0]['pixels'] for example in row] for row in (digits, faces)]
  (FOLDER / 'ready_images.png').write_bytes(png_bytes(grid(rows)))
  said('MNIST', digits)
  said('emoji', faces)

  # By speaker, digit and take, five of each in the test: so every digit is heard once, and every speaker twice.
  words, orders = (
    [test('fsdd')[55 * k % 250] for k in range(COLUMNS)],
    spread(test('barista'), ORDERS),
  )
  heard = [
    [
      spectrogram(parts(example)[0]['wave'], HOSTS['audio'].config.rate)
      for example in row
    ]
    for row in (words, orders)
  ]
  width = max(picture.shape[1] for row in heard for picture in row)
  sheet = np.concatenate(
    [strip(heard[0], width), *(strip([picture], width) for picture in heard[1])]
  )
  image = Image.fromarray(np.round(sheet * 255).astype(np.uint8)).quantize(32)
  image = image.resize(
    (ZOOM * image.width, ZOOM * image.height), Image.Resampling.NEAREST
  )
  image.save(FOLDER / 'ready_sounds.png', optimize=True)
  said('FSDD', words)
  said('barista speech', orders)


if __name__ == '__main__':
  main()
