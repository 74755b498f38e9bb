"""Rectified flow trains and samples by one convention; noise belongs to an item."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.image.flow import (
  flow_loss,
  noised,
  sample,
  sample_noise,
  start_noise,
  velocity,
)
from omni_jax.types import Stream

DATA, NOISE = jax.random.normal(jax.random.key(0), (2, 3, 4, 4))
KEY = jax.random.key(1)
VALUES = 2


def test_zero_is_noise_and_one_is_data():
  np.testing.assert_array_equal(noised(DATA, NOISE, jnp.float32(0)), NOISE)
  np.testing.assert_array_equal(noised(DATA, NOISE, jnp.float32(1)), DATA)
  _, slope = jax.jvp(lambda t: noised(DATA, NOISE, t), (0.3,), (1.0,))
  np.testing.assert_allclose(slope, velocity(DATA, NOISE), rtol=1e-6)


@pytest.mark.parametrize('steps', [1, 2, 7, 50])
def test_the_true_velocity_reaches_the_data_in_any_number_of_steps(steps):
  straight = sample(lambda x, t: velocity(DATA, NOISE), NOISE, steps=steps)
  np.testing.assert_allclose(straight, DATA, atol=1e-5)
  from_x = sample(lambda x, t: (DATA - x) / (1 - t), NOISE, steps=steps)
  np.testing.assert_allclose(from_x, DATA, atol=1e-4)


# Name of an item -> its places (time, row, column).
ITEMS = {
  7: [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)],
  2**32 - 1: [(0, 0, 0), (0, 0, 1), (0, 0, 2)],
  5: [(0, 0, 0)],
  6: [(1, 0, 0), (0, 1, 0)],
}


def stream_of(rows: list[list[int]], pieces: int, items: int) -> Stream:
  """Returns a pool whose rows hold these items, one after another."""
  item_BM = np.zeros((len(rows), pieces), np.int32)
  place_BM3 = np.zeros((len(rows), pieces, 3), np.int32)
  key_BN = np.zeros((len(rows), items), np.uint32)
  for row, names in enumerate(rows):
    first = 0
    for number, name in enumerate(names):
      end = first + len(ITEMS[name])
      item_BM[row, first:end] = number + 1
      place_BM3[row, first:end] = ITEMS[name]
      key_BN[row, number] = name
      first = end
  at_BM = np.where(item_BM > 0, np.arange(pieces), -1).astype(np.int32)
  form_BN3 = np.zeros((len(rows), items, 3), np.int32)
  value_BM = np.zeros((len(rows), pieces, VALUES), np.uint8)
  stream = Stream(
    value_BM=value_BM,
    item_BM=item_BM,
    place_BM3=place_BM3,
    at_BL=at_BM,
    query_at_BL=at_BM,
    write_at_BM=at_BM,
    form_BN3=form_BN3,
    key_BN=key_BN,
  )
  return jax.tree.map(jnp.asarray, stream)


class RandomNumbers(NamedTuple):
  """Random numbers of a pool.

  Attributes:
    noise: by (name, place) of a piece.
    time_and_chance: by name of an item.
  """

  noise: dict[tuple[int, tuple[int, int, int]], np.ndarray]
  time_and_chance: dict[int, np.ndarray]


def random_numbers(rows, pieces=10, items=4, key=KEY, samples=2) -> RandomNumbers:
  """Returns the random numbers of a pool whose rows hold these items."""
  stream = stream_of(rows, pieces, items)
  noise = sample_noise(stream, key, samples=samples, values=VALUES, shift=1.0)
  assert noise.noise_BKMY.shape == (len(rows), samples, pieces, VALUES)
  assert noise.t_BKN.shape == noise.chance_BKN.shape == (len(rows), samples, items)
  by_piece = {}
  by_item = {}
  for row, names in enumerate(rows):
    first = 0
    for number, name in enumerate(names):
      time = noise.t_BKN[row, :, number]
      chance = noise.chance_BKN[row, :, number]
      by_item[name] = np.stack([time, chance])
      for k, place in enumerate(ITEMS[name]):
        by_piece[name, place] = np.asarray(noise.noise_BKMY[row, :, first + k])
      first += len(ITEMS[name])
  return RandomNumbers(by_piece, by_item)


def test_noise_depends_on_the_step_the_name_and_the_place_only():
  """Row, number in the row, neighbours and sizes of the pool do not change a bit."""
  in_one_row = random_numbers([list(ITEMS)])
  elsewhere = random_numbers([[6, 5], [], [2**32 - 1, 7]], pieces=7, items=3)
  for actual, expected in zip(elsewhere, in_one_row, strict=True):
    assert set(actual) == set(expected)
    for name in actual:
      np.testing.assert_array_equal(actual[name], expected[name])


@pytest.mark.parametrize('field', RandomNumbers._fields)
def test_every_item_place_sample_and_step_has_its_own_numbers(field):
  now = getattr(random_numbers([list(ITEMS)]), field)
  later = getattr(random_numbers([list(ITEMS)], key=jax.random.key(2)), field)
  arrays = [x.reshape(-1) for x in (*now.values(), *later.values())]
  flat = np.concatenate(arrays)
  assert len(np.unique(flat)) == len(flat)


def test_noise_is_normal_times_are_shifted_and_chance_is_even():
  place = jnp.zeros((1, 4000, 3), jnp.int32).at[0, :, 2].set(jnp.arange(4000) % 1000)
  number = jnp.arange(4000)[None]
  stream = stream_of([[]], 1, 1)._replace(
    item_BM=number + 1, place_BM3=place, key_BN=number.astype(jnp.uint32)
  )
  plain = sample_noise(stream, KEY, samples=1, values=1, shift=1.0)
  shifted = sample_noise(stream, KEY, samples=1, values=1, shift=3.0)
  noise = np.asarray(plain.noise_BKMY)
  assert abs(noise.mean()) < 0.05
  assert abs(noise.std() - 1) < 0.05
  np.testing.assert_allclose(np.median(plain.t_BKN), 0.5, atol=0.02)  # logit-normal
  spread = np.log(plain.t_BKN / (1 - plain.t_BKN)).std()
  np.testing.assert_allclose(spread, 1, atol=0.05)
  t = np.asarray(plain.t_BKN)
  np.testing.assert_allclose(shifted.t_BKN, 3 * t / (1 + 2 * t), rtol=1e-5)
  chance = np.asarray(plain.chance_BKN)
  assert chance.min() >= 0
  assert chance.max() < 1
  np.testing.assert_allclose((chance < 0.1).mean(), 0.1, atol=0.02)
  assert abs(np.corrcoef(t.ravel(), chance.ravel())[0, 1]) < 0.05


def test_drawing_begins_at_noise_of_the_rows_key_and_the_place():
  keys = jax.random.split(KEY, 2)
  place = jnp.asarray([ITEMS[7], ITEMS[7][::-1]])
  both = start_noise(keys, place, VALUES)
  alone = start_noise(keys[1:], place[1:, :1], VALUES)
  np.testing.assert_array_equal(both[1, :1], alone[0])
  assert len(np.unique(both)) == both.size


def test_an_item_has_the_weight_of_one_whatever_its_size():
  stream = stream_of([[7, 5], [6]], pieces=6, items=2)
  error = jax.random.normal(KEY, (2, 3, 6, VALUES))
  units = flow_loss(error, stream)
  square = np.square(np.asarray(error)).mean(axis=(1, 3))
  expected = square[0, :4].mean() + square[0, 4] + square[1, :2].mean()
  np.testing.assert_allclose(units.summed(), (expected, 3), rtol=1e-5)
  np.testing.assert_array_equal(units.at_BU, stream.write_at_BM)
  assert not units.loss_BU[np.asarray(stream.item_BM) == 0].any()
