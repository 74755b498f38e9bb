"""The positions a query may look at, and the attention that every kernel must equal.

A reach holds numbers per position instead of a mask of L×S.
"""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int


class Reach(NamedTuple):
  """The keys that queries see: those of their own segment, up to some key of the row.

  Segment 0 is padding: it sees nothing and nothing sees it.

  Attributes:
    segment_BL: segments of the queries.
    until_BL: number of the last key that a query sees; None in a causal row, where it
      is the query's own number.
    key_segment_BS: segments of the keys; None if the keys are the queries' own
      positions.
  """

  segment_BL: Array
  until_BL: Array | None = None
  key_segment_BS: Array | None = None

  @property
  def is_causal_row(self) -> bool:
    """True if every position sees its own past in its row, as kernels assume."""
    return self.until_BL is None and self.key_segment_BS is None

  def spelled_out(self) -> 'Reach':
    """Returns the same reach without any None."""
    segment_BL, until_BL, key_segment_BS = self
    if until_BL is None:
      until_BL = jnp.broadcast_to(jnp.arange(segment_BL.shape[1]), segment_BL.shape)
    if key_segment_BS is None:
      key_segment_BS = segment_BL
    return Reach(segment_BL, until_BL, key_segment_BS)


def packed_rows(segment_BL: Int[Array, 'B L']) -> Reach:
  """Returns the reach of examples that follow each other in a row.

  Each position sees the past of its own example.
  """
  return Reach(segment_BL)


def cached(slot_BL: Int[Array, 'B L'], slots: int) -> Reach:
  """Returns the reach of queries in a cache: their own slot and those before it."""
  keys = jnp.ones((len(slot_BL), slots), jnp.int32)
  return Reach(jnp.ones_like(slot_BL), slot_BL, keys)


def within(item_BL: Int[Array, 'B L']) -> Reach:
  """Returns the reach of items that follow each other in a row.

  Each position sees all of its own item; items count from 1.
  """
  last_BL = jnp.full_like(item_BL, item_BL.shape[1] - 1)
  return Reach(item_BL, last_BL, item_BL)


def mask_of(reach: Reach) -> Bool[Array, 'B L S']:
  """Returns a mask that is True where query q may look at key k."""
  segment_BL, until_BL, key_segment_BS = reach.spelled_out()
  assert until_BL is not None and key_segment_BS is not None
  same_BLS = segment_BL[:, :, None] == key_segment_BS[:, None, :]
  same_BLS = same_BLS & (segment_BL > 0)[:, :, None]
  key_S = jnp.arange(key_segment_BS.shape[1])
  return same_BLS & (key_S[None, None] <= until_BL[:, :, None])


def attention_reference(
  q_BLHA: Float[Array, 'B L H A'],
  k_BSGA: Float[Array, 'B S G A'],
  v_BSGA: Float[Array, 'B S G A'],
  reach: Reach,
) -> Float[Array, 'B L H A']:
  """Returns softmax attention with grouped keys, scaled by 1/√A, all logits at once.

  It is zero for a query that sees nothing.
  """
  mask_BLS = mask_of(reach)
  y_BLHA = jax.nn.dot_product_attention(q_BLHA, k_BSGA, v_BSGA, mask=mask_BLS[:, None])
  return jnp.where(mask_BLS.any(axis=2)[..., None, None], y_BLHA, 0)
