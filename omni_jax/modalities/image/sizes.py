"""The sizes of images in a run: `config.model.image`."""

import dataclasses
import enum


class Fit(enum.StrEnum):
  """Ways to resize an image file for the run.

  STRETCH resizes it to the largest image. KEEP preserves its aspect ratio: as large as
  fits, in whole patches, so that wide and tall images take fewer positions.
  """

  STRETCH = 'stretch'
  KEEP = 'keep'


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Sizes of images, which are cut into patches of raw pixels.

  Attributes:
    height: height of the largest image, in pixels.
    width: width of the largest image, in pixels.
    channels: 1 for gray, 3 for RGB.
    patch: side of a patch, in pixels.
    mean: mean of the training pixels, which are in [0, 1].
    std: their standard deviation; the model sees and draws (pixel - mean) / std.
    fit: how an image file is resized (see Fit).
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
    """Returns the number of patches along height and width of the largest image."""
    return self.height // self.patch, self.width // self.patch

  @property
  def patches(self) -> int:
    """Returns the number of patches of the largest image."""
    rows, columns = self.grid
    return rows * columns

  @property
  def values(self) -> int:
    """Returns the number of values of a patch."""
    return self.patch * self.patch * self.channels
