"""Image spans on the host: `<boi> <h> <w> X… <eoi>` when read, `<boi> <h> <w> Q… X… <eoi>` when written."""

import functools

import numpy as np

from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.types import ImageConfig, Layout, MediaConfig, Modality, Span


def grid_of(pixels: np.ndarray, config: ImageConfig) -> tuple[int, int]:
  """Patches along height and width. Pixels must fill whole patches and fit the configured maximum."""
  h, w, c = pixels.shape
  if (
    h % config.patch
    or w % config.patch
    or h > config.height
    or w > config.width
    or c != config.channels
  ):
    raise ValueError(
      f'image of {h}x{w}x{c} does not fit patches of {config.patch} in at most '
      f'{config.height}x{config.width}x{config.channels}'
    )
  return h // config.patch, w // config.patch


def patch_positions(rows: int, columns: int, start: float) -> np.ndarray:
  """(rows·columns, 3): one moment in time, height and width counted from the same start."""
  r, c = np.divmod(np.arange(rows * columns), columns)
  return np.stack([np.full_like(r, 0), r, c], axis=1).astype(np.float32) + np.float32(
    start
  )


def patch_indices(rows: int, columns: int, config: ImageConfig) -> np.ndarray:
  """Where the patches of a smaller image lie in the padded grid of the largest one."""
  r, c = np.divmod(np.arange(rows * columns), columns)
  return (r * config.grid[1] + c).astype(np.int32)


def form(span: Span, media: MediaConfig) -> tuple[int, int]:
  """Rows and columns of patches."""
  return grid_of(span.pixels, media.image)


@functools.lru_cache(maxsize=1024)
def layout(
  form: tuple[int, int], written: bool, tokenizer: Tokenizer, media: MediaConfig
) -> Layout:
  """Positions of one image; a query and the clean patch that it becomes share their place in space."""
  rows, columns = form
  n = rows * columns
  made = Layout.empty(3 + n * (1 + written) + 1, 3 + max(rows, columns))
  made.token_n[:3] = [
    tokenizer.special(name) for name in ('boi', f'size:{rows}', f'size:{columns}')
  ]
  made.token_n[-1] = tokenizer.special('eoi')
  made.modality_n[3:-1] = int(Modality.IMAGE)
  made.offset_n3[:3] = np.arange(3, dtype=np.float32)[:, None]
  made.offset_n3[3 : 3 + n] = patch_positions(rows, columns, 3)
  made.offset_n3[-1] = made.end
  indices = patch_indices(rows, columns, media.image)
  if written:
    made.label_n[:3] = made.token_n[:3]
    made.query_n[3 : 3 + n] = indices
    made.drawn_n[3 + n : -1] = indices
    made.offset_n3[3 + n : -1] = made.offset_n3[3 : 3 + n]
  else:
    made.seen_n[3:-1] = indices
  return made.constant()
