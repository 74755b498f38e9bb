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


def packed_rows(
  segment_BL: Int[Array, 'B L'], block_BL: Int[Array, 'B L'] | None = None
) -> Reach:
  """Of examples that lie one behind the other: each looks at its own past.

  Args:
    block_BL: positions of the same block (from 1, one behind the other) also see what comes later in it; None for a
      decoder that is causal.
  """
  if block_BL is None:
    return Reach(segment_BL)
  own_BL = jnp.broadcast_to(jnp.arange(segment_BL.shape[1]), segment_BL.shape)
  return Reach(segment_BL, _end_of_block(own_BL, block_BL))


def cached(
  slot_BL: Int[Array, 'B L'], slots: int, block_BL: Int[Array, 'B L'] | None = None
) -> Reach:
  """Of a query in cache slot `slot`: itself and what came before it in its row.

  Args:
    block_BL: positions of the same block (from 1) look as far as the last of them.
  """
  until_BL = slot_BL if block_BL is None else _end_of_block(slot_BL, block_BL)
  return Reach(
    jnp.ones_like(slot_BL), until_BL, jnp.ones((len(slot_BL), slots), jnp.int32)
  )


def whole(valid_BL: Bool[Array, 'B L']) -> Reach:
  """Every position, be it valid or not, looks at all valid ones."""
  one_BL = jnp.ones(valid_BL.shape, jnp.int32)
  return Reach(one_BL, one_BL * (valid_BL.shape[1] - 1), valid_BL.astype(jnp.int32))


def _end_of_block(number_BL: Array, block_BL: Array) -> Array:
  """The largest number in a position's block; outside of blocks (0) its own."""
  row, (b, l) = jnp.arange(len(block_BL))[:, None], block_BL.shape
  end_BN = (
    jnp.full((b, l + 1), -1, number_BL.dtype).at[row, block_BL].max(number_BL)
  )  # at most L blocks
  return jnp.where(block_BL > 0, end_BN[row, block_BL], number_BL)


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
