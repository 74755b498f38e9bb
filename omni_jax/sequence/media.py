"""Media files to arrays and back: limits are read from the header before anything is decoded.

Bytes from outside are never trusted: whatever is wrong with them ends as one `BadRecord` with a reason, and what comes
out has exactly the shape, the range and the sample rate of the run's configuration.
"""

import io
import os
import re
import stat
import struct
from typing import NamedTuple

from etils import epath
from jaxtyping import Float, Float32
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
import soundfile
import soxr

from omni_jax.retry import patiently
from omni_jax.types import AudioConfig, Fit, ImageConfig

MAX_BYTES = 64 << 20  # of one encoded file
MAX_PIXELS = 50_000_000  # of one decoded image
NONBLOCK = getattr(
  os, 'O_NONBLOCK', 0
)  # a pipe would wait for ever for somebody who writes
MAX_CHANNELS = 16  # of one decoded sound
SAMPLE_RATES = (
  1_000,
  384_000,
)  # lowest and highest that is resampled: a false rate would ask for huge memory
# Named rather than "all that Pillow knows": EPS, for one, starts an interpreter on the file.
IMAGE_FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM')
AUDIO_FORMATS = ('WAV', 'WAVEX', 'RF64', 'FLAC', 'OGG', 'MP3')
OWN_VALUES = re.compile(
  r"'[^']*'|\"[^\"]*\"|\d[\d.,:]*"
)  # in a reason, what is said of this record only
# A whole header: RIFF size WAVE, fmt size code channels rate bytes/s block bits, data size.
PLAIN_WAV = struct.Struct('<4sI4s4sIHHIIHH4sI')


class BadRecord(ValueError):
  """A record that cannot be used; the loader skips and counts it.

  Attributes:
    reason: what is wrong, for a person.
    id: the record's id, or '' where only the medium is known.
    kind: what records that are bad for the same reason have in common: without numbers, names and the path.
  """

  def __init__(self, reason: str, id: str = '', kind: str = ''):
    super().__init__(
      reason, id, kind
    )  # all, or the exception would not survive the pickling between worker processes
    self.reason = reason
    self.id = id
    self.kind = kind or OWN_VALUES.sub('…', reason)

  def of(self, id: str) -> 'BadRecord':
    """The same of a record, where it is not known yet of which."""
    return BadRecord(self.reason, self.id or id, self.kind)

  def at(self, path: str) -> 'BadRecord':
    """The same, and which of a record's media it is."""
    return BadRecord(f'{path}: {self.reason}', self.id, self.kind)

  def __str__(self) -> str:
    return f'{self.id}: {self.reason}' if self.id else self.reason


def read_media(path: epath.PathLike) -> bytes:
  """The bytes of a media file, if it is a regular file of a sensible size; errors that may pass are waited for."""
  try:
    return patiently(lambda: _read_file(path), path)
  except FileNotFoundError as error:
    raise BadRecord('no such file') from error
  except IsADirectoryError as error:
    raise BadRecord('is not a regular file') from error
  except OSError as error:
    raise BadRecord(f'cannot be read ({error})') from error


def _read_file(path: epath.PathLike) -> bytes:
  if is_remote(path):
    _check_bytes(epath.Path(path).stat().length)
    return epath.Path(path).read_bytes()
  file = os.open(
    path, os.O_RDONLY | NONBLOCK
  )  # epath, and open(), cost as much as a small picture
  try:
    return _read_regular(file)
  finally:
    os.close(file)


def _read_regular(file: int) -> bytes:
  status = os.fstat(file)
  if not stat.S_ISREG(status.st_mode):
    raise BadRecord('is not a regular file')
  _check_bytes(status.st_size)
  pieces = []
  while piece := os.read(
    file, status.st_size + 1
  ):  # one byte more: the first piece is all, and the second tells so
    pieces.append(piece)
    _check_bytes(sum(map(len, pieces)))
  return pieces[0] if len(pieces) == 1 else b''.join(pieces)


def _check_bytes(size: int) -> None:
  if size > MAX_BYTES:
    raise BadRecord(f'has {size:,} bytes, more than the {MAX_BYTES:,} allowed')


def decode_image(
  data: bytes, config: ImageConfig
) -> Float32[np.ndarray, 'height width channels']:
  """Pixels in [0, 1] in a size of the run (`fitted`); gray where the run has one channel.

  EXIF rotation is applied, transparent pixels lie over white, of an animation only the first frame is used.
  """
  _check_size(data)
  try:
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
      width, height = image.size
      if width * height > MAX_PIXELS:
        raise BadRecord(
          f'image of {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed'
        )
      side = 4 * max(config.height, config.width)
      image.draft(
        None, (side, side)
      )  # lets JPEG decode a large photograph at a fraction of its size
      image.load()
      if image.info:  # where it says in any format how the camera was held
        ImageOps.exif_transpose(image, in_place=True)
      return _pixels(image, config)
  except BadRecord:
    raise
  except Image.DecompressionBombError as error:  # Pillow's own limit, met before ours
    raise BadRecord(f'image of more than the {MAX_PIXELS:,} pixels allowed') from error
  except UnidentifiedImageError as error:
    raise BadRecord(
      f'not an image, or a damaged one (known: {" ".join(IMAGE_FORMATS)})'
    ) from error
  except Exception as error:  # Pillow's parsers raise whatever they stumble over: OSError, SyntaxError, struct.error, …
    raise BadRecord(f'damaged image ({type(error).__name__}: {error})') from error


def fitted(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
  """Width and height that an image of this size gets in the run."""
  if config.fit == Fit.STRETCH:
    return config.width, config.height
  scale = min(config.width / width, config.height / height) / config.patch
  return tuple(max(1, round(side * scale)) * config.patch for side in (width, height))


def _pixels(
  image: Image.Image, config: ImageConfig
) -> Float32[np.ndarray, 'height width channels']:
  size = fitted(*image.size, config)
  if image.mode == 'F':
    raise BadRecord(
      'image of floating-point pixels, whose range is unknown: save it with 8 or 16 bits a channel'
    )
  if image.mode.startswith(
    'I'
  ):  # 16-bit gray: Pillow's own conversion to 8 bits clips instead of scaling
    gray_hw = np.asarray(image).astype(np.float32) / 65535
    if gray_hw.min() < 0 or gray_hw.max() > 1:
      raise BadRecord('image of more than 16 bits a channel')
    gray_hw = np.asarray(
      Image.fromarray(gray_hw).resize(size, Image.Resampling.BICUBIC)
    )
    pixels_hwc = np.repeat(
      np.clip(gray_hw, 0, 1)[..., None], config.channels, axis=-1
    )  # bicubic overshoots
  else:
    image, mode = _over_white(image), {1: 'L', 3: 'RGB'}[config.channels]
    image = image if image.mode == mode else image.convert(mode)
    image = (
      image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    )
    pixels_hwc = np.frombuffer(image.tobytes(), np.uint8) / np.float32(255)
  return pixels_hwc.reshape(size[1], size[0], config.channels)


def _over_white(image: Image.Image) -> Image.Image:
  if image.getbands()[-1] not in ('A', 'a') and 'transparency' not in image.info:
    return image
  image = image.convert('RGBA')
  return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)


def decode_audio(data: bytes, config: AudioConfig) -> Float32[np.ndarray, ' samples']:
  """One channel at the run's rate, in [-1, 1]; channels are averaged, louder sounds scaled down to a peak of 1.

  A clip longer than the run's is refused, not cut: its words would no longer be the ones that the text says.
  """
  _check_size(data)
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


def _check_size(data: bytes) -> None:
  if not data:
    raise BadRecord('file is empty')
  _check_bytes(len(data))


def _one_line(error: Exception) -> str:
  text = getattr(error, 'error_string', None) or str(
    error
  )  # error_string leaves out the address of our BytesIO
  return ' '.join(text.split())


def png_bytes(pixels_hwc: Float[np.ndarray, 'height width channels']) -> bytes:
  """A PNG file, 8 bits a channel, of gray or RGB pixels in [0, 1]."""
  if not np.isfinite(pixels_hwc).all():
    raise ValueError('pixels hold NaN or infinite values')
  values = np.round(np.clip(pixels_hwc, 0, 1) * 255).astype(np.uint8)
  out = io.BytesIO()
  Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(
    out, format='PNG'
  )
  return out.getvalue()


def wav_bytes(wave_s: Float[np.ndarray, ' samples'], rate: int) -> bytes:
  """A WAV file, mono, 16 bits, of samples in [-1, 1]; reading it back gives the 16-bit values exactly."""
  if not np.isfinite(wave_s).all():
    raise ValueError('samples hold NaN or infinite values')
  values = np.clip(np.round(wave_s * 32768), -32768, 32767).astype(np.int16)
  out = io.BytesIO()
  soundfile.write(out, values, rate, format='WAV', subtype='PCM_16')
  return out.getvalue()


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path lies in a bucket (gs://…), where there are no links and no devices."""
  return '://' in os.fspath(path)
