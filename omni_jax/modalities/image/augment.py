"""Augmentation of images that are only read: random affine changes, on the fly."""

import dataclasses

import numpy as np
from scipy import ndimage


@dataclasses.dataclass(frozen=True)
class ImageAugment:
  """Strengths of the changes to images.

  For each image, every change is drawn uniformly between -value and +value; 0 turns it
  off.

  Attributes:
    turn: rotation, in radians.
    scale: change of size as a share of it, drawn for height and width separately.
    shear: columns shifted per row.
    shift: distance as a share of the height, drawn for height and width separately.
  """

  turn: float = 0.0
  scale: float = 0.0
  shear: float = 0.0
  shift: float = 0.0


def augment_image(
  pixels_hwc: np.ndarray, c: ImageAugment, rng: np.random.Generator
) -> np.ndarray:
  """Returns a rotated, scaled, sheared and shifted copy: float32 in [0, 1].

  All channels change alike; pixels from outside the image are 0.
  """
  angle = rng.uniform(-c.turn, c.turn)
  size = rng.uniform(1 - c.scale, 1 + c.scale, 2)
  shear = rng.uniform(-c.shear, c.shear)
  rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  shearing = np.array([[1, shear], [0, 1]])
  matrix = rotation @ shearing / size
  height, width, _ = pixels_hwc.shape
  centre = (np.array([height, width]) - 1) / 2
  shift = c.shift * height * rng.uniform(-1, 1, 2)
  offset = centre - matrix @ (centre + shift)
  channels = [
    ndimage.affine_transform(channel, matrix, offset, order=1)
    for channel in np.moveaxis(pixels_hwc, -1, 0)
  ]
  return np.clip(np.stack(channels, axis=-1), 0, 1, dtype=np.float32)
