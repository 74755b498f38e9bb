"""Decodes media in a bare loop, with no check and nothing around it.

This is what anybody pays who reads these files.
"""

from collections.abc import Iterable, Sequence
import io
import os
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
import soundfile
import soxr

from omni_jax.data.sources.mixture import Mixture
from omni_jax.sequence.example import parts_of
from omni_jax.types import AudioConfig, ImageConfig, MediaConfig


class Medium(NamedTuple):
  """An encoded image or sound.

  Attributes:
    kind: 'image' or 'audio'.
    source: its bytes, or the file that holds them.
  """

  kind: str
  source: bytes | str


def encoded_media(examples: Sequence[Any], index: int) -> list[Medium]:
  """Returns the encoded media of one example.

  There are none where the source makes its examples itself.
  """
  if isinstance(examples, Mixture):
    source, index = examples.find(index)
    return encoded_media(examples.sources[source], index)
  if hasattr(examples, 'stored'):  # in archives, which are not what is measured
    example = examples.stored(index)
  elif hasattr(examples, 'encoded'):
    example = examples.encoded(index)
  else:
    return []
  media = []
  for part in parts_of(example):
    if part['type'] == 'text':
      continue
    source = part.get('data')
    if source is None:
      source = os.path.join(os.path.dirname(examples.path), part['path'])
    media.append(Medium(part['type'], source))
  return media


def decode_media(media: Iterable[Medium], config: MediaConfig) -> list[np.ndarray]:
  """Decodes media one after another.

  Images become float32 (height, width, channels), sounds float32 (samples,).
  """
  configs = {'image': config.image, 'audio': config.audio}
  return [
    DECODERS[medium.kind](_bytes(medium), configs[medium.kind]) for medium in media
  ]


def _bytes(medium: Medium) -> bytes:
  if isinstance(medium.source, bytes):
    return medium.source
  with open(medium.source, 'rb') as file:
    return file.read()


def _image(data: bytes, config: ImageConfig) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    image = image.convert({1: 'L', 3: 'RGB'}[config.channels])
    if image.size != (config.width, config.height):
      image = image.resize((config.width, config.height), Image.Resampling.BICUBIC)
    return (
      np.asarray(image, np.float32).reshape(
        config.height, config.width, config.channels
      )
      / 255
    )


def _audio(data: bytes, config: AudioConfig) -> np.ndarray:
  wave_s, rate = soundfile.read(io.BytesIO(data), dtype='float32')
  if wave_s.ndim > 1:
    wave_s = wave_s.mean(axis=1)
  return wave_s if rate == config.rate else soxr.resample(wave_s, rate, config.rate)


DECODERS = {'image': _image, 'audio': _audio}
