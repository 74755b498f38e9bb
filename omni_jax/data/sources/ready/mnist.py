"""MNIST (Y. LeCun, C. Cortes, C. Burges): handwritten digits and their English words, to be read or to be drawn."""

import functools
import os

import numpy as np

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.pairs import pair
from omni_jax.data.sources.ready.files import DAMAGE, unusable
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.modalities.image.files import png_bytes
from omni_jax.sequence.example import Example

WORDS = DIGIT_WORDS['en']


@functools.lru_cache(maxsize=2)
def _array(path: str, name: str) -> np.ndarray:
  """Unpacked once in each process."""
  with np.load(path, allow_pickle=False) as file:
    return file[name]


class Mnist(ReadySet):
  """An image and its word; `write='image'`: the word and its image."""

  NAME = FOLDER = 'mnist'
  WRITES = ('text', 'image')

  @property
  def files(self) -> tuple[str, ...]:
    return (os.path.join(self.folder, 'mnist.npz'),)

  def _open(self) -> list[tuple[int, int]]:
    try:
      with np.load(self.files[0], allow_pickle=False) as file:
        labels = file[f'{self.asked.split}_labels']
      images = self._images()
      if (
        images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]
      ):
        raise ValueError(f'images {images.dtype}{images.shape}, labels {labels.shape}')
      if labels.min(initial=0) < 0 or labels.max(initial=0) > 9:
        raise ValueError(f'labels from {labels.min()} to {labels.max()}')
      return [(number, int(label)) for number, label in enumerate(labels)]
    except (*DAMAGE, KeyError, TypeError) as error:
      raise unusable(
        self.files[0],
        getattr(error, 'strerror', None) or f'{type(error).__name__}: {error}',
      ) from error

  def _images(self) -> np.ndarray:
    return _array(self.files[0], f'{self.asked.split}_images')

  def _example(self, row: tuple[int, int]) -> Example:
    number, digit = row
    word = {'type': 'text', 'text': WORDS[digit]}
    image = {'type': 'image', 'path': f'mnist.npz/{number}', 'label': WORDS[digit]}
    made = (
      pair([image], word, 'en') if self.asked.write == 'text' else pair([word], image)
    )
    return {'id': f'{number:05d}', **made}

  def read_file(self, path: str) -> bytes:
    """A PNG file of the image, bit for bit."""
    return png_bytes(
      self._images()[int(path.rpartition('/')[2])][..., None].astype(np.float32) / 255
    )
