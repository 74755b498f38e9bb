"""From an example's number to its positions: what workers do, side by side, in processes that never load jax."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from omni_jax.data.worker_pool import Pool
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.sequence.augment import Augment
from omni_jax.sequence.example import Example
from omni_jax.sequence.interleave import interleave
from omni_jax.sequence.media import BadRecord
from omni_jax.sequence.pack import Laid, lay_out
from omni_jax.types import MediaConfig

TIMEOUT = 300.0  # seconds for one example
DIED = (
  'a data worker has died (out of memory?); the same command goes on from the last checkpoint, '
  'config.loader.workers=0 shows what it died of'
)


class Place(NamedTuple):
  """Where an example stands in the endless order, and which one it is."""

  position: int
  example: int


class Making(NamedTuple):
  """Everything that an example's positions depend on, beside its place."""

  examples: Sequence[Example]
  tokenizer: Tokenizer
  media: MediaConfig
  seed: int
  augment: Augment | None = None

  def __call__(self, place: Place) -> Laid | BadRecord:
    """Augmentation depends on seed and position: another one in every pass, the same after a restart."""
    try:
      example = self.examples[place.example]
      if self.augment:
        rng = np.random.default_rng((self.seed, place.position))
        example = self.augment(
          example, rng, rate=self.media.audio.rate, limit=self.media.audio.samples
        )
      return prepare(example, self.tokenizer, self.media)
    except BadRecord as bad:  # raised, it would end the stream
      return bad

  def block(self, places: Sequence[Place]) -> list[Laid | BadRecord]:
    return list(map(self, places))


def prepare(example: Example, tokenizer: Tokenizer, media: MediaConfig) -> Laid:
  """An example with decoded media -> its positions."""
  return lay_out(
    interleave(example, tokenizer), tokenizer, media, str(example.get('id', ''))
  )


class Here:
  """Makes examples when they are asked for."""

  block = 1  # examples asked for at once
  ahead = 0  # blocks to ask for before they are needed

  def __init__(self, making: Making):
    self._making = making

  def ask(self, places: list[Place]) -> list[Place]:
    return places

  def get(self, asked: list[Place]) -> list[Laid | BadRecord]:
    return self._making.block(asked)

  def close(self) -> None:
    pass


class Workers(Pool):
  """Makes examples in processes of their own."""

  block = 16

  def __init__(self, making: Making, count: int):
    super().__init__(
      making.block,
      count,
      timeout=TIMEOUT,
      died=DIED,
      hangs=f'a data worker has made nothing for '
      f'{TIMEOUT:.0f} s: it hangs; config.loader.workers=0 shows where',
    )
    self.ahead = 3 * count
