"""What all readers of a conversion have in common: pieces of input that workers read side by side."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from omni_jax.data.sources.pairs import pair
from omni_jax.errors import BadRecord

Example = dict[str, Any]
IMAGES = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.ppm')
SOUNDS = ('.wav', '.flac', '.ogg', '.opus', '.mp3')
VIDEOS = (
  '.mp4',
  '.webm',
  '.mkv',
  '.mov',
  '.avi',
)  # there is no reading of them yet: refused by name, not passed over
# By the end of a name.
KIND = {
  **dict.fromkeys(IMAGES, 'image'),
  **dict.fromkeys(SOUNDS, 'audio'),
  **dict.fromkeys(VIDEOS, 'video'),
}


class Found(NamedTuple):
  """One example of the input, not yet read."""

  id: str
  make: Callable[
    [], Example
  ]  # the example, its media as bytes under 'data'; raises BadRecord


@runtime_checkable
class Reader(Protocol):
  """An input as `len` items in fixed order. May be pickled; `read` of the same items finds the same examples."""

  chunk: int  # items that one worker takes at a time
  files: Sequence[
    str
  ]  # that are read: when one changes, a conversion cannot go on where it stopped

  def __len__(self) -> int: ...

  def read(self, items: range) -> Iterator[Found]: ...


def refused(error: BadRecord) -> Callable[[], Example]:
  """What `Found.make` is where already finding the example has failed."""

  def make() -> Example:
    raise error

  return make


def captioned(media: Sequence[Example], text: str, language: str = '') -> Example:
  """Media that a user shows and text that the assistant answers; without text a plain example, for pre-training."""
  if not text:
    return {'content': list(media)}
  return pair(media, {'type': 'text', 'text': text}, language)
