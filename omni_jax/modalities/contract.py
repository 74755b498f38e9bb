"""The host contract of a medium: all that packer, loader, grammar and pages rely on.

A medium is one package (`modalities/NAME/`) and one row in each of two tables:
`hosts.py` (numpy) and `devices.py` (jax).
"""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, NamedTuple, TYPE_CHECKING

import numpy as np

from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.types import Layout, Span, StreamSpec

# MIME types by suffix; any other suffix belongs to a picture: 'image/SUFFIX'.
MIME_TYPES = {'wav': 'audio/wav', 'svg': 'image/svg+xml'}


class MediaFile(NamedTuple):
  """A payload as a file that browsers can show: a picture or a sound.

  Attributes:
    suffix: file suffix without the dot, such as 'png' or 'wav'.
    data: content of the file.
  """

  suffix: str
  data: bytes

  @property
  def mime(self) -> str:
    """Returns the MIME type of the file."""
    return MIME_TYPES.get(self.suffix, f'image/{self.suffix}')

  @property
  def url(self) -> str:
    """Returns a URL that holds the whole file."""
    return f'data:{self.mime};base64,{base64.b64encode(self.data).decode()}'


class Writing(NamedTuple):
  """The part of the grammar of replies that writes a medium.

  Attributes:
    opening: ids allowed at each opening position, in order. Every position after the
      first gives a size: its first id stands for size 1, its second for 2, and so on.
    closing: id that follows the pieces.
    piece: id that precedes each piece where pieces are written one at a time; None
      where they are written as a block, from queries.
    longest: largest number of pieces in an item.
  """

  opening: tuple[tuple[int, ...], ...]
  closing: int
  piece: int | None
  longest: int


class Codes(NamedTuple):
  """Codes that a stream stores instead of payloads.

  Attributes:
    shape: shape of the codes of one piece.
    entries: number of values that a code can take: 0 … entries - 1.
  """

  shape: tuple[int, ...]
  entries: int


class Part:
  """One part of a reply; a notebook displays it as text, a picture or a player.

  Attributes:
    type: name of the medium, which also names the fields of a subclass.
  """

  type: str

  if TYPE_CHECKING:  # the fields of a subclass depend on its medium

    def __getattr__(self, name: str) -> Any: ...

  def _repr_html_(self) -> str:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Host:
  """The numpy side of a medium in one run. It can be pickled and hashed.

  Attributes:
    config: sizes of the medium (`config.model.NAME`).
    tokenizer: tokenizer of the run.
    number: number of the medium, which is its place in the table, from 1.
    text: number of the medium text, for the tokens that open and close an item.
    stored: (kind of stream, codes) for the streams that carry codes, not payloads.

  Attributes of the class:
    name: name of the medium: the `type` of a part of an example.
    key: key of the payload in a part of an example.
    labels: optional keys of a part, read by judges.
    record_keys: optional keys of bytes that a record holds beside the medium.
    suffixes: suffixes of the medium's files.
    Augment: dataclass that says how strongly payloads are augmented, or None if they
      never are.
    lenient: sizes into which any file can be decoded, to check it for damage.
  """

  config: Any
  tokenizer: Tokenizer
  number: int
  text: int
  stored: tuple[tuple[str, Codes], ...] = ()

  name: ClassVar[str] = ''
  key: ClassVar[str] = ''
  labels: ClassVar[tuple[str, ...]] = ()
  record_keys: ClassVar[tuple[str, ...]] = ()
  suffixes: ClassVar[tuple[str, ...]] = ()
  Augment: ClassVar[type | None] = None
  lenient: ClassVar[Any] = None

  def streams(self) -> tuple[StreamSpec, ...]:
    """Returns the streams of the medium: what is read, then what is written."""
    return ()

  def decode(self, data: bytes) -> Any:
    """Returns the payload of an encoded file, in the sizes of the run.

    Raises:
      BadRecord: if the file is damaged or not allowed.
    """
    raise NotImplementedError

  def augment(self, payload: Any, strength: Any, rng: np.random.Generator) -> Any:
    """Returns a slightly and randomly changed copy of a payload.

    Args:
      strength: an `Augment`.
    """
    raise NotImplementedError

  def form(self, span: Span) -> Any:
    """Returns everything that determines a span's positions, as a hashable value.

    Raises:
      ValueError: if the payload does not fit the sizes of the run.
    """
    raise NotImplementedError

  def layout(self, form: Any, written: bool) -> Layout:
    """Returns the positions of a span of this form."""
    raise NotImplementedError

  def pieces(self, span: Span) -> tuple[np.ndarray, ...]:
    """Returns the pieces of each item of the span's layout.

    Each array is of shape (M, …) and of the type of its stream.
    """
    raise NotImplementedError

  def join_pieces(self, pieces: np.ndarray, form: Sequence[int]) -> Any:
    """Returns the payload of an item of this form, the inverse of `pieces`.

    Args:
      pieces: pieces of the item, (M, …).
    """
    raise NotImplementedError

  def crop(
    self, payload: Any, pieces: int, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns a random crop of a payload, to train an autoencoder on.

    Returns:
      value (pieces, …) and mask (pieces,), which is 0 where the payload has ended.
    """
    raise NotImplementedError

  def writing(self) -> Writing | None:
    """Returns how replies write the medium, or None if they cannot."""
    return None

  def form_of(self, sizes: Sequence[int], pieces: int) -> tuple[int, int, int]:
    """Returns the (time, height, width) of a written item, in pieces.

    Args:
      sizes: sizes that the opening positions gave.
      pieces: number of pieces written.
    """
    if not sizes:
      return (1, 1, pieces)
    time, height, width = (1, 1, 1, *sizes)[-3:]
    return (time, height, width)

  def part(self, payload: Any) -> Part:
    """Returns a payload as a part of a reply."""
    raise NotImplementedError

  def show(self, payload: Any) -> MediaFile:
    """Returns a payload as a file that browsers can show."""
    raise NotImplementedError

  def same_pieces(self, sizes: Any) -> bool:
    """Returns whether pieces under other sizes mean the same to an autoencoder."""
    return sizes == self.config

  def count(self, payload: Any) -> Mapping[str, float]:
    """Returns what a payload adds to each count in a converted folder's manifest."""
    return {}

  def codes_in(self, kind: str) -> Codes | None:
    """Returns the codes that a stream carries, or None if it carries payloads."""
    return dict(self.stored).get(kind)
