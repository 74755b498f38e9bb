"""Text spans on the host: ids to positions."""

import numpy as np

from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.types import Layout, MediaConfig, Span


def layout(span: Span, tokenizer: Tokenizer, media: MediaConfig) -> Layout:
  """One position per id, each one unit after the last on all three axes (Qwen2-VL's M-RoPE for text)."""
  del tokenizer, media
  made = Layout.empty(len(span.tokens), len(span.tokens) - 1)
  made.token_n[:] = span.tokens
  made.offset_n3[:] = np.arange(len(span.tokens), dtype=np.float32)[:, None]
  if span.written:
    made.label_n[:] = made.token_n
  return made
