"""Augmentation of images that are only read: turned, scaled, sheared and shifted a little, on the fly."""

import dataclasses

import numpy as np
from scipy import ndimage


@dataclasses.dataclass(frozen=True)
class ImageAugment:
  """How much images change; each value is drawn evenly between -value and +value, for each image anew; 0 is off.

  Attributes:
    turn: radians.
    scale: share of the size, for height and width.
    shear: columns a row.
    shift: share of the height.
  """

  turn: float = 0.0
  scale: float = 0.0
  shear: float = 0.0
  shift: float = 0.0


def moved(
  pixels_hwc: np.ndarray, c: ImageAugment, rng: np.random.Generator
) -> np.ndarray:
  """Returns a turned, scaled, sheared and shifted copy, the same for every channel; what comes in from outside is 0."""
  angle, size = rng.uniform(-c.turn, c.turn), rng.uniform(1 - c.scale, 1 + c.scale, 2)
  shear = rng.uniform(-c.shear, c.shear)
  turn = np.array(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  ) @ np.array([[1, shear], [0, 1]])
  matrix = turn / size
  centre = (np.array(pixels_hwc.shape[:2]) - 1) / 2
  offset = centre - matrix @ (
    centre + c.shift * len(pixels_hwc) * rng.uniform(-1, 1, 2)
  )
  channels = [
    ndimage.affine_transform(channel, matrix, offset, order=1)
    for channel in np.moveaxis(pixels_hwc, -1, 0)
  ]
  return np.clip(np.stack(channels, axis=-1), 0, 1, dtype=np.float32)
