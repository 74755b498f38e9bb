"""Measures whether drawn images are as varied as real ones, and whether they are new.

Variety is the distance within a class; novelty is the distance to the training set.
"""

import numpy as np


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Returns Euclidean distances, (n, m), between images (n, …) and images (m, …)."""
  left = np.reshape(left, (len(left), -1)).astype(np.float64)
  right = np.reshape(right, (len(right), -1)).astype(np.float64)
  left_squared = np.square(left).sum(1)[:, None]
  right_squared = np.square(right).sum(1)[None]
  squared = left_squared + right_squared - 2 * left @ right.T
  return np.sqrt(np.maximum(squared, 0))


def mean_pairwise(images: np.ndarray) -> float:
  """Returns the mean distance between two different images of (n, …)."""
  n = len(images)
  return float(distances(images, images).sum() / (n * (n - 1)))


def spread(
  images: np.ndarray, labels: np.ndarray, *, real: np.ndarray, real_labels: np.ndarray
) -> float | None:
  """Returns the mean distance within a class, relative to real images.

  The ratio is averaged over classes: 1 is as varied as real images, 0 is collapsed.
  It is None where no class has two images. Pass only images that show their label,
  since wrong digits would make a collapsed class look varied.
  """
  ratios: list[float] = []
  for label in np.unique(labels):
    own = images[labels == label]
    real_own = real[real_labels == label]
    if len(own) > 1 and len(real_own) > 1:
      ratios.append(mean_pairwise(own) / mean_pairwise(real_own))
  return float(np.mean(ratios)) if ratios else None


def copying_ratio(
  images: np.ndarray, *, train: np.ndarray, real: np.ndarray
) -> float | None:
  """Returns how far images are from training images, relative to real test images.

  Compares the medians of the distance to the nearest training image: 0 is a copy, 1 is
  as new as a real test image. It is None where there are no images.
  """
  if not len(images):
    return None
  nearest = np.median(distances(images, train).min(1))
  real_nearest = np.median(distances(real, train).min(1))
  return float(nearest / real_nearest)


def prompt_copying_ratio(
  images: np.ndarray, prompts: np.ndarray, *, real: np.ndarray, real_labels: np.ndarray
) -> float | None:
  """Returns how far drawings are from the images that they answer.

  It is the median distance over the mean distance of two real images of a class, or
  None where there are no images.
  """
  if not len(images):
    return None
  own = np.linalg.norm((images - prompts).reshape(len(images), -1), axis=1)
  classes = np.unique(real_labels)
  within = np.mean([mean_pairwise(real[real_labels == label]) for label in classes])
  return float(np.median(own) / within)
