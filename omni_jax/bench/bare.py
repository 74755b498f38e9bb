"""Decodes media in a bare loop without any checks: the least that reading them costs."""

from collections.abc import Callable, Iterable
import io
import os
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
import soundfile
import soxr

from omni_jax.data.sources.mixture import Mixture
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.sequence.example import parts_of


class Medium(NamedTuple):
  """An encoded medium, such as an image.

  Attributes:
    kind: name of the medium in the table of hosts.
    source: bytes of the medium, or path of the file that holds them.
  """

  kind: str
  source: bytes | str


def encoded_media(examples: Any, index: int) -> list[Medium]:
  """Returns the encoded media of one example.

  The list is empty if the source generates its examples.
  """
  if isinstance(examples, Mixture):
    number, position = examples.find(index)
    return encoded_media(examples.sources[number], position)
  if hasattr(examples, 'stored'):  # in an archive, whose reading is not measured
    example = examples.stored(index)
  elif hasattr(examples, 'encoded'):
    example = examples.encoded(index)
  else:
    return []
  media = []
  for part in parts_of(example):
    if part['type'] == TEXT:
      continue
    source = part.get('data')
    if source is None:
      source = os.path.join(os.path.dirname(examples.path), part['path'])
    media.append(Medium(part['type'], source))
  return media


def decode_media(media: Iterable[Medium], hosts: Hosts) -> list[np.ndarray]:
  """Returns media decoded one after another, in the sizes of the run."""
  decoded = []
  for medium in media:
    sizes = hosts[medium.kind].config
    decoded.append(DECODERS[medium.kind](_bytes(medium), sizes))
  return decoded


def _bytes(medium: Medium) -> bytes:
  if isinstance(medium.source, bytes):
    return medium.source
  with open(medium.source, 'rb') as file:
    return file.read()


def _image(data: bytes, config: ImageConfig) -> np.ndarray:
  """Returns pixels from 0 to 1 as float32 of shape (height, width, channels)."""
  mode = {1: 'L', 3: 'RGB'}[config.channels]
  size = (config.width, config.height)
  with Image.open(io.BytesIO(data)) as image:
    converted = image.convert(mode)
    if converted.size != size:
      converted = converted.resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(converted, np.float32)
    return pixels.reshape(config.height, config.width, config.channels) / 255


def _audio(data: bytes, config: AudioConfig) -> np.ndarray:
  """Returns the samples of a mono sound at the rate of the run, as float32."""
  wave_s, rate = soundfile.read(io.BytesIO(data), dtype='float32')
  if wave_s.ndim > 1:
    wave_s = wave_s.mean(axis=1)
  if rate == config.rate:
    return wave_s
  return soxr.resample(wave_s, rate, config.rate)


DECODERS: dict[str, Callable[[bytes, Any], np.ndarray]] = {
  'image': _image,
  'audio': _audio,
}
