"""Pools: rows of equal pieces that belong to items; what is an item's is looked up by its pieces."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from omni_jax.nn.reach import Reach, within


class Pool(NamedTuple):
  """The pieces of a pool in blocks, in which attention happens; an item lies whole within one block.

  Attributes:
    item_UP: int32, 1… for the item of the row that a piece belongs to, 0 where there is none; P pieces a block.
    items: N, most items of a row.
    alone: a block holds one item at most, so that what is the item's is the block's.
  """

  item_UP: Array
  items: int
  alone: bool

  @classmethod
  def of(
    cls, item_BM: Int[Array, 'B M'], items: int, *, block: int, longest: int
  ) -> 'Pool':
    """Cuts rows of M pieces into blocks; rows that are no longer than a block are one each."""
    pieces = min(block, item_BM.shape[1])
    return cls(item_BM.reshape(-1, pieces), items, alone=pieces <= longest)

  @property
  def pieces(self) -> int:
    return self.item_UP.shape[1]

  def blocks(self, value_BM: Shaped[Array, 'B M *rest']) -> Shaped[Array, 'U P *rest']:
    """Returns rows of pieces as blocks."""
    return value_BM.reshape(-1, self.pieces, *value_BM.shape[2:])

  def rows(
    self, value_UP: Shaped[Array, 'U P *rest'], rows: int
  ) -> Shaped[Array, 'B M *rest']:
    """Returns blocks as rows: the inverse of `blocks`."""
    return value_UP.reshape(rows, -1, *value_UP.shape[2:])

  def reach(self) -> Reach:
    """Returns what may be looked at: a piece sees all pieces of its own item, on both sides."""
    return within(self.item_UP)

  def members(self, dtype) -> Float[Array, 'U P1 N']:
    """Returns 1 where a piece (or the block, where each has one item) belongs to an item of its row."""
    item = self.item_UP.max(axis=1, keepdims=True) if self.alone else self.item_UP
    return jax.nn.one_hot(item - 1, self.items, dtype=dtype)

  def look_up(self, value_BNW: Float[Array, 'B N W']) -> Float[Array, 'U P1 W']:
    """Returns each piece's part of what is computed once per item; P1 is 1 where that is the same in a block.

    By a product with zeros and ones, whose gradient is one, too: XLA:CPU's gathers have slow gradients.
    """
    each_UPN = self.members(value_BNW.dtype)
    rows = value_BNW.shape[0]
    per_BMN = each_UPN.reshape(rows, -1, self.items)
    per_BMW = jnp.einsum('bmn,bnw->bmw', per_BMN, value_BNW)
    return per_BMW.reshape(*each_UPN.shape[:2], -1)

  def mean(self, value_UPW: Float[Array, 'U P W'], rows: int) -> Float[Array, 'B N W']:
    """Returns the mean of each item's pieces, 0 for an item that is not there."""
    member_UPN = jax.nn.one_hot(self.item_UP - 1, self.items, dtype=value_UPW.dtype)
    member_BMN = member_UPN.reshape(rows, -1, self.items)
    value_BMW = value_UPW.reshape(rows, -1, value_UPW.shape[-1])
    sums_BNW = jnp.einsum('bmn,bmw->bnw', member_BMN, value_BMW)
    count_BN = member_BMN.sum(axis=1)
    return sums_BNW / jnp.maximum(count_BN, 1)[..., None]


def counts(item_BM: Int[Array, 'B M'], items: int) -> Float[Array, 'B N']:
  """Returns the number of pieces of each item."""
  return jax.nn.one_hot(item_BM - 1, items).sum(axis=1)
