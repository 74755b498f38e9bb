"""Batches of crops of one size, on which an autoencoder is trained: whole items or random parts of them."""

from collections.abc import Sequence
import json
from typing import Any

import numpy as np

from omni_jax.modalities.contract import Host


class CropLoader:
  """Endless (value (N, pieces, …), mask (N, pieces)); batch i depends on the seed and i only.

  Args:
    payloads: decoded media.
    batch: crops of the global batch.
    pieces: of a crop; shorter items are padded and masked.
    shard: (index, count) of this process, which gets its part of the batch.
  """

  def __init__(
    self,
    payloads: Sequence[Any],
    host: Host,
    *,
    batch: int,
    pieces: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
  ):
    self._payloads, self._host = payloads, host
    self._batch, self._pieces = batch, pieces
    self._seed = seed
    index, count = shard
    self._own = slice(index * batch // count, (index + 1) * batch // count)
    self._next = 0

  def __iter__(self) -> 'CropLoader':
    return self

  def __next__(self) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((self._seed, self._next))
    self._next += 1
    crops = []
    for pick in rng.integers(len(self._payloads), size=self._batch):
      crops.append(self._host.crop(self._payloads[pick], self._pieces, rng))
    values, masks = zip(*crops, strict=True)
    return np.stack(values)[self._own], np.stack(masks)[self._own]

  def state(self) -> bytes:
    return json.dumps({'next': self._next}).encode()

  def restore(self, state: bytes) -> None:
    self._next = json.loads(state)['next']

  @staticmethod
  def merged(states: Sequence[bytes]) -> bytes:
    """Returns the state of all processes: they are alike."""
    return states[0]

  def close(self) -> None:
    pass
