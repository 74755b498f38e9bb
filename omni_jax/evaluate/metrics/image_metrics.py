"""Are drawn images as varied as real ones, and are they new: spread within a class, distance to the training set."""

import numpy as np


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Euclidean distances between images, (n, m), from (n, …) and (m, …) pixels."""
  left, right = (np.reshape(x, (len(x), -1)).astype(np.float64) for x in (left, right))
  squared = (
    np.square(left).sum(1)[:, None] + np.square(right).sum(1)[None] - 2 * left @ right.T
  )
  return np.sqrt(np.maximum(squared, 0))


def mean_pairwise(images: np.ndarray) -> float:
  """Mean distance between two different images of the list."""
  n = len(images)
  return float(distances(images, images).sum() / (n * (n - 1)))


def spread(
  images: np.ndarray, labels: np.ndarray, *, real: np.ndarray, real_labels: np.ndarray
) -> float | None:
  """Mean distance within a class relative to real images, averaged over classes: 1 as varied as real, 0 collapsed.

  Pass only images that show their label: wrong digits would make a collapsed class look varied. None where no class
  has two images.
  """
  ratios = [
    mean_pairwise(images[labels == label]) / mean_pairwise(real[real_labels == label])
    for label in np.unique(labels)
    if np.sum(labels == label) > 1 and np.sum(real_labels == label) > 1
  ]
  return float(np.mean(ratios)) if ratios else None


def copying_ratio(
  images: np.ndarray, *, train: np.ndarray, real: np.ndarray
) -> float | None:
  """Median distance to the nearest training image, over the same of real test images: 0 copies, 1 as new as real."""
  if not len(images):
    return None
  return float(
    np.median(distances(images, train).min(1))
    / np.median(distances(real, train).min(1))
  )


def prompt_copying_ratio(
  images: np.ndarray, prompts: np.ndarray, *, real: np.ndarray, real_labels: np.ndarray
) -> float | None:
  """Median distance of a drawing to the image it answers, over the mean distance of two real images of a class."""
  if not len(images):
    return None
  own = np.linalg.norm((images - prompts).reshape(len(images), -1), axis=1)
  within = np.mean(
    [mean_pairwise(real[real_labels == label]) for label in np.unique(real_labels)]
  )
  return float(np.median(own) / within)
