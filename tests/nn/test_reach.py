"""What may be looked at: segments, the past, open blocks, slots of a cache; and what a query gets that sees nothing."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.nn.reach import attention_reference, cached, mask_of, packed_rows, whole


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_packed_rows_see_the_same_segment_and_not_the_future(segments):
  mask = np.asarray(mask_of(packed_rows(jnp.asarray([segments]))))[0]
  for q, mine in enumerate(segments):
    for k, other in enumerate(segments):
      assert mask[q, k] == (k <= q and mine == other and mine > 0)


def test_an_open_block_sees_its_own_future_too():
  block = jnp.asarray([[0, 1, 1, 1, 0, 2, 2], [0, 0, 3, 3, 0, 0, 0]])
  mask = np.asarray(mask_of(packed_rows(jnp.ones_like(block), block)))
  same = (block[:, :, None] == block[:, None]) & (block > 0)[:, :, None]
  np.testing.assert_array_equal(mask, np.tri(7, dtype=bool)[None] | same)


def test_a_cache_shows_the_slots_up_to_ones_own_or_to_the_end_of_the_block():
  slot = jnp.asarray([[0, 1, 2], [4, 5, 6]])
  mask = np.asarray(mask_of(cached(slot, 6)))
  np.testing.assert_array_equal(mask.sum(axis=-1), [[1, 2, 3], [5, 6, 6]])
  assert all((np.diff(row.astype(int)) <= 0).all() for row in mask.reshape(-1, 6))
  block = jnp.asarray([[0, 2, 2], [1, 0, 1]])  # with a position of padding inside
  np.testing.assert_array_equal(
    mask_of(cached(slot, 9, block)).sum(axis=-1), [[1, 3, 3], [7, 6, 7]]
  )


def test_whole_sees_all_that_is_valid():
  valid = np.array([[True, False, True], [False, False, False]])
  np.testing.assert_array_equal(
    mask_of(whole(jnp.asarray(valid))), np.repeat(valid[:, None], 3, axis=1)
  )


def test_a_query_that_sees_nothing_gets_zero_and_gives_no_gradient(strict_ranks):
  q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
  reach = packed_rows(jnp.asarray([[0, 1, 1, 2, 0, 0]]))
  y, back = jax.vjp(lambda *qkv: attention_reference(*qkv, reach), q, k, v)
  assert (y[0, [0, 4, 5]] == 0).all() and (y[0, 1:4] != 0).all()
  for grad in back(jnp.ones_like(y)):
    assert jnp.isfinite(grad).all() and (grad[0, [0, 4, 5]] == 0).all()
