"""What every head returns as its loss."""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp


class HeadLoss(NamedTuple):
  """A loss as sum and weight, so that it can be added up over devices and micro-batches before the division."""

  total: Array
  weight: Array

  @property
  def mean(self) -> Array:
    return self.total / jnp.maximum(self.weight, 1e-6)
