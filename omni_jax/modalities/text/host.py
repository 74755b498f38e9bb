"""Text spans on the host: one position per id."""

import dataclasses
import html

import numpy as np

from omni_jax.modalities.contract import Host, Part
from omni_jax.types import Layout, Span


@dataclasses.dataclass(frozen=True)
class TextPart(Part):
  """Written text.

  Attributes:
    text: the text itself.
  """

  text: str
  type: str = 'text'

  def _repr_html_(self) -> str:
    return f'<p>{html.escape(self.text)}</p>'


class TextHost(Host):
  """Lays out text as one position per id."""

  name = 'text'
  key = 'text'

  def form(self, span: Span) -> tuple[int, ...]:
    """Returns the ids of the span."""
    return span.tokens

  def layout(self, form: tuple[int, ...], written: bool) -> Layout:
    """Returns positions one unit apart on all three axes (Qwen2-VL's M-RoPE)."""
    n = len(form)
    layout = Layout.empty(n, n - 1, self.number)
    layout.token_n[:] = form
    layout.offset_n3[:] = np.arange(n, dtype=np.float32)[:, None]
    if written:
      layout.label_n[:] = form
    return layout

  def pieces(self, span: Span) -> tuple[np.ndarray, ...]:
    """Returns nothing: text has no streams."""
    return ()

  def part(self, payload: str) -> TextPart:
    return TextPart(payload)
