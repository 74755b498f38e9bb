"""One long text file as plain examples: pieces of equal length, cut anywhere."""

from collections.abc import Sequence
import operator
from typing import Any, SupportsIndex

from etils import epath

from omni_jax.errors import UserError
from omni_jax.retry import patiently

TRAIN_SHARE = (
  0.9  # of the file, from its beginning; the rest is for evaluation, as in nanoGPT
)


class TextFile(Sequence):
  """Pieces of `length` bytes: of the training part one that starts at every byte, of the rest one after another."""

  def __init__(self, path: epath.PathLike, *, length: int, train: bool):
    self.path = path  # as messages call the data
    try:
      data = patiently(epath.Path(path).read_bytes, path)
      data.decode()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(
        f'{path}: not a text file in UTF-8 ({error}): see config.data.root and train_file'
      ) from error
    cut = int(TRAIN_SHARE * len(data))
    self._data, self._length = data[:cut] if train else data[cut:], length
    self._stride = 1 if train else length
    if not 0 < length <= len(self._data):
      raise UserError(
        f'{path}: its {"first" if train else "last"} part has {len(self._data)} bytes, '
        f'config.data.piece={length}'
      )

  def __len__(self) -> int:
    return (len(self._data) - self._length) // self._stride + 1

  def encoded(self, index: SupportsIndex) -> dict[str, Any]:
    """As the examples of other sources whose media are not read: there are none."""
    return self[index]

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f'piece {index} of {len(self)}')
    start = index * self._stride
    piece = self._data[start : start + self._length]
    return {
      'id': f'text/{start}',
      'content': [{'type': 'text', 'text': piece.decode(errors='replace')}],
      'open': True,
    }
