"""Crops for an autoencoder: batch i depends on the seed and i only, processes share it, short items are padded."""

import numpy as np
import pytest
from samples import hosts_of

from omni_jax.data.crops import CropLoader
from omni_jax.modalities.audio.host import LOUDNESS
from omni_jax.modalities.audio.sizes import AudioConfig

SIZES = AudioConfig(rate=100, seconds=4.0)
FRAME = SIZES.frame  # eight samples
HOST = hosts_of(audio=SIZES)['audio']
# Sample k of wave n is n + k / 1000: a sample tells where it was cut out.
LENGTHS = (5 * FRAME, 3 * FRAME, 12 * FRAME + 3, 2)
WAVES = [
  (n + np.arange(length) / 1000).astype(np.float32)
  for n, length in enumerate(LENGTHS, start=1)
]


def loader(*, batch=8, pieces=4, seed=0, shard=(0, 1)):
  return CropLoader(WAVES, HOST, batch=batch, pieces=pieces, seed=seed, shard=shard)


def crops_of(batches, n=4):
  return [next(batches) for _ in range(n)]


def assert_same(ours, theirs):
  for (value, mask), (other, their_mask) in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(value, other)
    np.testing.assert_array_equal(mask, their_mask)


def test_crops_are_parts_of_the_payloads_with_another_loudness():
  starts = set()
  for value, mask in crops_of(loader(), 20):
    assert value.shape == (8, 4, FRAME) and mask.shape == (8, 4)
    assert value.dtype == mask.dtype == np.float32
    for crop, real in zip(value.reshape(8, -1), mask, strict=True):
      n, start, loudness = cut_from(crop, int(real.sum()) * FRAME)
      assert LOUDNESS[0] <= loudness <= LOUDNESS[1]
      length = min(len(WAVES[n]), 4 * FRAME)
      assert real.tolist() == [1] * -(-length // FRAME) + [0] * (
        4 - -(-length // FRAME)
      )
      assert not crop[length:].any()
      starts.add((n, start))
  firsts = {start for n, start in starts if n == 2}
  assert {n for n, _ in starts} == {0, 1, 2, 3}
  assert len(firsts) > 20 and max(firsts) <= LENGTHS[2] - 4 * FRAME
  assert {start for n, start in starts if n in (1, 3)} == {0}


def cut_from(crop, samples):
  """(wave, first sample, loudness) of a crop; its first two samples tell."""
  for n, wave in enumerate(WAVES):
    length = min(len(wave), 4 * FRAME)
    if -(-length // FRAME) * FRAME != samples:
      continue
    for start in range(len(wave) - length + 1):
      part = wave[start : start + length]
      loudness = crop[0] / part[0]
      if np.allclose(crop[:length], part * loudness, rtol=0, atol=1e-6):
        return n, start, loudness
  raise AssertionError(crop)


def test_the_seed_decides():
  assert_same(crops_of(loader(seed=3)), crops_of(loader(seed=3)))
  (value, _), (other, _) = next(loader(seed=3)), next(loader(seed=4))
  assert (value != other).any()
  first, second = crops_of(loader(), 2)
  assert (first[0] != second[0]).any()


@pytest.mark.parametrize('count', [2, 3, 8])
def test_processes_share_the_batch_of_one(count):
  """Also where the batch does not divide by them: every crop is somebody's."""
  alone = crops_of(loader())
  parts = [crops_of(loader(shard=(k, count))) for k in range(count)]
  for i, (value, mask) in enumerate(alone):
    together = [part[i] for part in parts]
    np.testing.assert_array_equal(np.concatenate([v for v, _ in together]), value)
    np.testing.assert_array_equal(np.concatenate([m for _, m in together]), mask)


@pytest.mark.parametrize('shard', [(0, 1), (1, 2)])
def test_a_restored_loader_goes_on(shard):
  first = loader(shard=shard)
  crops_of(first, 3)
  state = CropLoader.merged([first.state(), first.state()])
  wanted = crops_of(first)
  second = loader(shard=shard)
  second.restore(state)
  assert_same(crops_of(second), wanted)
  assert second.state() == first.state() != state
  assert iter(second) is second and second.close() is None
