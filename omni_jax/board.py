"""TensorBoard event files, in a folder on a file system or in a bucket."""

from collections.abc import Mapping
import tempfile
import time

from etils import epath
import numpy as np
from tensorboardX import SummaryWriter

from omni_jax.paths import is_remote
from omni_jax.retry import is_transient

# Seconds between two copies of the event files to a bucket.
COPY_EVERY = 60.0


class Board:
  """Writes scalars, pictures and sounds for TensorBoard; a context that closes it.

  Objects in a bucket cannot grow: for a bucket the files are written to a temporary
  folder and copied, every minute at most and at the end.
  """

  def __init__(self, folder: epath.Path):
    self._folder = folder
    self._local = folder
    self._temporary: tempfile.TemporaryDirectory | None = None
    if is_remote(folder):
      self._temporary = tempfile.TemporaryDirectory()
      self._local = epath.Path(self._temporary.name)
    self._writer = SummaryWriter(str(self._local))
    self._copied = time.monotonic()

  def __enter__(self) -> 'Board':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars by name."""
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)
    if self._temporary and time.monotonic() - self._copied > COPY_EVERY:
      self._copy()

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Writes a picture: (height, width, channels) in [0, 1]."""
    self._writer.add_image(name, np.clip(pixels, 0, 1), step, dataformats='HWC')

  def sound(self, step: int, name: str, wave: np.ndarray, rate: int) -> None:
    """Writes a sound in [-1, 1], with `rate` samples per second."""
    self._writer.add_audio(name, np.clip(wave, -1, 1), step, sample_rate=rate)

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()
    if self._temporary:
      self._copy()
      self._temporary.cleanup()

  def _copy(self) -> None:
    """Copies the files to the bucket; one that fails for the moment is tried later."""
    self._copied = time.monotonic()
    self._writer.flush()
    for path in self._local.iterdir():
      try:
        (self._folder / path.name).write_bytes(path.read_bytes())
      except Exception as error:
        if not is_transient(error):
          raise
