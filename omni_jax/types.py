"""Host types that travel between the rooms of the project, and the one legend of shape letters.

Letters, as suffixes of names (`x_BLD`) and in jaxtyping strings ('B L D'):

  B rows of a batch      L positions in a row   D model width         T tokens = B·L        V vocabulary
  E experts              K router choices       F expert width        H query heads         G key/value heads
  A width of a head      N images in a row      P patches in an image Y values in a patch
  R frames of a clip, or of all clips of a row  S samples of a clip, or of a frame
  J codebooks            X mel values a frame   Z latent width
  U images of a batch    W width inside a head  I layers              3 (time, height, width)
"""

import dataclasses
import enum
from typing import Any, NamedTuple

import numpy as np

FRAMES_PER_SECOND = 12.5  # one unit of the time axis of a position
NONE = -1  # in a map: this position has no such payload


class Modality(enum.IntEnum):
  """What a position belongs to; row index of every per-modality statistic. 0 is padding."""

  PAD = 0
  TEXT = 1
  IMAGE = 2
  AUDIO = 3


class Fit(enum.StrEnum):
  """How an image file comes to the size of a run."""

  STRETCH = 'stretch'  # to all of it
  KEEP = 'keep'  # its shape: as large as it can be in whole patches, so that wide and high images take fewer positions


class Span(NamedTuple):
  """A piece of one modality in an example, before it becomes positions.

  Attributes:
    modality: which of the payloads below is present.
    written: the model is to write it (loss falls here); otherwise it is only read.
    tokens: text ids, for TEXT.
    pixels: float32 in [0, 1], shape (height, width, channels), for IMAGE.
    wave: float32 in [-1, 1], shape (samples,), for AUDIO.
    code: its stored codes, whole numbers of shape (frames, codebooks), where there are any.
  """

  modality: Modality
  written: bool = False
  tokens: tuple[int, ...] = ()
  pixels: np.ndarray | None = None
  wave: np.ndarray | None = None
  code: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """The positions of one span or one example (n of them), maps and offsets relative to its start. NONE = absent.

  Whole numbers lie in one array, FIELDS by positions: this is made, joined and copied for every span of every example.

  Attributes:
    ids_Fn: int32; token (text id, or 0), modality, label (id that the text head must say to get here, or 0), seen
      (patch of the seen image), drawn (clean patch of the drawn image), query (of the drawn image), heard (mel frame of
      the heard clip), spoken (coded frame of the spoken clip).
    offset_n3: float32 (time, height, width).
    end: the largest of the offsets.
  """

  ids_Fn: np.ndarray
  offset_n3: np.ndarray
  end: float

  @classmethod
  def empty(cls, n: int, end: float) -> 'Layout':
    """Text without ids, its offsets yet to be written."""
    return cls(np.repeat(_EMPTY_F1, n, axis=1), np.empty((n, 3), np.float32), end)

  def constant(self) -> 'Layout':
    """Itself, no longer to be changed: for layouts that are made once and used often."""
    self.ids_Fn.flags.writeable = self.offset_n3.flags.writeable = False
    return self

  token_n = property(lambda self: self.ids_Fn[0])
  modality_n = property(lambda self: self.ids_Fn[1])
  label_n = property(lambda self: self.ids_Fn[2])
  seen_n = property(lambda self: self.ids_Fn[3])
  drawn_n = property(lambda self: self.ids_Fn[4])
  query_n = property(lambda self: self.ids_Fn[5])
  heard_n = property(lambda self: self.ids_Fn[6])
  spoken_n = property(lambda self: self.ids_Fn[7])


FIELDS = (
  'token',
  'modality',
  'label',
  'seen',
  'drawn',
  'query',
  'heard',
  'spoken',
)  # of `Layout.ids_Fn`
_EMPTY_F1 = np.array([0, Modality.TEXT, 0, NONE, NONE, NONE, NONE, NONE], np.int32)[
  :, None
]


class Batch(NamedTuple):
  """One packed batch: numpy from the packer, global arrays after `sharding.place`.

  Maps hold, per position, an index into the row's own list of payloads flattened over items, or NONE.
  """

  token_BL: Any  # int32 text id, 0 where the position carries none
  modality_BL: Any  # int32, a Modality
  segment_BL: Any  # int32, 1… per example of the row, 0 is padding
  position_BL3: Any  # float32 (time, height, width)
  target_BL: Any  # int32, what the text head should say next
  weight_BL: Any  # float32, weight of that loss
  seen_BL: Any  # int32 into N·P
  drawn_BL: Any  # int32 into N·P
  query_BL: Any  # int32 into P
  heard_BL: Any  # int32 into R
  spoken_BL: Any  # int32 into R
  seen_BNhwc: Any  # float32 in [0, 1]
  drawn_BNhwc: Any  # float32 in [0, 1]
  heard_BRS: (
    Any  # float32 in [-1, 1]: the row's clips one behind the other, frame by frame
  )
  heard_clip_BR: Any  # int32, which clip a frame is of: 1 + the clip's first frame, 0 where there is none
  heard_code_BRJ: (
    Any  # int32; J is 0 where the step computes them of the samples, else S is 0
  )
  spoken_BRS: Any  # this and the next two as of what is heard
  spoken_clip_BR: Any
  spoken_code_BRJ: Any
  draw_at_BNP: Any  # int32, position of each query, or NONE
  draw_key_BN: Any  # uint32, names (example, span): the noise of the diffusion loss depends on it and on the step only
  speak_at_BR: (
    Any  # int32, position whose hidden state predicts the spoken frame, or NONE
  )


@dataclasses.dataclass(frozen=True)
class RowBudget:
  """Static sizes of a row; the packer refuses what overflows them.

  Attributes:
    rows: of the global batch.
    length: positions.
    seen, drawn: images.
    heard_frames, spoken_frames: frames of 80 ms that all clips of the row share, whatever their lengths.
  """

  rows: int
  length: int
  seen: int = 2
  drawn: int = 2
  heard_frames: int = 24
  spoken_frames: int = 16


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


@dataclasses.dataclass(frozen=True)
class MediaConfig:
  """What media are decoded to.

  Attributes:
    heard_codes, spoken_codes: codebooks of the stored codes that are taken in the place of samples; 0 for samples.
    entries: of each of these codebooks.
  """

  image: ImageConfig = ImageConfig()
  audio: AudioConfig = AudioConfig()
  heard_codes: int = 0
  spoken_codes: int = 0
  entries: int = 0
