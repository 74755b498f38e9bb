"""Image spans on the host: `<boi> <h> <w> X… <eoi>` when read, `<boi> <h> <w> Q… X… <eoi>` when written.

An image is a grid of patches; its stream is a pool of patches, whatever the sizes of the images.
"""

import base64
from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from omni_jax.modalities.contract import Host, Part, Shown, Writing
from omni_jax.modalities.image.augment import ImageAugment, moved
from omni_jax.modalities.image.files import decode_image, png_bytes
from omni_jax.modalities.image.sizes import Fit, ImageConfig
from omni_jax.types import ItemLayout, Layout, Span, StreamSpec

OPENING = 3  # positions before the patches: <boi>, rows, columns


@dataclasses.dataclass(frozen=True)
class ImagePart(Part):
  """A drawn image: float32 in [0, 1], shape (height, width, channels)."""

  pixels: np.ndarray
  type: str = 'image'

  def _repr_html_(self) -> str:
    data = base64.b64encode(png_bytes(self.pixels)).decode()
    style = 'image-rendering:pixelated;min-width:8em'
    return f'<img style="{style}" src="data:image/png;base64,{data}">'


def grid_of(pixels: np.ndarray, config: ImageConfig) -> tuple[int, int]:
  """Returns the patches along height and width.

  Raises:
    ValueError: if the pixels do not fill whole patches, or are more than the largest image has.
  """
  h, w, c = pixels.shape
  whole = h % config.patch == 0 and w % config.patch == 0
  if not whole or h > config.height or w > config.width or c != config.channels:
    raise ValueError(
      f'image of {h}x{w}x{c} does not fit patches of {config.patch} in at most '
      f'{config.height}x{config.width}x{config.channels}'
    )
  return h // config.patch, w // config.patch


def patch_places(rows: int, columns: int) -> np.ndarray:
  """Returns the (time, row, column) of each patch, row by row: int32 (rows · columns, 3)."""
  number_M = np.arange(rows * columns, dtype=np.int32)
  row_M, column_M = np.divmod(number_M, np.int32(columns))
  return np.stack([np.zeros_like(row_M), row_M, column_M], axis=1)


def bytes_of(pixels: np.ndarray) -> np.ndarray:
  """Returns pixels in [0, 1] as uint8; uint8 stays as it is."""
  if pixels.dtype == np.uint8:
    return pixels
  return (pixels * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def cut(pixels_hwc: np.ndarray, patch: int) -> np.ndarray:
  """Returns the patches of an image, row by row, each as its values in reading order: (patches, values)."""
  h, w, c = pixels_hwc.shape
  grid = pixels_hwc.reshape(h // patch, patch, w // patch, patch, c)
  return grid.transpose(0, 2, 1, 3, 4).reshape(-1, patch * patch * c)


class ImageHost(Host):
  """Reads patches in a row; draws them as a block, each from the state of its query."""

  config: ImageConfig
  name = 'image'
  key = 'pixels'
  labels = ('label',)
  record_keys = ('digest',)
  suffixes = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.ppm')
  Augment = ImageAugment
  lenient = ImageConfig()

  def streams(self) -> tuple[StreamSpec, ...]:
    patches = self.config.patches
    # Images of one size fill a block each; of many sizes, two of the largest have room in one.
    block = patches if self.config.fit == Fit.STRETCH else 2 * patches
    piece = ((self.config.values,), 'uint8', patches, block)
    return (
      StreamSpec('image.seen', 'image', False, False, *piece),
      StreamSpec('image.drawn', 'image', True, True, *piece),
    )

  def decode(self, data: bytes) -> np.ndarray:
    return decode_image(data, self.config)

  def augmented(
    self, payload: np.ndarray, changes: ImageAugment, rng: np.random.Generator
  ) -> np.ndarray:
    return moved(payload, changes, rng)

  def form(self, span: Span) -> tuple[int, int]:
    """Returns the rows and columns of patches."""
    return grid_of(span.payload, self.config)

  def layout(self, form: tuple[int, int], written: bool) -> Layout:
    return _layout(self, form, written)

  def pieces(self, span: Span) -> tuple[np.ndarray, ...]:
    return (cut(bytes_of(span.payload), self.config.patch),)

  def joined(self, pieces: np.ndarray, form: Sequence[int]) -> np.ndarray:
    _, rows, columns = form
    p = self.config.patch
    grid = pieces.reshape(rows, columns, p, p, self.config.channels)
    pixels_hwc = grid.transpose(0, 2, 1, 3, 4).reshape(rows * p, columns * p, -1)
    return pixels_hwc.astype(np.float32) / np.float32(255)

  def writing(self) -> Writing:
    special = self.tokenizer.special
    sizes = tuple(
      tuple(special(f'size:{n}') for n in range(1, side + 1))
      for side in self.config.grid
    )
    opening = ((special('boi'),), *sizes)
    return Writing(opening, special('eoi'), None, self.config.patches)

  def part(self, payload: np.ndarray) -> ImagePart:
    return ImagePart(payload)

  def show(self, payload: np.ndarray) -> Shown:
    return Shown('png', png_bytes(payload))

  def counted(self, payload: np.ndarray) -> dict[str, float]:
    return {'images': 1}


@functools.lru_cache(maxsize=1024)
def _layout(host: ImageHost, form: tuple[int, int], written: bool) -> Layout:
  """Returns the positions of an image; a query and the clean patch that it becomes share their place in space."""
  rows, columns = form
  n = rows * columns
  special = host.tokenizer.special
  place_M3 = patch_places(rows, columns)
  first_M = np.arange(OPENING, OPENING + n)
  size = (1, rows, columns)
  end = OPENING + max(rows, columns)
  if written:
    item = ItemLayout('image.drawn', size, place_M3, first_M + n, first_M, first_M)
  else:
    item = ItemLayout('image.seen', size, place_M3, first_M)
  layout = Layout.empty(OPENING + n * (1 + written) + 1, end, host.text, (item,))
  layout.token_n[:OPENING] = [
    special('boi'),
    special(f'size:{rows}'),
    special(f'size:{columns}'),
  ]
  layout.token_n[-1] = special('eoi')
  layout.modality_n[OPENING:-1] = host.number
  layout.offset_n3[:OPENING] = np.arange(OPENING, dtype=np.float32)[:, None]
  layout.offset_n3[first_M] = place_M3 + np.float32(OPENING)
  layout.offset_n3[-1] = end
  if written:
    layout.label_n[:OPENING] = layout.token_n[:OPENING]
    layout.offset_n3[first_M + n] = layout.offset_n3[first_M]
  return layout.frozen()
