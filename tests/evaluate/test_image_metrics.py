"""Spread and copying against cases worked out by hand."""

import numpy as np
import pytest

from omni_jax.evaluate.metrics import image_metrics


def images(*values):
  return np.array(values, np.float32)[:, None, None, None] * np.ones(
    (1, 2, 2, 1), np.float32
  )


def test_distances_are_euclidean():
  assert image_metrics.distances(images(0, 1), images(0.5)) == pytest.approx(
    np.array([[1.0], [1.0]])
  )


def test_spread_of_half_the_real_distance_is_half():
  real, labels = images(0, 1), np.array([3, 3])
  assert image_metrics.spread(
    images(0.2, 0.7), labels, real=real, real_labels=labels
  ) == pytest.approx(0.5)


def test_collapsed_images_have_no_spread():
  real, labels = images(0, 0.5, 1), np.array([1, 1, 1])
  assert image_metrics.spread(
    images(0.4, 0.4, 0.4), labels, real=real, real_labels=labels
  ) == pytest.approx(0)


def test_spread_is_taken_within_a_class():
  """Two classes far apart, each collapsed: no spread."""
  real, labels = images(0, 1, 0, 1), np.array([0, 0, 1, 1])
  assert image_metrics.spread(
    images(0, 0, 1, 1), labels, real=real, real_labels=labels
  ) == pytest.approx(0)


def test_spread_without_two_images_of_a_class_is_unknown():
  assert (
    image_metrics.spread(
      images(0), np.array([0]), real=images(0, 1), real_labels=np.array([0, 0])
    )
    is None
  )


def test_copied_images_have_ratio_zero_and_real_ones_one():
  rng = np.random.default_rng(0)
  train, real = rng.random((50, 8, 8, 1)), rng.random((30, 8, 8, 1))
  assert image_metrics.copying_ratio(train[:20], train=train, real=real) < 1e-3
  assert image_metrics.copying_ratio(real, train=train, real=real) == pytest.approx(1)


def test_an_image_answered_by_itself_is_a_copy_of_the_prompt():
  real, labels = images(0, 1), np.array([0, 0])
  assert (
    image_metrics.prompt_copying_ratio(real, real, real=real, real_labels=labels) == 0
  )
  assert image_metrics.prompt_copying_ratio(
    real, real[::-1], real=real, real_labels=labels
  ) == pytest.approx(1)
