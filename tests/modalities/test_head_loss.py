"""Losses of segments equal those of a plain loop and add up to that of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.head_loss import HeadLoss, UnitLoss

SEGMENT = jnp.asarray([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 2, 2, 2, 2, 2, 2]])
AT = jnp.asarray([[0, 2, 3, 5, -1, 6], [7, 1, 1, -1, -1, 4]])


def units() -> UnitLoss:
  """Returns losses of six units per row; as in a head, missing units have no weight."""
  loss, weight = jax.random.uniform(jax.random.key(0), (2, *AT.shape))
  exists = AT >= 0
  return UnitLoss(jnp.where(exists, loss, 0), jnp.where(exists, weight, 0), AT)


@pytest.mark.parametrize('segments', [1, 2, 3, 5])
def test_sums_by_segment_equal_a_loop(segments):
  losses = units().by_segment(SEGMENT, segments)
  total = np.zeros((2, segments))
  weight = np.zeros((2, segments))
  for row, unit in np.ndindex(*AT.shape):
    segment = int(SEGMENT[row, AT[row, unit]]) if AT[row, unit] >= 0 else 0
    if 0 < segment <= segments:
      total[row, segment - 1] += units().loss_BU[row, unit]
      weight[row, segment - 1] += units().weight_BU[row, unit]
  np.testing.assert_allclose(losses.total, total, rtol=1e-6)
  np.testing.assert_allclose(losses.weight, weight, rtol=1e-6)


def test_segments_add_up_to_the_batch_without_units_at_padding():
  batch = units().summed()
  by_segment = units().by_segment(SEGMENT, 3)
  # The last unit of the first row lies in padding.
  at_padding = (units().loss_BU[0, 5], units().weight_BU[0, 5])
  for sums, total, padding in zip(by_segment, batch, at_padding, strict=True):
    np.testing.assert_allclose(sums.sum(), total - padding, rtol=1e-6)


def test_a_unit_has_a_gradient_in_its_own_segment_only():
  def loss(loss_BU, row, segment):
    losses = units()._replace(loss_BU=loss_BU).by_segment(SEGMENT, 3)
    return losses.total[row, segment]

  segment_BU = np.take_along_axis(np.asarray(SEGMENT), np.maximum(AT, 0), axis=1)
  for row, segment in np.ndindex(2, 3):
    gradient = jax.grad(loss)(units().loss_BU, row, segment)
    own = np.zeros(AT.shape)
    own[row] = (segment_BU == segment + 1)[row] & (AT[row] >= 0)
    np.testing.assert_array_equal(gradient, own)


def test_the_mean_without_weight_is_zero():
  nothing = HeadLoss(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
  np.testing.assert_array_equal(nothing.mean, jnp.zeros((2, 3)))
  np.testing.assert_allclose(HeadLoss(jnp.float32(3), jnp.float32(2)).mean, 1.5)
