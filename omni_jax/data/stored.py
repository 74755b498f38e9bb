"""Examples that are stored with the bytes of their media, which are decoded when one is asked for."""

from collections.abc import Sequence
import operator
from typing import SupportsIndex

from omni_jax.data.jsonl import DECODE, Example, map_media
from omni_jax.data.media import BadRecord
from omni_jax.types import MediaConfig


class Stored(Sequence):
  """A subclass has `__len__` and `stored`.

  Attributes:
    media: what media are decoded to.
    path: how messages call the data.
  """
  media: MediaConfig
  path: str

  def stored(self, index: SupportsIndex) -> Example:
    """The example with its media as the bytes of files under 'data'; a BadRecord that it raises names the example."""
    raise NotImplementedError

  def __getitem__(self, index: SupportsIndex) -> Example:
    example = self.stored(index)
    try:
      return map_media(example, lambda part: DECODE[part['type']](part['data'], self.media))
    except BadRecord as error:
      raise BadRecord(error.reason, example['id']) from error

  def place(self, index: SupportsIndex) -> int:
    """The index counted from the beginning."""
    index = operator.index(index)
    if not -len(self) <= index < len(self):
      raise IndexError(f'example {index} of {len(self)}')
    return index % len(self)
