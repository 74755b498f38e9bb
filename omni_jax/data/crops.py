"""Loads batches of crops of one size, on which an autoencoder is trained."""

from collections.abc import Sequence
import json

import numpy as np

from omni_jax.modalities.contract import Host


class CropLoader:
  """An endless iterator over batches of crops: whole media or random parts of them.

  A batch is (values (N, pieces, …), mask (N, pieces)); batch i depends on the seed and
  on i only.

  Args:
    payloads: decoded media.
    host: host of their medium.
    batch: number of crops in the global batch.
    pieces: number of pieces of a crop; shorter media are padded and masked.
    seed: decides which media are cropped, and where.
    shard: (index, count) of this process, which gets its part of the batch.
  """

  def __init__(
    self,
    payloads: Sequence[np.ndarray],
    host: Host,
    *,
    batch: int,
    pieces: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
  ):
    self._payloads = payloads
    self._host = host
    self._batch = batch
    self._pieces = pieces
    self._seed = seed
    index, count = shard
    self._own_rows = slice(index * batch // count, (index + 1) * batch // count)
    self._next = 0

  def __iter__(self) -> 'CropLoader':
    return self

  def __next__(self) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((self._seed, self._next))
    self._next += 1
    crops = []
    for number in rng.integers(len(self._payloads), size=self._batch):
      payload = self._payloads[number]
      crops.append(self._host.crop(payload, self._pieces, rng))
    values, masks = zip(*crops, strict=True)
    own_values = np.stack(values)[self._own_rows]
    own_masks = np.stack(masks)[self._own_rows]
    return own_values, own_masks

  def state(self) -> bytes:
    """Returns the iterator state, from which `restore` continues."""
    return json.dumps({'next': self._next}).encode()

  def restore(self, state: bytes) -> None:
    """Continues with the batch that follows the one after which `state` was taken."""
    self._next = json.loads(state)['next']

  @staticmethod
  def merged(states: Sequence[bytes]) -> bytes:
    """Returns the state of all processes; they are identical, so it is the first."""
    return states[0]

  def examples_before(self, state: bytes) -> int:
    """Returns the number of crops read up to a state."""
    return json.loads(state)['next'] * self._batch

  def close(self) -> None:
    """Does nothing: there are no threads or processes to end."""
