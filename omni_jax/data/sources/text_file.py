"""Reads one long text file as plain examples: pieces of equal length, cut anywhere."""

from collections.abc import Sequence
import operator
from typing import Any, SupportsIndex

from etils import epath

from omni_jax.errors import UserError
from omni_jax.retry import with_retries
from omni_jax.sequence.example import text_part

# The first part of the file is for training, the rest for evaluation, as in nanoGPT.
TRAIN_SHARE = 0.9


class TextFile(Sequence):
  """Pieces of `length` bytes of the training part or of the evaluation part of a file.

  A piece of the training part starts at every byte; pieces of the evaluation part do
  not overlap.

  Attributes:
    path: name of the data in messages.

  Raises:
    UserError: if the file is not UTF-8 text, or its part is shorter than a piece.
  """

  def __init__(self, path: epath.PathLike, *, length: int, train: bool):
    self.path = path
    try:
      data = with_retries(epath.Path(path).read_bytes, path)
      data.decode()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(
        f'{path}: not a text file in UTF-8 ({error}): check config.data.root and '
        'train_file'
      ) from error
    cut = int(TRAIN_SHARE * len(data))
    self._data = data[:cut] if train else data[cut:]
    self._length = length
    self._stride = 1 if train else length
    if not 0 < length <= len(self._data):
      part = 'training' if train else 'evaluation'
      raise UserError(
        f'{path}: config.data.piece={length} must lie between 1 and the '
        f'{len(self._data)} bytes of the {part} part'
      )

  def __len__(self) -> int:
    return (len(self._data) - self._length) // self._stride + 1

  def encoded(self, index: SupportsIndex) -> dict[str, Any]:
    """Returns a piece: there are no media that could stay encoded."""
    return self[index]

  def __getitem__(  # type: ignore[override]  # no slices
    self, index: SupportsIndex
  ) -> dict[str, Any]:
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f'piece {index} of {len(self)}')
    start = index * self._stride
    piece = self._data[start : start + self._length]
    return {
      'id': f'text/{start}',
      'content': [text_part(piece.decode(errors='replace'))],
      'open': True,
    }
