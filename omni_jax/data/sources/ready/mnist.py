"""The ready set MNIST: handwritten digits, to read or to draw.

It is by Y. LeCun, C. Cortes and C. Burges.
"""

import functools
import os
from typing import NamedTuple

import numpy as np

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.pairs import pair_example
from omni_jax.data.sources.ready.files import UNREADABLE, unusable
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.modalities.image.files import png_bytes
from omni_jax.sequence.example import Example, text_part

WORDS = DIGIT_WORDS['en']
ARCHIVE = 'mnist.npz'


class MnistSplit(NamedTuple):
  """The images of a split, uint8 (n, height, width), and their digits (n,)."""

  images: np.ndarray
  labels: np.ndarray


@functools.lru_cache(maxsize=2)
def read_split(path: str, split: str) -> MnistSplit:
  """Returns a split of an npz file, which is unpacked once per process.

  Raises:
    Exception: one of UNREADABLE, if the file is missing, damaged or not MNIST.
  """
  with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
    images = arrays[f'{split}_images']
    labels = arrays[f'{split}_labels']
  is_image = images.ndim == 3 and images.dtype == np.uint8
  if not is_image or labels.shape != images.shape[:1]:
    raise ValueError(
      f'{split}_images {images.dtype}{images.shape}, {split}_labels {labels.shape}'
    )
  if labels.min(initial=0) < 0 or labels.max(initial=0) > 9:
    raise ValueError(f'{split}_labels from {labels.min()} to {labels.max()}')
  return MnistSplit(images, labels)


class Mnist(ReadySet):
  """Images of handwritten digits and their English words.

  With `write='text'` the image is shown and read, with `write='image'` the word is
  shown and the digit drawn.
  """

  NAME = FOLDER = 'mnist'
  WRITES = ('text', 'image')

  @property
  def files(self) -> tuple[str, ...]:
    return (os.path.join(self.folder, ARCHIVE),)

  def _open(self) -> list[tuple[int, int]]:
    """Returns the number and the digit of each image."""
    path = self.files[0]
    try:
      labels = read_split(path, self.selection.split).labels
    except UNREADABLE as error:
      reason = getattr(error, 'strerror', None) or f'{type(error).__name__}: {error}'
      raise unusable(path, reason) from error
    return [(number, int(label)) for number, label in enumerate(labels)]

  def _example(self, row: tuple[int, int]) -> Example:
    number, digit = row
    word = text_part(WORDS[digit])
    image = {'type': 'image', 'path': f'{ARCHIVE}/{number}', 'label': WORDS[digit]}
    id = f'{number:05d}'
    if self.selection.write == 'text':
      return {'id': id, **pair_example([image], word, 'en')}
    return {'id': id, **pair_example([word], image)}

  def read_file(self, path: str) -> bytes:
    """Returns a PNG file of an image, lossless."""
    number = int(path.rpartition('/')[2])
    images = read_split(self.files[0], self.selection.split).images
    return png_bytes(images[number][..., None])
