"""The sizes of sounds in a run: `config.model.audio`."""

import dataclasses

from omni_jax.types import FRAMES_PER_SECOND

FULL_SCALE = 32768  # 16-bit samples of this amplitude would be 1 as floats


@dataclasses.dataclass(frozen=True)
class AudioConfig:
  """Sizes of sounds, which are cut into frames of 80 ms.

  Attributes:
    rate: samples per second.
    seconds: length of the longest clip, in seconds.
    mels: number of mel bands of a column.
    mel_hops: number of mel columns in a frame.
    mel_window: number of samples in the analysis window of a column.
  """

  rate: int = 8000
  seconds: float = 0.96
  mels: int = 32
  mel_hops: int = 8
  mel_window: int = 256

  @property
  def frame(self) -> int:
    """Returns the number of samples in one frame."""
    return round(self.rate / FRAMES_PER_SECOND)

  @property
  def frames(self) -> int:
    """Returns the number of frames in the longest clip."""
    return round(self.seconds * FRAMES_PER_SECOND)

  @property
  def mel_values(self) -> int:
    """Returns the number of mel values of one frame."""
    return self.mel_hops * self.mels

  @property
  def samples(self) -> int:
    """Returns the number of samples in the longest clip."""
    return self.frames * self.frame
