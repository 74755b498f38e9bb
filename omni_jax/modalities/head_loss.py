"""What every head returns as its loss, and how it is summed: over a batch, or over each segment of a row."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int


class HeadLoss(NamedTuple):
  """A loss as sum and weight, so that it can be added up over devices and micro-batches before the division.

  Scalars over a batch, or of shape (B, S) over the segments of its rows.
  """

  total: Array
  weight: Array

  @property
  def mean(self) -> Array:
    return self.total / jnp.maximum(self.weight, 1e-6)


class UnitLoss(NamedTuple):
  """The losses of the units that a head predicts in each row: positions, pieces.

  Attributes:
    loss_BU: already multiplied by the weight.
    weight_BU: what the unit counts.
    at_BU: int32 position whose state predicts the unit, or below 0.
  """

  loss_BU: Array
  weight_BU: Array
  at_BU: Array

  def summed(self) -> HeadLoss:
    """Returns the loss of the batch."""
    return HeadLoss(self.loss_BU.sum(), self.weight_BU.sum())

  def by_segment(self, segment_BL: Int[Array, 'B L'], segments: int) -> HeadLoss:
    """Returns the loss of each segment 1…S of each row, as (B, S).

    Args:
      segments: S, a static bound: units of later segments are left out.
    """
    at_BU = jnp.maximum(self.at_BU, 0)
    segment_BU = jnp.take_along_axis(segment_BL, at_BU, axis=1)
    segment_BU = jnp.where(self.at_BU >= 0, segment_BU, 0)
    member_BUS = jax.nn.one_hot(segment_BU - 1, segments)

    def sums(value_BU: Float[Array, 'B U']) -> Float[Array, 'B S']:
      return jnp.einsum('bu,bus->bs', value_BU, member_BUS)

    return HeadLoss(sums(self.loss_BU), sums(self.weight_BU))
