"""The ready set MNIST: handwritten digits, to read or to draw.

It is by Y. LeCun, C. Cortes and C. Burges.
"""

import functools
import os

import numpy as np

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.pairs import pair_example
from omni_jax.data.sources.ready.files import DAMAGE, unusable
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.modalities.image.files import png_bytes
from omni_jax.sequence.example import Example

WORDS = DIGIT_WORDS['en']


@functools.lru_cache(maxsize=2)
def _array(path: str, name: str) -> np.ndarray:
  """Returns an array of an npz file, which is unpacked once per process."""
  with np.load(path, allow_pickle=False) as file:
    return file[name]


class Mnist(ReadySet):
  """Images of handwritten digits and their English words.

  With `write='text'` the image is shown and read, with `write='image'` the word is
  shown and the digit drawn.
  """

  NAME = FOLDER = 'mnist'
  WRITES = ('text', 'image')

  @property
  def files(self) -> tuple[str, ...]:
    return (os.path.join(self.folder, 'mnist.npz'),)

  def _open(self) -> list[tuple[int, int]]:
    """Returns the number and the digit of each image."""
    path = self.files[0]
    try:
      with np.load(path, allow_pickle=False) as file:
        labels = file[f'{self.asked.split}_labels']
      _check_arrays(self._images(), labels)
      return [(number, int(label)) for number, label in enumerate(labels)]
    except (*DAMAGE, KeyError, TypeError) as error:
      reason = getattr(error, 'strerror', None) or f'{type(error).__name__}: {error}'
      raise unusable(path, reason) from error

  def _images(self) -> np.ndarray:
    """Returns the images of the split, uint8 (n, height, width)."""
    return _array(self.files[0], f'{self.asked.split}_images')

  def _example(self, row: tuple[int, int]) -> Example:
    number, digit = row
    word = {'type': 'text', 'text': WORDS[digit]}
    image = {'type': 'image', 'path': f'mnist.npz/{number}', 'label': WORDS[digit]}
    id = f'{number:05d}'
    if self.asked.write == 'text':
      return {'id': id, **pair_example([image], word, 'en')}
    return {'id': id, **pair_example([word], image)}

  def read_file(self, path: str) -> bytes:
    """Returns a PNG file of an image, lossless."""
    number = int(path.rpartition('/')[2])
    pixels_hwc = self._images()[number][..., None]
    return png_bytes(pixels_hwc.astype(np.float32) / 255)


def _check_arrays(images: np.ndarray, labels: np.ndarray) -> None:
  """Raises ValueError if the arrays are not images and their digits."""
  is_image = images.ndim == 3 and images.dtype == np.uint8
  if not is_image or labels.shape != images.shape[:1]:
    raise ValueError(f'images {images.dtype}{images.shape}, labels {labels.shape}')
  if labels.min(initial=0) < 0 or labels.max(initial=0) > 9:
    raise ValueError(f'labels from {labels.min()} to {labels.max()}')
