"""Draws ready_images.png and ready_sounds.png for docs/ready_sources.md.

It also prints the texts that the page shows beside them.

  python docs/pictures/ready.py --root=../shared/data
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

from omni_jax.data.sources.ready.ready_set import LANGUAGES, ReadySet, Selection
from omni_jax.data.sources.ready.sets import READY
from omni_jax.evaluate.page.page_media import grid, spectrogram
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image.files import bytes_of, png_bytes
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig

SIZES = {
  'image': ImageConfig(height=64, width=64, channels=3, patch=8),
  'audio': AudioConfig(seconds=15.04),
}
HOSTS = Hosts(SIZES, Tokenizer(TokenizerConfig()))
FOLDER = pathlib.Path(__file__).parent
COLUMNS = 10  # images, or spoken words, in a row
ORDERS = 3  # rows of barista speech
GAP = 6  # pixels between two spectrograms
ZOOM = 2


def spread(examples: ReadySet, n: int) -> list[dict]:
  """Returns n examples, evenly spread over the split."""
  return [examples[k * len(examples) // n] for k in range(n)]


def parts(example: dict) -> tuple[dict, dict, dict]:
  """Returns what the user shows, what is answered, and the message of the answer."""
  user, assistant = example['messages']
  return user['content'][0], assistant['content'][0], assistant


def print_texts(title: str, examples: list[dict]) -> None:
  """Prints the answers of examples with their control tokens."""
  print(f'\n{title}:')
  for number, example in enumerate(examples, start=1):
    _, answer, message = parts(example)
    control = f'<lang:{message["language"]}> <task:{message["task"]}>'
    print(f'{number}. `{control}` {answer["text"]}')


def strip(pictures: list[np.ndarray], width: int) -> np.ndarray:
  """Returns pictures of one height side by side on white, cut to the width."""
  gap = np.ones((pictures[0].shape[0], GAP, 3))
  pieces = []
  for picture in pictures:
    pieces += [picture, gap]
  row = np.concatenate(pieces, axis=1)[:, :width]
  return np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=1)


def draw_images(digits: list[dict], faces: list[dict]) -> None:
  """Draws a row of digits above a row of emoji."""
  rows = []
  for examples in (digits, faces):
    rows.append([parts(example)[0]['pixels'] for example in examples])
  (FOLDER / 'ready_images.png').write_bytes(png_bytes(grid(rows)))


def spectrograms(examples: list[dict]) -> list[np.ndarray]:
  """Returns the spectrogram of each example's sound."""
  rate = HOSTS['audio'].config.rate
  return [spectrogram(parts(example)[0]['wave'], rate) for example in examples]


def draw_sounds(words: list[dict], orders: list[dict]) -> None:
  """Draws the spectrograms of the words in one row, then one row for each order."""
  heard_words = spectrograms(words)
  heard_orders = spectrograms(orders)
  width = max(picture.shape[1] for picture in heard_words + heard_orders)
  rows = [strip(heard_words, width)]
  for picture in heard_orders:
    rows.append(strip([picture], width))
  image = Image.fromarray(bytes_of(np.concatenate(rows))).quantize(32)
  size = (ZOOM * image.width, ZOOM * image.height)
  image = image.resize(size, Image.Resampling.NEAREST)
  image.save(FOLDER / 'ready_sounds.png', optimize=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--root',
    required=True,
    help='folder that holds mnist/, emoji/, fsdd/ and barista_speech/',
  )
  root = parser.parse_args().root

  def test(name: str, language: str = '') -> ReadySet:
    languages = (language,) if language else ()
    return READY[name](root, Selection('test', languages=languages), HOSTS)

  digits = spread(test('mnist'), COLUMNS)
  faces = []
  for k in range(COLUMNS):  # each in another language
    faces.append(spread(test('emoji', LANGUAGES[2 * k]), COLUMNS)[k])
  # The test split holds five takes by speaker and digit: each digit is heard once, and
  # each speaker twice.
  words = [test('fsdd')[55 * k % 250] for k in range(COLUMNS)]
  orders = spread(test('barista'), ORDERS)
  draw_images(digits, faces)
  draw_sounds(words, orders)
  print_texts('MNIST', digits)
  print_texts('emoji', faces)
  print_texts('FSDD', words)
  print_texts('barista speech', orders)


if __name__ == '__main__':
  main()
