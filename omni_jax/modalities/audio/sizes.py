"""The sizes of sounds in a run: `config.model.audio`."""

import dataclasses

from omni_jax.types import FRAMES_PER_SECOND


@dataclasses.dataclass(frozen=True)
class AudioConfig:
  """Speech on the frame clock.

  Attributes:
    rate: samples per second.
    seconds: longest clip.
    mels: mel bands of the continuous input.
    mel_hops: mel columns in one frame.
    mel_window: samples of the analysis window.
  """

  rate: int = 8000
  seconds: float = 0.96
  mels: int = 32
  mel_hops: int = 8
  mel_window: int = 256

  @property
  def frame(self) -> int:
    """Samples in one frame."""
    return round(self.rate / FRAMES_PER_SECOND)

  @property
  def frames(self) -> int:
    """Frames in the longest clip."""
    return round(self.seconds * FRAMES_PER_SECOND)

  @property
  def samples(self) -> int:
    return self.frames * self.frame
