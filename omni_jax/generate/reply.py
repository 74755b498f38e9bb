"""What was written -> parts: text, pictures and sounds in the order in which the model wrote them."""

import base64
from collections.abc import Callable, Sequence
import dataclasses
import html
from typing import Any

import numpy as np

from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.sequence.media import png_bytes, wav_bytes


@dataclasses.dataclass(frozen=True)
class Part:
  """A piece of a reply; in a notebook it shows itself as text, picture or player.

  Attributes:
    type: 'text', 'image' or 'audio'; of the fields below those of that type are there.
    pixels: float32 in [0, 1], shape (height, width, channels).
    wave: float32 in [-1, 1], shape (samples,), at `rate` samples per second.
  """

  type: str
  text: str | None = None
  pixels: np.ndarray | None = None
  wave: np.ndarray | None = None
  rate: int | None = None

  def _repr_html_(self) -> str:
    if self.type == 'text':
      return f'<p>{html.escape(self.text)}</p>'
    if self.type == 'image':
      data = base64.b64encode(png_bytes(self.pixels)).decode()
      return f'<img style="image-rendering:pixelated;min-width:8em" src="data:image/png;base64,{data}">'
    data = base64.b64encode(wav_bytes(self.wave, self.rate)).decode()
    return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'


def parts_of(
  tokens: Sequence[int],
  code_OJ: np.ndarray,
  pictures: Sequence[np.ndarray],
  tokenizer: Tokenizer,
  patch: int,
) -> list[Part]:
  """One reply. Sounds still hold their codes, shape (frames, J), in `wave`: `with_sound` decodes them together.

  Args:
    tokens: ids as written, 0 after the end.
    code_OJ: codes at every id; those of `<frame>` count.
    pictures: drawn images of full size, in order.
  """
  parts: list[Part] = []
  text: list[int] = []
  frames: list[np.ndarray] = []
  sizes: list[int] = []
  left = list(pictures)
  for token, code_J in zip([*tokens, 0], [*code_OJ, None], strict=True):
    name = tokenizer.name(token)
    if name is None:
      text.append(token)
      continue
    if text:
      parts.append(Part('text', text=tokenizer.decode(tuple(text))))
      text = []
    if name == 'frame':
      frames.append(code_J)
    elif frames:
      parts.append(Part('audio', wave=np.stack(frames)))
      frames = []
    sizes = sizes + [int(name[5:]) * patch] if name.startswith('size:') else []
    if len(sizes) == 2 and left:
      parts.append(Part('image', pixels=left.pop(0)[: sizes[0], : sizes[1]]))
  return parts


def with_sound(
  replies: list[list[Part]], decode: Callable[[list[np.ndarray]], list[Any]], rate: int
) -> list[list[Part]]:
  """Codes of all sounds -> waves, by one call of `decode` for all of them."""
  waves = iter(
    decode([part.wave for parts in replies for part in parts if part.type == 'audio'])
  )
  return [
    [
      dataclasses.replace(part, wave=next(waves), rate=rate)
      if part.type == 'audio'
      else part
      for part in parts
    ]
    for parts in replies
  ]
