"""Losses of units: their sums by segment are those of a plain loop, and add up to the sum of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.head_loss import HeadLoss, UnitLoss

SEGMENT = jnp.asarray([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 2, 2, 2, 2, 2, 2]])
AT = jnp.asarray([[0, 2, 3, 5, -1, 6], [7, 1, 1, -1, -1, 4]])


def units() -> UnitLoss:
  """Losses of six units a row; those that are not there weigh nothing, as heads give them."""
  loss, weight = jax.random.uniform(jax.random.key(0), (2, *AT.shape))
  there = AT >= 0
  return UnitLoss(jnp.where(there, loss, 0), jnp.where(there, weight, 0), AT)


@pytest.mark.parametrize('most', [1, 2, 3, 5])
def test_sums_by_segment_equal_a_loop(most):
  made = units().by_segment(SEGMENT, most)
  expected = np.zeros((2, 2, most))
  for row, unit in np.ndindex(*AT.shape):
    segment = int(SEGMENT[row, AT[row, unit]]) if AT[row, unit] >= 0 else 0
    if 0 < segment <= most:
      expected[0, row, segment - 1] += units().loss_BU[row, unit]
      expected[1, row, segment - 1] += units().weight_BU[row, unit]
  np.testing.assert_allclose(made.total, expected[0], rtol=1e-6)
  np.testing.assert_allclose(made.weight, expected[1], rtol=1e-6)


def test_segments_add_up_to_all_that_lies_in_one():
  whole, each = units().summed(), units().by_segment(SEGMENT, 3)
  outside = units().loss_BU[0, 5], units().weight_BU[0, 5]  # at a position of padding
  for sums, total, less in zip(each, whole, outside, strict=True):
    np.testing.assert_allclose(sums.sum(), total - less, rtol=1e-6)


def test_a_unit_has_a_gradient_in_its_own_segment_only():
  def loss(loss_BU, row, segment):
    made = units()._replace(loss_BU=loss_BU).by_segment(SEGMENT, 3)
    return made.total[row, segment]

  for row, segment in np.ndindex(2, 3):
    gradient = jax.grad(loss)(units().loss_BU, row, segment)
    there = np.take_along_axis(np.asarray(SEGMENT), np.maximum(AT, 0), axis=1)
    own = np.zeros(AT.shape)
    own[row] = (there == segment + 1)[row] & (AT[row] >= 0)
    np.testing.assert_array_equal(gradient, own)


def test_the_mean_of_nothing_is_zero():
  nothing = HeadLoss(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
  np.testing.assert_array_equal(nothing.mean, jnp.zeros((2, 3)))
  np.testing.assert_allclose(HeadLoss(jnp.float32(3), jnp.float32(2)).mean, 1.5)
