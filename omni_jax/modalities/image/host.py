"""Image spans on the host: a grid of patches between opening and closing tokens.

Read: `<boi> <h> <w> X… <eoi>`. Written: `<boi> <h> <w> Q… X… <eoi>`, with a query Q and
then the clean copy X of every patch. A stream is a pool of patches of images of any
size.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools

import numpy as np

from omni_jax.modalities.contract import Host, MediaFile, Part, Writing
from omni_jax.modalities.image.augment import augment_image, ImageAugment
from omni_jax.modalities.image.files import bytes_of, decode_image, FORMATS, png_bytes
from omni_jax.modalities.image.sizes import Fit, ImageConfig
from omni_jax.types import ItemLayout, Layout, Span, StreamSpec

OPENING = 3  # positions before the patches: <boi>, rows, columns


@dataclasses.dataclass(frozen=True)
class ImagePart(Part):
  """A drawn image.

  Attributes:
    pixels: float32 in [0, 1], of shape (height, width, channels).
  """

  pixels: np.ndarray
  type: str = 'image'

  def _repr_html_(self) -> str:
    file = MediaFile('png', png_bytes(self.pixels))
    style = 'image-rendering:pixelated;min-width:8em'
    return f'<img style="{style}" src="{file.url}">'


def grid_of(pixels: np.ndarray, config: ImageConfig) -> tuple[int, int]:
  """Returns the number of patches along height and width.

  Raises:
    ValueError: if the pixels do not fill whole patches, are more than the largest image
      has, or have another number of channels.
  """
  h, w, c = pixels.shape
  in_whole_patches = h % config.patch == 0 and w % config.patch == 0
  small_enough = h <= config.height and w <= config.width
  if not (in_whole_patches and small_enough and c == config.channels):
    raise ValueError(
      f'image of {h}x{w}x{c} does not fit patches of {config.patch} in at most '
      f'{config.height}x{config.width}x{config.channels}'
    )
  return h // config.patch, w // config.patch


def patch_places(rows: int, columns: int) -> np.ndarray:
  """Returns the (time, row, column) of each patch, int32 (rows · columns, 3)."""
  number_M = np.arange(rows * columns, dtype=np.int32)
  row_M, column_M = np.divmod(number_M, np.int32(columns))
  return np.stack([np.zeros_like(row_M), row_M, column_M], axis=1)


def cut(pixels_hwc: np.ndarray, patch: int) -> np.ndarray:
  """Returns the patches of an image row by row, of shape (patches, values).

  The values of a patch are in reading order.
  """
  h, w, c = pixels_hwc.shape
  grid = pixels_hwc.reshape(h // patch, patch, w // patch, patch, c)
  return grid.transpose(0, 2, 1, 3, 4).reshape(-1, patch * patch * c)


class ImageHost(Host):
  """Lays out read images as patches, and written ones as queries and their patches."""

  config: ImageConfig
  name = 'image'
  key = 'pixels'
  labels = ('label',)
  record_keys = ('digest',)
  suffixes = tuple(itertools.chain(*FORMATS.values()))
  Augment = ImageAugment
  lenient = ImageConfig()

  def streams(self) -> tuple[StreamSpec, ...]:
    patches = self.config.patches
    # If all images have one size, each fills a block; otherwise a block has room for
    # two of the largest.
    one_size = self.config.fit == Fit.STRETCH
    seen = StreamSpec(
      'image.seen',
      'image',
      written=False,
      queries=False,
      shape=(self.config.values,),
      dtype='uint8',
      longest=patches,
      block=patches if one_size else 2 * patches,
    )
    drawn = seen._replace(name='image.drawn', written=True, queries=True)
    return (seen, drawn)

  def decode(self, data: bytes) -> np.ndarray:
    return decode_image(data, self.config)

  def augment(
    self, payload: np.ndarray, strength: ImageAugment, rng: np.random.Generator
  ) -> np.ndarray:
    return augment_image(payload, strength, rng)

  def form(self, span: Span) -> tuple[int, int]:
    """Returns the number of rows and of columns of patches."""
    return grid_of(span.payload, self.config)

  def layout(self, form: tuple[int, int], written: bool) -> Layout:
    return _layout(self, form, written)

  def pieces(self, span: Span) -> tuple[np.ndarray, ...]:
    return (cut(bytes_of(span.payload), self.config.patch),)

  def join_pieces(self, pieces: np.ndarray, form: Sequence[int]) -> np.ndarray:
    _, rows, columns = form
    p = self.config.patch
    grid = pieces.reshape(rows, columns, p, p, self.config.channels)
    pixels_hwc = grid.transpose(0, 2, 1, 3, 4).reshape(rows * p, columns * p, -1)
    return pixels_hwc.astype(np.float32) / np.float32(255)

  def writing(self) -> Writing:
    special = self.tokenizer.special
    opening: list[tuple[int, ...]] = [(special('boi'),)]
    for side in self.config.grid:
      opening.append(tuple(special(f'size:{n}') for n in range(1, side + 1)))
    return Writing(
      tuple(opening), closing=special('eoi'), piece=None, longest=self.config.patches
    )

  def part(self, payload: np.ndarray) -> ImagePart:
    return ImagePart(payload)

  def show(self, payload: np.ndarray) -> MediaFile:
    return MediaFile('png', png_bytes(payload))

  def count(self, payload: np.ndarray) -> dict[str, float]:
    return {'images': 1}


@functools.lru_cache(maxsize=1024)
def _layout(host: ImageHost, form: tuple[int, int], written: bool) -> Layout:
  """Returns the positions of an image.

  A query and the clean patch that it becomes have the same offsets.
  """
  rows, columns = form
  patches = rows * columns
  special = host.tokenizer.special
  place_M3 = patch_places(rows, columns)
  first_M = np.arange(OPENING, OPENING + patches)
  size = (1, rows, columns)
  if written:
    at_M = first_M + patches
    item = ItemLayout(
      'image.drawn', size, place_M3, at_M, query_M=first_M, write_M=first_M
    )
  else:
    item = ItemLayout('image.seen', size, place_M3, first_M)
  positions = OPENING + patches * (1 + written) + 1
  end = OPENING + max(rows, columns)
  layout = Layout.empty(positions, end, host.text, (item,))
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
    layout.offset_n3[first_M + patches] = layout.offset_n3[first_M]
  return layout.frozen()
