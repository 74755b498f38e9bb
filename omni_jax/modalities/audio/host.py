"""Audio spans on the host: `<boa> frames <eoa>`, one position per 80 ms frame."""

import functools

import numpy as np

from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.types import AudioConfig, Layout, MediaConfig, Modality, Span


def frames_of(wave: np.ndarray, config: AudioConfig) -> int:
  """Frames that hold the wave; the last one is padded with silence."""
  frames = -(-len(wave) // config.frame)
  if not 0 < frames <= config.frames:
    raise ValueError(
      f'clip of {len(wave) / config.rate:.2f} s does not fit 0 < t <= {config.seconds} s'
    )
  return frames


def form(span: Span, media: MediaConfig) -> int:
  """Frames."""
  return frames_of(span.wave, media.audio)


@functools.lru_cache(maxsize=1024)
def layout(
  form: int, written: bool, tokenizer: Tokenizer, media: MediaConfig
) -> Layout:
  """Positions of one clip. Heard clips enter as mel, spoken ones as the model's own codes."""
  del media
  n = form
  made = Layout.empty(n + 2, n + 1)
  made.token_n[[0, -1]] = tokenizer.special('boa'), tokenizer.special('eoa')
  made.modality_n[1:-1] = int(Modality.AUDIO)
  made.offset_n3[:] = np.arange(n + 2, dtype=np.float32)[:, None]
  if written:
    made.label_n[:] = tokenizer.special('frame')
    made.label_n[[0, -1]] = made.token_n[[0, -1]]
    made.spoken_n[1:-1] = np.arange(n)
  else:
    made.heard_n[1:-1] = np.arange(n)
  return made.constant()
