"""What a query may look at, in numbers by the position instead of a mask of L×S; the attention that all must equal."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int


class Reach(NamedTuple):
  """A query looks at the keys of its own segment (> 0), up to and with key number `until` of the row.

  Segment 0 is padding: it looks at nothing and nothing looks at it.

  Attributes:
    segment_BL: of the queries.
    until_BL: None in a causal row, where it is the query's own number.
    key_segment_BS: None where the keys are the queries' own positions.
  """

  segment_BL: Array
  until_BL: Array | None = None
  key_segment_BS: Array | None = None

  @property
  def is_causal_row(self) -> bool:
    """Whether this is what kernels know by heart: a row that looks at its own past."""
    return self.until_BL is None and self.key_segment_BS is None

  def spelled_out(self) -> 'Reach':
    """The same with no None."""
    segment_BL, until_BL, key_segment_BS = self
    if until_BL is None:
      until_BL = jnp.broadcast_to(jnp.arange(segment_BL.shape[1]), segment_BL.shape)
    return Reach(
      segment_BL, until_BL, segment_BL if key_segment_BS is None else key_segment_BS
    )


def packed_rows(segment_BL: Int[Array, 'B L']) -> Reach:
  """Returns the reach of examples that lie one behind the other: each looks at its own past."""
  return Reach(segment_BL)


def cached(slot_BL: Int[Array, 'B L'], slots: int) -> Reach:
  """Returns the reach of a query in cache slot `slot`: itself and what came before it in its row."""
  keys = jnp.ones((len(slot_BL), slots), jnp.int32)
  return Reach(jnp.ones_like(slot_BL), slot_BL, keys)


def within(item_BL: Int[Array, 'B L']) -> Reach:
  """Returns the reach of items that lie one behind the other: each position looks at all of its own item (from 1)."""
  last_BL = jnp.full_like(item_BL, item_BL.shape[1] - 1)
  return Reach(item_BL, last_BL, item_BL)


def mask_of(reach: Reach) -> Bool[Array, 'B L S']:
  """True where query q may look at key k."""
  segment_BL, until_BL, key_segment_BS = reach.spelled_out()
  same_BLS = (segment_BL[:, :, None] == key_segment_BS[:, None, :]) & (segment_BL > 0)[
    :, :, None
  ]
  return same_BLS & (
    jnp.arange(key_segment_BS.shape[1])[None, None] <= until_BL[:, :, None]
  )


def attention_reference(
  q_BLHA: Float[Array, 'B L H A'],
  k_BSGA: Float[Array, 'B S G A'],
  v_BSGA: Float[Array, 'B S G A'],
  reach: Reach,
) -> Float[Array, 'B L H A']:
  """Softmax attention with grouped keys, scaled by 1/√A, all logits at once; zero for a query that sees nothing."""
  mask_BLS = mask_of(reach)
  y_BLHA = jax.nn.dot_product_attention(q_BLHA, k_BSGA, v_BSGA, mask=mask_BLS[:, None])
  return jnp.where(mask_BLS.any(axis=2)[..., None, None], y_BLHA, 0)
