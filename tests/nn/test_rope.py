"""Rotation keeps lengths, and scores depend on differences of positions only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.nn.rope import mrope_angles, rotate, sections

pytestmark = pytest.mark.usefixtures('no_rank_promotion')
HEAD = 16


def rotated(x_A, position_3):
  """Returns a vector rotated by one position."""
  angles = mrope_angles(jnp.asarray(position_3, jnp.float32)[None, None], HEAD, 1000.0)
  return rotate(x_A[None, None, None], angles)[0, 0, 0]


def test_scores_depend_on_the_difference_of_positions():
  q, k = jax.random.normal(jax.random.key(0), (2, HEAD))
  at_q = np.array([3.0, 1.0, 2.0])
  at_k = np.array([7.0, 4.0, 0.5])
  shift = np.array([11.0, -2.0, 6.0])
  score = rotated(q, at_q) @ rotated(k, at_k)
  shifted = rotated(q, at_q + shift) @ rotated(k, at_k + shift)
  np.testing.assert_allclose(shifted, score, rtol=1e-4)
  for step in np.eye(3):
    other = rotated(q, at_q + step) @ rotated(k, at_k)
    assert abs(other - score) > 1e-3


def test_rotation_keeps_the_length_and_position_zero_changes_nothing():
  x = jax.random.normal(jax.random.key(1), (HEAD,))
  np.testing.assert_allclose(rotated(x, [0, 0, 0]), x, atol=1e-6)
  length = jnp.linalg.norm(rotated(x, [5, 2, 9]))
  np.testing.assert_allclose(length, jnp.linalg.norm(x), rtol=1e-5)


def test_time_has_half_of_the_frequencies_and_every_axis_a_fast_one():
  owner = sections(HEAD)
  assert len(owner) == HEAD // 2
  np.testing.assert_array_equal(np.bincount(owner), [4, 2, 2])
  for axis in range(3):  # the first half of the frequencies are the fast ones
    assert np.flatnonzero(owner == axis)[0] < len(owner) // 2


def test_rotation_keeps_the_type_of_its_input():
  assert rotated(jnp.ones(HEAD, jnp.bfloat16), [1, 2, 3]).dtype == jnp.bfloat16
