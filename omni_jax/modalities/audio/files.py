"""Decodes sound files into samples and encodes samples as WAV.

Limits are checked in the header, before anything is decoded. Whatever is wrong with the
bytes becomes one `BadRecord` with a reason, and decoded samples have exactly the sample
rate and the range that the run's configuration asks for.
"""

import io
import struct
from typing import NamedTuple

from jaxtyping import Float32, Int16, Num
import numpy as np
import soundfile
import soxr

from omni_jax.errors import BadRecord, one_line
from omni_jax.modalities.audio.sizes import AudioConfig, FULL_SCALE
from omni_jax.modalities.files import check_size

MAX_CHANNELS = 16  # in one decoded sound
# Lowest and highest rate that is resampled: a wrong one would need a huge memory.
SAMPLE_RATES = (1_000, 384_000)
# The suffixes of each format.
FORMATS = {
  'WAV': ('.wav',),
  'WAVEX': (),
  'RF64': (),
  'FLAC': ('.flac',),
  'OGG': ('.ogg', '.opus'),
  'MP3': ('.mp3',),
}
# The header of a WAV file that has nothing but a format and samples.
PLAIN_WAV = struct.Struct('<4sI4s4sIHHIIHH4sI')


def decode_audio(data: bytes, config: AudioConfig) -> Float32[np.ndarray, ' samples']:
  """Returns one channel at the run's sample rate, in [-1, 1].

  Channels are averaged, and sounds that exceed the range are scaled to a peak of 1. A
  clip longer than the run's longest is refused, not cut: a cut clip would no longer
  hold all the words of its text.

  Raises:
    BadRecord: if the file is too large, too long, damaged or not a sound.
  """
  check_size(data)
  sound = _plain_wav(data, config) or _any_sound(data, config)
  wave_s = sound.wave_sc[:, 0]
  if sound.wave_sc.shape[1] > 1:
    # In float64: the sum of huge float32 samples would overflow.
    wave_s = sound.wave_sc.mean(axis=1, dtype=np.float64)
  if sound.rate != config.rate:
    wave_s = soxr.resample(wave_s.astype(np.float64), sound.rate, config.rate)
  # The header promised a length that fits; any excess is due to the resampler's
  # rounding.
  wave_s = wave_s[: config.samples]
  if not wave_s.size:
    raise BadRecord(
      f'sound of {len(sound.wave_sc)} samples at {sound.rate} Hz has nothing left at '
      f'{config.rate} Hz'
    )
  peak = np.abs(wave_s).max()
  return (wave_s / max(1.0, peak)).astype(np.float32, copy=False)


class _Sound(NamedTuple):
  """Decoded samples of all channels, at `rate` samples per second."""

  wave_sc: Float32[np.ndarray, 'samples channels']
  rate: int


def _any_sound(data: bytes, config: AudioConfig) -> _Sound:
  """Returns all samples of a file, as libsndfile reads them."""
  _check_wav_is_whole(data)
  _check_ogg_is_whole(data)
  try:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
      if file.format not in FORMATS:
        formats = ' '.join(FORMATS)
        raise BadRecord(
          f'sound of format {file.format} is not supported; known formats are {formats}'
        )
      rate = file.samplerate
      promised = file.frames
      _check_audio_header(rate, file.channels, promised, config)
      wave_sc = file.read(promised, dtype='float32', always_2d=True)
  except BadRecord:
    raise
  except (
    soundfile.SoundFileError,
    RuntimeError,
    OSError,
    ValueError,
    TypeError,
  ) as error:
    raise BadRecord(f'not a sound, or a damaged one ({_message(error)})') from error
  if len(wave_sc) < promised:
    raise BadRecord(
      f'sound ends after {len(wave_sc)} of the {promised} samples that its header '
      'promises'
    )
  if not np.isfinite(wave_sc).all():
    raise BadRecord('sound holds NaN or infinite samples')
  return _Sound(wave_sc, rate)


class _WavHeader(NamedTuple):
  """The fields of `PLAIN_WAV`, in the order of the bytes."""

  riff: bytes
  riff_size: int
  wave: bytes
  fmt: bytes
  fmt_size: int
  code: int
  channels: int
  rate: int
  byte_rate: int
  block: int
  bits: int
  data: bytes
  data_size: int

  def is_plain(self) -> bool:
    """Returns whether the header is that of 16-bit PCM samples and nothing else."""
    names = (self.riff, self.wave, self.fmt, self.data)
    coding = (self.fmt_size, self.code, self.bits)
    return names == (b'RIFF', b'WAVE', b'fmt ', b'data') and coding == (16, 1, 16)

  def fits(self, data_size: int) -> bool:
    """Returns whether the header describes this many bytes of whole samples."""
    if not self.channels or self.block != 2 * self.channels:
      return False
    return self.data_size == data_size and data_size % self.block == 0


def _plain_wav(data: bytes, config: AudioConfig) -> _Sound | None:
  """Returns the same as `_any_sound` for a plain 16-bit WAV file, and None for others.

  Plain means a header and samples and nothing else. Most short sounds are such files,
  and libsndfile takes ten times as long as copying their samples.
  """
  if len(data) <= PLAIN_WAV.size:
    return None
  header = _WavHeader(*PLAIN_WAV.unpack_from(data))
  data_size = len(data) - PLAIN_WAV.size
  if not header.is_plain() or not header.fits(data_size):
    return None
  frames = data_size // header.block
  _check_audio_header(header.rate, header.channels, frames, config)
  values = np.frombuffer(data, '<i2', offset=PLAIN_WAV.size)
  wave_sc = values.astype(np.float32).reshape(-1, header.channels)
  wave_sc *= np.float32(1 / FULL_SCALE)
  return _Sound(wave_sc, header.rate)


def _check_audio_header(
  rate: int, channels: int, frames: int, config: AudioConfig
) -> None:
  """Refuses a sound whose header shows that it cannot be used in the run.

  Args:
    frames: samples of each channel.
  """
  low, high = SAMPLE_RATES
  if not low <= rate <= high:
    raise BadRecord(f'sound at {rate} Hz; allowed are {low} to {high} Hz')
  if channels > MAX_CHANNELS:
    raise BadRecord(
      f'sound of {channels} channels, more than the {MAX_CHANNELS} allowed'
    )
  if frames <= 0:
    raise BadRecord('sound without samples')
  if frames * config.rate > config.samples * rate:
    longest = config.samples / config.rate
    raise BadRecord(
      f'sound of {frames / rate:.2f} s, longer than the {longest:.2f} s of this run'
    )


def _check_wav_is_whole(data: bytes) -> None:
  """Refuses a truncated WAV file; libsndfile would silently return what is left."""
  order = {b'RIFF': '<', b'RIFX': '>', b'RF64': '<'}.get(data[:4])
  if order is None or data[8:12] != b'WAVE':
    return
  at = 12
  data_size_64 = None
  while at + 8 <= len(data):
    name = data[at : at + 4]
    (size,) = struct.unpack(order + 'I', data[at + 4 : at + 8])
    remaining = len(data) - at - 8
    if name == b'ds64' and min(size, remaining) >= 16:
      # RF64 keeps the true sizes here.
      (data_size_64,) = struct.unpack('<Q', data[at + 16 : at + 24])
    if name == b'data':
      if data_size_64 is not None:
        size = data_size_64
      if size > remaining:
        raise BadRecord(
          f'WAV cut off or streamed: its header promises {size:,} bytes of sound, the '
          f'file has {remaining:,}'
        )
      return
    at += 8 + size + size % 2
  raise BadRecord('WAV is cut off: it has no data chunk')


def _check_ogg_is_whole(data: bytes) -> None:
  """Refuses a truncated Ogg file; libsndfile would silently return what is left.

  A whole file's last page is marked as the last.
  """
  if not data.startswith(b'OggS'):
    return
  last = data.rfind(b'OggS')
  if len(data) < last + 27 or not data[last + 5] & 4:
    raise BadRecord('Ogg file is cut off: its last page is missing')


def _message(error: Exception) -> str:
  """Returns the message of an error of libsndfile on one line."""
  # `error_string` leaves out the address of our BytesIO.
  return one_line(getattr(error, 'error_string', None) or error)


def samples_of(wave_s: Num[np.ndarray, ' samples']) -> Int16[np.ndarray, ' samples']:
  """Returns samples in [-1, 1] as int16, rounded and clipped; int16 stays as it is."""
  if wave_s.dtype == np.int16:
    return wave_s
  values_s = np.rint(wave_s * np.float32(FULL_SCALE))
  # Not np.clip, whose checks take as long as all the rest.
  return np.minimum(np.maximum(values_s, -FULL_SCALE), FULL_SCALE - 1).astype(np.int16)


def wav_bytes(wave_s: Num[np.ndarray, ' samples'], rate: int) -> bytes:
  """Returns a WAV file, mono, 16 bits, of samples.

  Reading it back gives the 16-bit values exactly.

  Args:
    wave_s: floats in [-1, 1], or int16.
    rate: samples per second.

  Raises:
    ValueError: if samples are NaN or infinite.
  """
  if not np.isfinite(wave_s).all():
    raise ValueError('samples hold NaN or infinite values')
  out = io.BytesIO()
  soundfile.write(out, samples_of(wave_s), rate, format='WAV', subtype='PCM_16')
  return out.getvalue()
