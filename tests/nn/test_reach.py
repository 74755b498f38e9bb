"""Tests what a position may attend to in packed rows, in items and in a cache."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.nn.reach import attention_reference, cached, mask_of, packed_rows, within


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_packed_rows_see_the_same_segment_and_not_the_future(segments):
  mask = np.asarray(mask_of(packed_rows(jnp.asarray([segments]))))[0]
  for q, own in enumerate(segments):
    for k, other in enumerate(segments):
      assert mask[q, k] == (k <= q and own == other and own > 0)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_a_position_sees_the_past_and_the_future_of_its_item_and_nothing_else(items):
  mask = np.asarray(mask_of(within(jnp.asarray([items]))))[0]
  for q, own in enumerate(items):
    for k, other in enumerate(items):
      assert mask[q, k] == (own == other and own > 0)


def test_a_cache_shows_the_slots_up_to_the_querys_own():
  slot = jnp.asarray([[0, 1, 2], [4, 5, 6]])
  mask = np.asarray(mask_of(cached(slot, 6)))
  np.testing.assert_array_equal(mask.sum(axis=-1), [[1, 2, 3], [5, 6, 6]])
  for row in mask.reshape(-1, 6):
    assert (np.diff(row.astype(int)) <= 0).all()
  padded = jnp.asarray([[0, 9, 1], [4, 5, 9]])  # slot 9 is past the end
  np.testing.assert_array_equal(
    mask_of(cached(padded, 9)).sum(axis=-1), [[1, 9, 2], [5, 6, 9]]
  )


def test_one_item_sees_all_of_its_pieces():
  """Pieces of an item need not be adjacent; invalid ones neither see nor are seen."""
  valid = np.array([[True, False, True], [False, False, False]])
  mask = mask_of(within(jnp.asarray(valid.astype(np.int32))))
  np.testing.assert_array_equal(mask, valid[:, None] & valid[:, :, None])


def test_only_packed_rows_are_causal_rows():
  item = jnp.asarray([[1, 1, 2, 0]])
  assert packed_rows(item).is_causal_row and not within(item).is_causal_row
  assert not cached(item, 4).is_causal_row


def test_a_query_that_sees_nothing_gets_zero_and_no_gradient(no_rank_promotion):
  q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
  reach = packed_rows(jnp.asarray([[0, 1, 1, 2, 0, 0]]))  # segment 0 is padding
  padding = [0, 4, 5]
  y, vjp = jax.vjp(lambda *qkv: attention_reference(*qkv, reach), q, k, v)
  assert (y[0, padding] == 0).all() and (y[0, 1:4] != 0).all()
  for grad in vjp(jnp.ones_like(y)):
    assert jnp.isfinite(grad).all() and (grad[0, padding] == 0).all()
