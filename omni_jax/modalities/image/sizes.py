"""The sizes of images in a run: `config.model.image`."""

import dataclasses
import enum


class Fit(enum.StrEnum):
  """How an image file comes to the size of a run."""

  STRETCH = 'stretch'  # to all of it
  KEEP = 'keep'  # its shape: as large as it can be in whole patches, so that wide and high images take fewer positions


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Images as raw patches (the VAE comes later).

  Attributes:
    height, width, channels: largest image, in pixels.
    patch: side of a patch, in pixels.
    mean, std: of the training pixels; the model sees and draws (pixel - mean) / std.
    fit: see Fit.
  """

  height: int = 8
  width: int = 8
  channels: int = 1
  patch: int = 2
  mean: float = 0.305
  std: float = 0.376
  fit: Fit | str = Fit.STRETCH

  def __post_init__(self):
    object.__setattr__(self, 'fit', Fit(self.fit))

  @property
  def grid(self) -> tuple[int, int]:
    return self.height // self.patch, self.width // self.patch

  @property
  def patches(self) -> int:
    return self.grid[0] * self.grid[1]

  @property
  def values(self) -> int:
    return self.patch * self.patch * self.channels
