"""The loss that every head returns, and its sums over a batch or over each segment."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int


class HeadLoss(NamedTuple):
  """A loss as a sum and a weight, to be added up before the division.

  Both add up over devices and micro-batches. They are scalars for a batch, or of shape
  (B, S) for the segments of its rows.

  Attributes:
    total: weighted sum of the losses.
    weight: sum of the weights.
  """

  total: Array
  weight: Array

  @classmethod
  def zero(cls) -> 'HeadLoss':
    """Returns the loss of a batch in which nothing has weight."""
    return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

  @property
  def mean(self) -> Array:
    """Returns the weighted mean, 0 where nothing has weight."""
    return self.total / jnp.maximum(self.weight, 1e-6)


class UnitLoss(NamedTuple):
  """The losses of the units (positions or pieces) that a head predicts in each row.

  Attributes:
    loss_BU: loss of each unit, already multiplied by its weight.
    weight_BU: weight of each unit.
    at_BU: int32 position whose state predicts the unit; negative where there is none.
  """

  loss_BU: Array
  weight_BU: Array
  at_BU: Array

  def summed(self) -> HeadLoss:
    """Returns the loss of the batch."""
    return HeadLoss(self.loss_BU.sum(), self.weight_BU.sum())

  def by_segment(self, segment_BL: Int[Array, 'B L'], segments: int) -> HeadLoss:
    """Returns the loss of each segment 1…S of each row, of shape (B, S).

    Args:
      segment_BL: segment of each position; 0 is padding.
      segments: S, a static bound; units of later segments are left out.
    """
    rows, length = segment_BL.shape
    pools = len(self.loss_BU)  # a pool holds the units of rows // pools rows
    segment_PL = segment_BL.reshape(pools, -1)
    at_PU = jnp.maximum(self.at_BU, 0)
    segment_PU = jnp.take_along_axis(segment_PL, at_PU, axis=1)
    valid_PU = (self.at_BU >= 0) & (segment_PU > 0) & (segment_PU <= segments)
    number_PU = at_PU // length * segments + segment_PU - 1
    number_PU = jnp.where(valid_PU, number_PU, -1)
    member_PUS = jax.nn.one_hot(number_PU, rows // pools * segments)

    def sums(value_PU: Float[Array, 'P U']) -> Float[Array, 'B S']:
      return jnp.einsum('pu,pus->ps', value_PU, member_PUS).reshape(rows, segments)

    return HeadLoss(sums(self.loss_BU), sums(self.weight_BU))
