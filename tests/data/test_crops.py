"""Tests crops for an autoencoder.

Batch i depends only on the seed and i, processes share it, short items are padded.
"""

import numpy as np
import pytest
from samples import hosts_of

from omni_jax.data.crops import CropLoader
from omni_jax.modalities.audio.host import LOUDNESS
from omni_jax.modalities.audio.sizes import AudioConfig

SIZES = AudioConfig(rate=100, seconds=4.0)
FRAME = SIZES.frame  # eight samples
HOST = hosts_of(audio=SIZES)['audio']
# More frames than a crop of four, fewer, many more, and a part of one.
LENGTHS = (5 * FRAME, 3 * FRAME, 12 * FRAME + 3, 2)
# Sample k of wave n is n + k / 1000, so that a sample tells where it was cut out.
WAVES = [
  (n + np.arange(length) / 1000).astype(np.float32)
  for n, length in enumerate(LENGTHS, start=1)
]


def loader(*, batch=8, pieces=4, seed=0, shard=(0, 1)):
  return CropLoader(WAVES, HOST, batch=batch, pieces=pieces, seed=seed, shard=shard)


def crops_of(batches, n=4):
  return [next(batches) for _ in range(n)]


def assert_same(actual, expected):
  for crops, expected_crops in zip(actual, expected, strict=True):
    for array, expected_array in zip(crops, expected_crops, strict=True):
      np.testing.assert_array_equal(array, expected_array)


def test_crops_are_parts_of_the_payloads_with_another_loudness():
  starts = [set() for _ in WAVES]
  for value, mask in crops_of(loader(), 20):
    assert value.shape == (8, 4, FRAME) and mask.shape == (8, 4)
    assert value.dtype == mask.dtype == np.float32
    for crop, mask_of_crop in zip(value.reshape(8, -1), mask, strict=True):
      n, start, loudness = origin_of(crop, int(mask_of_crop.sum()) * FRAME)
      assert LOUDNESS[0] <= loudness <= LOUDNESS[1]
      length = min(len(WAVES[n]), 4 * FRAME)
      frames = frames_of(length)
      assert mask_of_crop.tolist() == [1] * frames + [0] * (4 - frames)
      assert not crop[length:].any()
      starts[n].add(start)
  assert all(starts), 'every wave is cropped'
  assert len(starts[2]) > 20
  assert max(starts[2]) <= LENGTHS[2] - 4 * FRAME
  assert starts[1] == starts[3] == {0}


def frames_of(samples):
  """Returns the number of frames that hold the samples."""
  return -(-samples // FRAME)


def origin_of(crop, samples):
  """Returns (number of the wave, first sample, loudness) of a crop.

  Args:
    samples: number of its samples that are not padding.
  """
  for n, wave in enumerate(WAVES):
    length = min(len(wave), 4 * FRAME)
    if frames_of(length) * FRAME != samples:
      continue
    for start in range(len(wave) - length + 1):
      part = wave[start : start + length]
      loudness = crop[0] / part[0]
      if np.allclose(crop[:length], part * loudness, rtol=0, atol=1e-6):
        return n, start, loudness
  raise AssertionError(crop)


def test_crops_depend_on_the_seed_and_on_the_batch():
  assert_same(crops_of(loader(seed=3)), crops_of(loader(seed=3)))
  value, _ = next(loader(seed=3))
  other, _ = next(loader(seed=4))
  assert (value != other).any()
  (first, _), (second, _) = crops_of(loader(), 2)
  assert (first != second).any()


@pytest.mark.parametrize('count', [2, 3, 8])
def test_processes_share_the_batch_of_one(count):
  """They also do if their number does not divide the batch."""
  alone = crops_of(loader())
  parts = [crops_of(loader(shard=(k, count))) for k in range(count)]
  for crops, *shards in zip(alone, *parts, strict=True):
    for array, *own in zip(crops, *shards, strict=True):
      np.testing.assert_array_equal(np.concatenate(own), array)


@pytest.mark.parametrize('shard', [(0, 1), (1, 2)])
def test_a_restored_loader_continues(shard):
  first = loader(shard=shard)
  crops_of(first, 3)
  state = CropLoader.merged([first.state(), first.state()])
  expected = crops_of(first)
  second = loader(shard=shard)
  second.restore(state)
  assert_same(crops_of(second), expected)
  assert second.state() == first.state() != state
  assert iter(second) is second and second.close() is None
