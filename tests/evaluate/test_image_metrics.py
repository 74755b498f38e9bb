"""Checks diversity and copying against cases worked out by hand."""

import numpy as np
import pytest

from omni_jax.evaluate.metrics import image_metrics


def images(*values):
  """Returns images (n, 2, 2, 1) of one gray level each."""
  levels = np.array(values, np.float32)[:, None, None, None]
  return levels * np.ones((1, 2, 2, 1), np.float32)


def spread(drawn, real, labels):
  """Returns the spread of images that have the same labels as the real ones."""
  labels = np.array(labels)
  return image_metrics.spread(
    drawn, labels[: len(drawn)], real=real, real_labels=labels
  )


def test_distances_are_euclidean():
  distances = image_metrics.distances(images(0, 1), images(0.5))
  assert distances == pytest.approx(np.array([[1.0], [1.0]]))


def test_spread_of_half_the_real_distance_is_half():
  assert spread(images(0.2, 0.7), images(0, 1), [3, 3]) == pytest.approx(0.5)


def test_collapsed_images_have_no_spread():
  drawn = images(0.4, 0.4, 0.4)
  assert spread(drawn, images(0, 0.5, 1), [1, 1, 1]) == pytest.approx(0)


def test_spread_is_taken_within_a_class():
  """Two classes that are far apart, each collapsed, have no spread."""
  drawn = images(0, 0, 1, 1)
  assert spread(drawn, images(0, 1, 0, 1), [0, 0, 1, 1]) == pytest.approx(0)


def test_spread_without_two_images_of_a_class_is_unknown():
  assert spread(images(0), images(0, 1), [0, 0]) is None


def test_copied_images_have_ratio_zero_and_real_ones_one():
  rng = np.random.default_rng(0)
  train = rng.random((50, 8, 8, 1))
  real = rng.random((30, 8, 8, 1))
  assert image_metrics.copying_ratio(train[:20], train=train, real=real) < 1e-3
  assert image_metrics.copying_ratio(real, train=train, real=real) == pytest.approx(1)


def test_an_image_answered_by_itself_is_a_copy_of_the_prompt():
  real = images(0, 1)
  known = dict(real=real, real_labels=np.array([0, 0]))
  assert image_metrics.prompt_copying_ratio(real, real, **known) == 0
  reversed_ratio = image_metrics.prompt_copying_ratio(real, real[::-1], **known)
  assert reversed_ratio == pytest.approx(1)
