"""Text spans on the host: ids to positions."""

import dataclasses
import html

import numpy as np

from omni_jax.modalities.contract import Host, Part
from omni_jax.types import Layout, Span


@dataclasses.dataclass(frozen=True)
class TextPart(Part):
  """Written text."""

  text: str
  type: str = 'text'

  def _repr_html_(self) -> str:
    return f'<p>{html.escape(self.text)}</p>'


class TextHost(Host):
  """One position per id."""

  name = 'text'
  key = 'text'

  def form(self, span: Span) -> tuple[int, ...]:
    return span.tokens

  def layout(self, form: tuple[int, ...], written: bool) -> Layout:
    """Each id lies one unit after the last on all three axes (Qwen2-VL's M-RoPE for text)."""
    n = len(form)
    layout = Layout.empty(n, n - 1, self.number)
    layout.token_n[:] = form
    layout.offset_n3[:] = np.arange(n, dtype=np.float32)[:, None]
    if written:
      layout.label_n[:] = form
    return layout

  def pieces(self, span: Span) -> tuple[np.ndarray, ...]:
    return ()

  def part(self, payload: str) -> TextPart:
    return TextPart(payload)
