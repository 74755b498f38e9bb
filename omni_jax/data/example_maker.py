"""Prepares examples for packing, in this process or in workers that never load jax."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.worker_pool import WorkerPool
from omni_jax.errors import BadRecord
from omni_jax.modalities.hosts import Hosts
from omni_jax.sequence.augment import augment_example
from omni_jax.sequence.example import Example
from omni_jax.sequence.interleave import interleave
from omni_jax.sequence.pack import LaidOut, lay_out

TIMEOUT = 300.0  # seconds for one example
DIED_MESSAGE = (
  'a data worker has died (out of memory?): run the same command again to continue '
  'from the last checkpoint, or set config.loader.workers=0 to see the cause'
)


class Place(NamedTuple):
  """A position in the endless order, and the example that it holds.

  Attributes:
    position: position in the order, from 0.
    example: index of the example.
  """

  position: int
  example: int


class ExampleMaker(NamedTuple):
  """The inputs of a prepared example, besides its place in the order.

  Attributes:
    examples: the examples, with random access.
    hosts: hosts of the run's media.
    seed: seed of the order and of the augmentation.
    augment: augmentation config of each medium that is augmented, by name; None for no
      augmentation.
  """

  examples: Sequence[Example]
  hosts: Hosts
  seed: int
  augment: Mapping[str, Any] | None = None

  def __call__(self, place: Place) -> LaidOut | BadRecord:
    """Returns the example at a place, laid out, or why it cannot be used.

    Augmentation depends on the seed and the position: it differs between epochs and is
    the same after a restart.
    """
    try:
      example = self.examples[place.example]
      if self.augment:
        rng = np.random.default_rng((self.seed, place.position))
        example = augment_example(example, self.augment, self.hosts, rng)
      return prepare(example, self.hosts)
    except BadRecord as error:
      return error  # raising it would end the stream

  def block(self, places: Sequence[Place]) -> list[LaidOut | BadRecord]:
    """Returns the examples at several places."""
    return [self(place) for place in places]


def prepare(example: Example, hosts: Hosts) -> LaidOut:
  """Returns the positions of an example with decoded media."""
  spans = interleave(example, hosts)
  return lay_out(spans, hosts, str(example.get('id', '')))


class InProcess:
  """Prepares examples in this process, at the moment they are needed."""

  block = 1  # examples per request
  ahead = 0  # blocks to request before they are needed

  def __init__(self, maker: ExampleMaker):
    self._maker = maker

  def submit(self, places: list[Place]) -> list[Place]:
    """Returns the request for a block of examples, which `result` takes."""
    return places

  def result(self, request: list[Place]) -> list[LaidOut | BadRecord]:
    """Returns the requested examples."""
    return self._maker.block(request)

  def close(self) -> None:
    """Does nothing: there are no processes to end."""


class Workers(WorkerPool):
  """Prepares examples in worker processes."""

  block = 16  # examples per request

  def __init__(self, maker: ExampleMaker, count: int):
    super().__init__(
      maker.block,
      count,
      timeout=TIMEOUT,
      died_message=DIED_MESSAGE,
      hang_message=f'a data worker has returned nothing for {TIMEOUT:.0f} s: it hangs; '
      'set config.loader.workers=0 to see where',
    )
    self.ahead = 3 * count  # blocks to request before they are needed
