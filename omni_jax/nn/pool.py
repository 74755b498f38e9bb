"""Pools: rows of equal pieces that belong to items.

Values computed once per item are looked up by its pieces, and pieces are averaged over
their item.
"""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from omni_jax.nn.reach import Reach, within


class Pool(NamedTuple):
  """The pieces of a pool, in U blocks of P pieces.

  An item lies entirely within one block, and attention stays inside a block.

  Attributes:
    item_UP: int32, number (from 1) of the item in its row that each piece belongs to; 0
      for none.
    items: N, the largest number of items in a row.
    one_item: whether a block holds at most one item, so that a value of the item is a
      value of the block.
  """

  item_UP: Array
  items: int
  one_item: bool

  @classmethod
  def of(
    cls, item_BM: Int[Array, 'B M'], items: int, *, block: int, longest: int
  ) -> 'Pool':
    """Returns the pool of rows of M pieces, cut into blocks.

    Args:
      items: the largest number of items in a row.
      block: pieces in a block; a row that is no longer is one block.
      longest: the largest number of pieces in an item.
    """
    pieces = min(block, item_BM.shape[1])
    return cls(item_BM.reshape(-1, pieces), items, one_item=pieces <= longest)

  @property
  def pieces(self) -> int:
    """Number of pieces in a block."""
    return self.item_UP.shape[1]

  def blocks(self, value_BM: Shaped[Array, 'B M *rest']) -> Shaped[Array, 'U P *rest']:
    """Returns rows of pieces, cut into blocks."""
    return value_BM.reshape(-1, self.pieces, *value_BM.shape[2:])

  def rows(
    self, value_UP: Shaped[Array, 'U P *rest'], rows: int
  ) -> Shaped[Array, 'B M *rest']:
    """Returns blocks, joined to rows: the inverse of `blocks`."""
    return value_UP.reshape(rows, -1, *value_UP.shape[2:])

  def reach(self) -> Reach:
    """Returns the reach of the pieces: each sees all of its own item, both ways."""
    return within(self.item_UP)

  def members(self, dtype: jax.typing.DTypeLike) -> Float[Array, 'U P1 N']:
    """Returns 1 where a piece belongs to an item of its row, else 0.

    P1 is P, or 1 if every block holds at most one item: then the block stands for its
    pieces.
    """
    item = self.item_UP.max(axis=1, keepdims=True) if self.one_item else self.item_UP
    return jax.nn.one_hot(item - 1, self.items, dtype=dtype)

  def look_up(self, value_BNW: Float[Array, 'B N W']) -> Float[Array, 'U P1 W']:
    """Returns the value of each piece's item; P1 is as in `members`.

    It is a product with zeros and ones, and so is its gradient: the gradients of
    gathers are slow in XLA:CPU.
    """
    member_UPN = self.members(value_BNW.dtype)
    rows = value_BNW.shape[0]
    member_BMN = member_UPN.reshape(rows, -1, self.items)
    value_BMW = jnp.einsum('bmn,bnw->bmw', member_BMN, value_BNW)
    return value_BMW.reshape(*member_UPN.shape[:2], -1)

  def mean(self, value_UPW: Float[Array, 'U P W'], rows: int) -> Float[Array, 'B N W']:
    """Returns the mean over the pieces of each item, 0 for an item without pieces."""
    member_UPN = jax.nn.one_hot(self.item_UP - 1, self.items, dtype=value_UPW.dtype)
    member_BMN = member_UPN.reshape(rows, -1, self.items)
    value_BMW = value_UPW.reshape(rows, -1, value_UPW.shape[-1])
    sums_BNW = jnp.einsum('bmn,bmw->bnw', member_BMN, value_BMW)
    count_BN = member_BMN.sum(axis=1)
    return sums_BNW / jnp.maximum(count_BN, 1)[..., None]


def counts(item_BM: Int[Array, 'B M'], items: int) -> Float[Array, 'B N']:
  """Returns the number of pieces of each item."""
  return jax.nn.one_hot(item_BM - 1, items).sum(axis=1)
