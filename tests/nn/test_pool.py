"""Looking up values and averaging pieces in a pool give the results of plain loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.nn.pool import counts, Pool
from omni_jax.nn.reach import mask_of

ITEMS = 5
WIDTH = 3
LONGEST = 4
# Block size and items of each row: blocks that hold several whole items, blocks with at
# most one item, and rows shorter than a block.
SHARED = (
  8,
  [
    [1, 1, 2, 2, 3, 3, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0],
    [0] * 16,
  ],
)
ALONE = (
  4,
  [
    [1, 1, 0, 0, 2, 2, 2, 2, 3, 0, 0, 0],
    [1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0],
    [0] * 12,
  ],
)
SHORT = (8, [[1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 2, 2]])
SHORT_ALONE = (8, [[1, 1, 1], [1, 0, 0]])
CASES = dict(shared=SHARED, alone=ALONE, short=SHORT, short_alone=SHORT_ALONE)
every_pool = pytest.mark.parametrize('name', CASES)


def pool_of(name: str) -> tuple[Pool, np.ndarray]:
  """Returns the pool of a case, and the item of each piece in its rows."""
  block, rows = CASES[name]
  item_BM = np.array(rows, np.int32)
  pool = Pool.of(jnp.asarray(item_BM), ITEMS, block=block, longest=LONGEST)
  assert pool.one_item == (name in ('alone', 'short_alone'))
  return pool, item_BM


def by_gathering(item_BM: np.ndarray, value_BNW: jax.Array) -> jax.Array:
  """Returns for each piece the value of its item, 0 for pieces without an item."""
  zero_B1W = jnp.zeros_like(value_BNW[:, :1])
  with_zero = jnp.concatenate([zero_B1W, value_BNW], axis=1)
  return jnp.stack([row[item] for row, item in zip(with_zero, item_BM, strict=True)])


def mean_by_loops(item_BM: np.ndarray, value_BMW: jax.Array) -> jax.Array:
  """Returns the mean over the pieces of each item, 0 for items without pieces."""
  means = []
  for row, items in zip(value_BMW, item_BM, strict=True):
    for item in range(1, ITEMS + 1):
      pieces = row[items == item]
      means.append(pieces.mean(axis=0) if len(pieces) else jnp.zeros(WIDTH))
  return jnp.stack(means).reshape(len(item_BM), ITEMS, WIDTH)


def with_gradient(function, x):
  """Returns the value, and the gradient of a randomly weighted sum of it."""
  weight = jax.random.normal(jax.random.key(1), jax.eval_shape(function, x).shape)
  return function(x), jax.grad(lambda x: (function(x) * weight).sum())(x)


@every_pool
def test_look_up_gives_each_piece_the_value_of_its_item(name):
  pool, item_BM = pool_of(name)
  value_BNW = jax.random.normal(jax.random.key(0), (len(item_BM), ITEMS, WIDTH))

  def look_up(value_BNW):
    value_UPW = pool.look_up(value_BNW)
    assert value_UPW.shape[1] == (1 if pool.one_item else pool.pieces)
    shape = (*pool.item_UP.shape, WIDTH)
    value_BMW = pool.rows(jnp.broadcast_to(value_UPW, shape), len(item_BM))
    # If an item is alone in its block, the padding behind it gets its value as well.
    return value_BMW * (item_BM > 0)[..., None]

  result = with_gradient(look_up, value_BNW)
  reference = with_gradient(partial(by_gathering, item_BM), value_BNW)
  for actual, expected in zip(result, reference, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@every_pool
def test_mean_is_over_the_pieces_of_each_item(name):
  pool, item_BM = pool_of(name)
  value_BMW = jax.random.normal(jax.random.key(0), (*item_BM.shape, WIDTH))

  def mean(value_BMW):
    return pool.mean(pool.blocks(value_BMW), len(item_BM))

  result = with_gradient(mean, value_BMW)
  reference = with_gradient(partial(mean_by_loops, item_BM), value_BMW)
  for actual, expected in zip(result, reference, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
  _, gradient_BMW = result
  assert not np.asarray(gradient_BMW)[item_BM == 0].any(), 'padding has a gradient'


@every_pool
def test_rows_of_blocks_are_the_rows(name):
  pool, item_BM = pool_of(name)
  value_BMW = jax.random.normal(jax.random.key(0), (*item_BM.shape, WIDTH))
  rows_BMW = pool.rows(pool.blocks(value_BMW), len(item_BM))
  np.testing.assert_array_equal(rows_BMW, value_BMW)


@every_pool
def test_counts_are_the_numbers_of_pieces_of_the_items(name):
  _, item_BM = pool_of(name)
  expected = [np.bincount(row, minlength=ITEMS + 1)[1:] for row in item_BM]
  np.testing.assert_array_equal(counts(jnp.asarray(item_BM), ITEMS), expected)


@every_pool
def test_a_piece_sees_the_pieces_of_its_item_and_no_others(name):
  pool, item_BM = pool_of(name)
  mask_UPP = mask_of(pool.reach())
  item_UP = np.asarray(pool.item_UP)
  for mask_PP, item_P in zip(mask_UPP, item_UP, strict=True):
    for q, k in np.ndindex(*mask_PP.shape):
      assert mask_PP[q, k] == (item_P[q] == item_P[k] and item_P[q] > 0)
  # The blocks have as many pairs of pieces of one item as the rows: none is split.
  pairs = 0
  for row in item_BM:
    pairs += (np.bincount(row)[1:] ** 2).sum()
  assert mask_UPP.sum() == pairs


def test_a_pool_computes_in_the_type_of_its_values():
  for name in CASES:
    pool, item_BM = pool_of(name)
    values = jnp.ones((len(item_BM), ITEMS, WIDTH), jnp.bfloat16)
    pieces = jnp.ones((*pool.item_UP.shape, WIDTH), jnp.bfloat16)
    assert pool.look_up(values).dtype == jnp.bfloat16
    assert pool.mean(pieces, len(item_BM)).dtype == jnp.bfloat16
