"""Sound files to samples and back: limits are read from the header before anything is decoded.

Whatever is wrong with the bytes ends as one `BadRecord` with a reason, and what comes out has exactly the sample rate
and the range of the run's configuration.
"""

import io
import struct
from typing import NamedTuple

from jaxtyping import Float, Float32
import numpy as np
import soundfile
import soxr

from omni_jax.errors import BadRecord
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.files import check_size

MAX_CHANNELS = 16  # of one decoded sound
# Lowest and highest that is resampled: a false rate would ask for huge memory.
SAMPLE_RATES = (1_000, 384_000)
AUDIO_FORMATS = ('WAV', 'WAVEX', 'RF64', 'FLAC', 'OGG', 'MP3')
# A whole header: RIFF size WAVE, fmt size code channels rate bytes/s block bits, data size.
PLAIN_WAV = struct.Struct('<4sI4s4sIHHIIHH4sI')


def decode_audio(data: bytes, config: AudioConfig) -> Float32[np.ndarray, ' samples']:
  """One channel at the run's rate, in [-1, 1]; channels are averaged, louder sounds scaled down to a peak of 1.

  A clip longer than the run's is refused, not cut: its words would no longer be the ones that the text says.
  """
  check_size(data)
  sound = _plain_wav(data, config) or _any_sound(data, config)
  one_channel = sound.wave_sc.shape[1] == 1
  # float64: the sum of huge float32 samples would overflow
  wave_s = (
    sound.wave_sc[:, 0] if one_channel else sound.wave_sc.mean(axis=1, dtype=np.float64)
  )
  if sound.rate != config.rate:
    wave_s = soxr.resample(wave_s.astype(np.float64), sound.rate, config.rate)
  wave_s = wave_s[
    : config.samples
  ]  # the header was in time: what is over is the rounding of the resampler
  if not wave_s.size:
    raise BadRecord(
      f'sound of {len(sound.wave_sc)} samples at {sound.rate} Hz: nothing left at {config.rate} Hz'
    )
  return (wave_s / max(1.0, np.abs(wave_s).max())).astype(np.float32, copy=False)


class _Sound(NamedTuple):
  wave_sc: Float32[np.ndarray, 'samples channels']
  rate: int


def _any_sound(data: bytes, config: AudioConfig) -> _Sound:
  """All of a file's samples by libsndfile."""
  _check_wav_is_whole(data)
  _check_ogg_is_whole(data)
  try:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
      if file.format not in AUDIO_FORMATS:
        raise BadRecord(
          f'sound of format {file.format}, known are {" ".join(AUDIO_FORMATS)}'
        )
      _check_audio_header(file.samplerate, file.channels, file.frames, config)
      wave_sc = file.read(file.frames, dtype='float32', always_2d=True)
      promised, rate = file.frames, file.samplerate
  except (
    soundfile.SoundFileError,
    RuntimeError,
    OSError,
    ValueError,
    TypeError,
  ) as error:
    if isinstance(error, BadRecord):
      raise
    raise BadRecord(f'not a sound, or a damaged one ({_one_line(error)})') from error
  if len(wave_sc) < promised:
    raise BadRecord(
      f'sound ends after {len(wave_sc)} of the {promised} samples that its header promises'
    )
  if not np.isfinite(wave_sc).all():
    raise BadRecord('sound holds NaN or infinite samples')
  return _Sound(wave_sc, rate)


def _plain_wav(data: bytes, config: AudioConfig) -> _Sound | None:
  """What `_any_sound` returns for a WAV of 16 bits that is a header and samples and nothing else; None for all others.

  Most short sounds are such files, and libsndfile takes ten times as long as their copying.
  """
  if len(data) <= PLAIN_WAV.size:
    return None
  riff, _, wave, fmt, fmt_size, code, channels, rate, _, block, bits, name, size = (
    PLAIN_WAV.unpack_from(data)
  )
  if (riff, wave, fmt, fmt_size, code, bits, name) != (
    b'RIFF',
    b'WAVE',
    b'fmt ',
    16,
    1,
    16,
    b'data',
  ):
    return None
  if (
    not channels
    or block != 2 * channels
    or size % block
    or size != len(data) - PLAIN_WAV.size
  ):
    return None
  _check_audio_header(rate, channels, size // block, config)
  wave_sc = (
    np.frombuffer(data, '<i2', offset=PLAIN_WAV.size)
    .astype(np.float32)
    .reshape(-1, channels)
  )
  wave_sc *= np.float32(1 / 32768)
  return _Sound(wave_sc, rate)


def _check_audio_header(
  rate: int, channels: int, frames: int, config: AudioConfig
) -> None:
  low, high = SAMPLE_RATES
  if not low <= rate <= high:
    raise BadRecord(f'sound at {rate} Hz, allowed are {low} to {high}')
  if channels > MAX_CHANNELS:
    raise BadRecord(f'sound of {channels} channels, allowed are {MAX_CHANNELS}')
  if frames <= 0:
    raise BadRecord('sound without samples')
  if frames * config.rate > config.samples * rate:
    raise BadRecord(
      f'sound of {frames / rate:.2f} s, longer than the {config.samples / config.rate:.2f} s of this run'
    )


def _check_wav_is_whole(data: bytes) -> None:
  """Refuses a WAV whose samples are cut off: libsndfile returns what is there, without a word."""
  order = {b'RIFF': '<', b'RIFX': '>', b'RF64': '<'}.get(data[:4])
  if order is None or data[8:12] != b'WAVE':
    return
  at, data_size_64 = 12, None
  while at + 8 <= len(data):
    name, size = data[at : at + 4], struct.unpack(order + 'I', data[at + 4 : at + 8])[0]
    here = len(data) - at - 8
    if name == b'ds64' and min(size, here) >= 16:  # RF64 keeps the true sizes here
      data_size_64 = struct.unpack('<Q', data[at + 16 : at + 24])[0]
    if name == b'data':
      size = size if data_size_64 is None else data_size_64
      if size > here:
        raise BadRecord(
          f'WAV cut off or streamed: its header promises {size:,} bytes of sound, here are {here:,}'
        )
      return
    at += 8 + size + size % 2
  raise BadRecord('WAV is cut off: it has no data chunk')


def _check_ogg_is_whole(data: bytes) -> None:
  """Refuses an Ogg file whose last page is not marked as the last: libsndfile reads it short, without a word."""
  if not data.startswith(b'OggS'):
    return
  last = data.rfind(b'OggS')
  if len(data) < last + 27 or not data[last + 5] & 4:
    raise BadRecord('Ogg file is cut off: its last page is missing')


def _one_line(error: Exception) -> str:
  text = getattr(error, 'error_string', None) or str(
    error
  )  # error_string leaves out the address of our BytesIO
  return ' '.join(text.split())


def wav_bytes(wave_s: Float[np.ndarray, ' samples'], rate: int) -> bytes:
  """A WAV file, mono, 16 bits, of samples in [-1, 1]; reading it back gives the 16-bit values exactly."""
  if not np.isfinite(wave_s).all():
    raise ValueError('samples hold NaN or infinite values')
  values = np.clip(np.round(wave_s * 32768), -32768, 32767).astype(np.int16)
  out = io.BytesIO()
  soundfile.write(out, values, rate, format='WAV', subtype='PCM_16')
  return out.getvalue()
