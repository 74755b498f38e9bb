"""Text spans on the host: ids to positions."""

import numpy as np

from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.types import Layout, MediaConfig, Span


def form(span: Span, media: MediaConfig) -> tuple[int, ...]:
  """The ids."""
  del media
  return span.tokens


def layout(
  form: tuple[int, ...], written: bool, tokenizer: Tokenizer, media: MediaConfig
) -> Layout:
  """One position per id, each one unit after the last on all three axes (Qwen2-VL's M-RoPE for text)."""
  del tokenizer, media
  made = Layout.empty(len(form), len(form) - 1)
  made.token_n[:] = form
  made.offset_n3[:] = np.arange(len(form), dtype=np.float32)[:, None]
  if written:
    made.label_n[:] = made.token_n
  return made
