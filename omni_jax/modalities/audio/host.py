"""Audio spans on the host: `<boa> frames <eoa>`, one position per 80 ms frame.

A stream is a pool of frames.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools

import numpy as np

from omni_jax.modalities.audio.augment import AudioAugment, augment_audio
from omni_jax.modalities.audio.files import decode_audio, FORMATS, samples_of, wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig, FULL_SCALE
from omni_jax.modalities.contract import Host, MediaFile, Part, Writing
from omni_jax.types import ItemLayout, Layout, Span, stream_name, StreamSpec

LOUDNESS = (0.6, 1.2)  # range of the random factor of a crop for the codec's training
KINDS = (('heard', False), ('spoken', True))  # (kind of stream, is it written?)


@dataclasses.dataclass(frozen=True)
class AudioPart(Part):
  """A spoken sound.

  Attributes:
    wave: float32 in [-1, 1], of shape (samples,).
    rate: samples per second.
  """

  wave: np.ndarray
  rate: int
  type: str = 'audio'

  def _repr_html_(self) -> str:
    file = MediaFile('wav', wav_bytes(self.wave, self.rate))
    return f'<audio controls src="{file.url}"></audio>'


def frames_of(wave: np.ndarray, config: AudioConfig) -> int:
  """Returns the number of frames that hold the wave.

  The last one may be padded with silence.

  Raises:
    ValueError: if the wave has no samples, or more than the run's longest clip.
  """
  frames = -(-len(wave) // config.frame)
  if not 0 < frames <= config.frames:
    seconds = len(wave) / config.rate
    raise ValueError(
      f'clip of {seconds:.2f} s is empty or longer than the {config.seconds} s of '
      'this run'
    )
  return frames


class AudioHost(Host):
  """Lays out sounds as frames; written ones are written one frame at a time."""

  config: AudioConfig
  name = 'audio'
  key = 'wave'
  labels = ('label', 'voice')
  record_keys = ('digest', 'codes')
  suffixes = tuple(itertools.chain(*FORMATS.values()))
  Augment = AudioAugment
  lenient = AudioConfig(seconds=3600.0)  # every run limits the length itself

  def streams(self) -> tuple[StreamSpec, ...]:
    specs = []
    for kind, written in KINDS:
      spec = StreamSpec(
        stream_name(self.name, kind),
        self.name,
        written,
        queries=False,
        shape=(self.config.frame,),
        dtype='int16',
        longest=self.config.frames,
      )
      codes = self.codes_in(kind)
      if codes:
        spec = spec._replace(shape=codes.shape, dtype='uint16', entries=codes.entries)
      specs.append(spec)
    return tuple(specs)

  def decode(self, data: bytes) -> np.ndarray:
    return decode_audio(data, self.config)

  def augment(
    self, payload: np.ndarray, strength: AudioAugment, rng: np.random.Generator
  ) -> np.ndarray:
    config = self.config
    return augment_audio(payload, strength, rng, rate=config.rate, limit=config.samples)

  def form(self, span: Span) -> int:
    """Returns the number of frames."""
    return frames_of(span.payload, self.config)

  def layout(self, form: int, written: bool) -> Layout:
    return _layout(self, form, written)

  def pieces(self, span: Span) -> tuple[np.ndarray, ...]:
    frame = self.config.frame
    samples = samples_of(span.payload)
    missing = -len(samples) % frame
    if missing:
      samples = np.concatenate([samples, np.zeros(missing, np.int16)])
    return (samples.reshape(-1, frame),)

  def join_pieces(self, pieces: np.ndarray, form: Sequence[int]) -> np.ndarray:
    wave = pieces.reshape(-1)
    if wave.dtype == np.int16:
      return wave.astype(np.float32) / np.float32(FULL_SCALE)
    return wave

  def crop(
    self, payload: np.ndarray, pieces: int, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    frame = self.config.frame
    samples = pieces * frame
    loudness = np.float32(rng.uniform(*LOUDNESS))
    last = max(0, len(payload) - samples)
    start = int(rng.integers(0, last + 1))
    crop = payload[start : start + samples] * loudness
    value_MY = np.zeros((pieces, frame), np.float32)
    value_MY.reshape(-1)[: len(crop)] = crop
    mask_M = np.zeros(pieces, np.float32)
    mask_M[: -(-len(crop) // frame)] = 1
    return value_MY, mask_M

  def writing(self) -> Writing:
    special = self.tokenizer.special
    return Writing(
      opening=((special('boa'),),),
      closing=special('eoa'),
      piece=special('frame'),
      longest=self.config.frames,
    )

  def form_of(self, sizes: Sequence[int], pieces: int) -> tuple[int, int, int]:
    return (pieces, 1, 1)

  def part(self, payload: np.ndarray) -> AudioPart:
    return AudioPart(payload, self.config.rate)

  def show(self, payload: np.ndarray) -> MediaFile:
    return MediaFile('wav', wav_bytes(payload, self.config.rate))

  def same_pieces(self, sizes: AudioConfig) -> bool:
    return sizes.rate == self.config.rate

  def count(self, payload: np.ndarray) -> dict[str, float]:
    return {'sounds': 1, 'seconds': len(payload) / self.config.rate}


@functools.lru_cache(maxsize=1024)
def _layout(host: AudioHost, form: int, written: bool) -> Layout:
  """Returns the positions of one clip of `form` frames."""
  n = form
  special = host.tokenizer.special
  place_M3 = np.zeros((n, 3), np.int32)
  place_M3[:, 0] = np.arange(n)
  at_M = np.arange(1, n + 1)
  if written:
    item = ItemLayout('audio.spoken', (n, 1, 1), place_M3, at_M, write_M=at_M - 1)
  else:
    item = ItemLayout('audio.heard', (n, 1, 1), place_M3, at_M)
  layout = Layout.empty(n + 2, n + 1, host.text, (item,))
  layout.token_n[0] = special('boa')
  layout.token_n[-1] = special('eoa')
  layout.modality_n[1:-1] = host.number
  layout.offset_n3[:] = np.arange(n + 2, dtype=np.float32)[:, None]
  if written:
    layout.label_n[:] = layout.token_n
    layout.label_n[1:-1] = special('frame')
  return layout.frozen()
