"""The interface of all input readers, and which medium a file name stands for."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from omni_jax.data.sources.pairs import pair_example
from omni_jax.errors import BadRecord
from omni_jax.sequence.example import Example, MEDIA, Part, text_part

# Videos cannot be read yet: they are refused by name instead of being ignored silently.
VIDEO_SUFFIXES = ('.mp4', '.webm', '.mkv', '.mov', '.avi')

DEFAULT_SPLIT = 'train'  # of inputs that have named splits
# The end of an error message about a conversion that can be resumed.
RESUME = 'run the same command again to resume'


def _media_by_suffix() -> dict[str, str]:
  """Returns suffix of a file name -> type of the part that holds the file."""
  media: dict[str, str] = {}
  for name, host in MEDIA.items():
    media.update(dict.fromkeys(host.suffixes, name))
  media.update(dict.fromkeys(VIDEO_SUFFIXES, 'video'))
  return media


MEDIUM_OF_SUFFIX = _media_by_suffix()


class InputExample(NamedTuple):
  """One example of the input that has not been read yet.

  Attributes:
    id: id of the example in the output.
    make: returns the example, its media as bytes under 'data'; raises BadRecord.
  """

  id: str
  make: Callable[[], Example]


@runtime_checkable
class Reader(Protocol):
  """An input of `len(reader)` items in a fixed order.

  A reader may be pickled, and reading the same items again yields the same examples.

  Attributes:
    chunk: number of items that a worker reads at a time.
    files: paths of the input files; a conversion cannot be resumed once one of them
      has changed.
  """

  @property
  def chunk(self) -> int: ...

  @property
  def files(self) -> Sequence[str]: ...

  def __len__(self) -> int: ...

  def read(self, items: range) -> Iterator[InputExample]: ...


def raising(error: BadRecord) -> Callable[[], Example]:
  """Returns the `InputExample.make` of an example that could not even be located."""

  def make() -> Example:
    raise error

  return make


def captioned(media: Sequence[Part], text: str, language: str = '') -> Example:
  """Returns a chat in which the user shows media and the assistant answers with text.

  Without text it is a plain example, for pre-training.
  """
  if not text:
    return {'content': list(media)}
  return pair_example(media, text_part(text), language)
