"""Batches of speech for the codec stage: whole clips or random crops of whole frames."""

from collections.abc import Sequence
import json

import numpy as np

from omni_jax.types import AudioConfig


class ClipLoader:
  """Endless (wave_NS, mask_NR); batch i depends on the seed and i only.

  Args:
    batch: clips of the global batch.
    frames: of a crop; shorter clips are padded and masked.
    shard: (index, count) of this process, which gets its part of the batch.
  """

  def __init__(
    self,
    waves: Sequence[np.ndarray],
    audio: AudioConfig,
    *,
    batch: int,
    frames: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
  ):
    self._waves, self._audio, self._batch, self._frames, self._seed = (
      waves,
      audio,
      batch,
      frames,
      seed,
    )
    self._own = slice(shard[0] * batch // shard[1], (shard[0] + 1) * batch // shard[1])
    self._next = 0

  def __iter__(self) -> 'ClipLoader':
    return self

  def __next__(self) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((self._seed, self._next))
    self._next += 1
    frame, frames = self._audio.frame, self._frames
    wave_NS = np.zeros((self._batch, frames * frame), np.float32)
    mask_NR = np.zeros((self._batch, frames), np.float32)
    for n, pick in enumerate(rng.integers(len(self._waves), size=self._batch)):
      wave, loud = self._waves[pick], np.float32(rng.uniform(0.6, 1.2))
      start = int(rng.integers(0, max(0, len(wave) - frames * frame) + 1))
      crop = wave[start : start + frames * frame] * loud
      wave_NS[n, : len(crop)] = crop
      mask_NR[n, : -(-len(crop) // frame)] = 1
    return wave_NS[self._own], mask_NR[self._own]

  def state(self) -> bytes:
    return json.dumps({'next': self._next}).encode()

  def restore(self, state: bytes) -> None:
    self._next = json.loads(state)['next']

  @staticmethod
  def merged(states: Sequence[bytes]) -> bytes:
    """The state of all processes: they are alike."""
    return states[0]

  def close(self) -> None:
    pass
