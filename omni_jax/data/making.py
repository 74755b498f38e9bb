"""From an example's number to its positions: what workers do, side by side, in processes that never load jax."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.worker_pool import Pool
from omni_jax.errors import BadRecord
from omni_jax.modalities.hosts import Hosts
from omni_jax.sequence.augment import augmented
from omni_jax.sequence.example import Example
from omni_jax.sequence.interleave import interleave
from omni_jax.sequence.pack import Laid, lay_out

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
  """Everything that an example's positions depend on, beside its place.

  Attributes:
    examples: in random order of access.
    hosts: of the run's media.
    seed: of the order and of the augmentation.
    augment: by medium, how much what is only read changes; None for not at all.
  """

  examples: Sequence[Example]
  hosts: Hosts
  seed: int
  augment: Mapping[str, Any] | None = None

  def __call__(self, place: Place) -> Laid | BadRecord:
    """Augmentation depends on seed and position: another one in every pass, the same after a restart."""
    try:
      example = self.examples[place.example]
      if self.augment:
        rng = np.random.default_rng((self.seed, place.position))
        example = augmented(example, self.augment, self.hosts, rng)
      return prepare(example, self.hosts)
    except BadRecord as bad:  # raised, it would end the stream
      return bad

  def block(self, places: Sequence[Place]) -> list[Laid | BadRecord]:
    return list(map(self, places))


def prepare(example: Example, hosts: Hosts) -> Laid:
  """Returns the positions of an example with decoded media."""
  return lay_out(interleave(example, hosts), hosts, str(example.get('id', '')))


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
