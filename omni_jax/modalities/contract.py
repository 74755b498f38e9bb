"""What a medium provides on the host: the contract that packer, loader, grammar and pages are written against.

A medium is one package (`modalities/NAME/`) and a row in each of two tables: `hosts.py` (numpy) and `devices.py` (jax).
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np

from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.types import Layout, Span, StreamSpec


class Shown(NamedTuple):
  """A payload as a file that browsers show: a picture or a sound."""

  suffix: str  # 'png', 'wav'
  data: bytes

  @property
  def mime(self) -> str:
    return {'wav': 'audio/wav', 'svg': 'image/svg+xml'}.get(
      self.suffix, f'image/{self.suffix}'
    )


class Writing(NamedTuple):
  """How a reply writes a medium, as edges of the grammar.

  Attributes:
    opening: the ids allowed one after another; each after the first is a size, 1 for its first id.
    closing: the id behind it.
    piece: the id before each piece where pieces are written one at a time, or None: as a block, from queries.
    longest: most pieces of an item.
  """

  opening: tuple[tuple[int, ...], ...]
  closing: int
  piece: int | None
  longest: int


class Codes(NamedTuple):
  """What is stored in a stream in the place of its payloads: whole numbers of shape `shape`, below `entries`."""

  shape: tuple[int, ...]
  entries: int


class Part:
  """A piece of a reply; in a notebook it shows itself as text, picture or player.

  Attributes:
    type: name of the medium, which also names the fields of a subclass.
  """

  type: str

  def _repr_html_(self) -> str:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Host:
  """The numpy side of a medium in one run. It may be pickled and hashed.

  Attributes:
    config: the medium's sizes (`config.model.NAME`).
    tokenizer: of the run.
    number: of the medium: its place in the table, from 1.
    text: number of text, for the tokens that open and close.
    stored: by kind of stream, codes that the batch carries in the place of payloads.
  """

  config: Any
  tokenizer: Tokenizer
  number: int
  text: int
  stored: tuple[tuple[str, Codes], ...] = ()

  # Of the class:
  name: ClassVar[str] = ''  # of the medium: the `type` of a part of an example
  key: ClassVar[str] = ''  # of a part of an example that holds the payload
  labels: ClassVar[tuple[str, ...]] = ()  # optional keys of a part, for judges
  # Optional bytes beside the medium in a record.
  record_keys: ClassVar[tuple[str, ...]] = ()
  suffixes: ClassVar[tuple[str, ...]] = ()  # of files
  # How much payloads change, or None: not at all.
  Augment: ClassVar[type | None] = None
  # Sizes to which any file is decoded that is merely checked.
  lenient: ClassVar[Any] = None

  def streams(self) -> tuple[StreamSpec, ...]:
    """Returns the streams of the medium: what is read, then what is written."""
    return ()

  def decode(self, data: bytes) -> Any:
    """Returns the payload of an encoded file, in the sizes of the run. Raises BadRecord."""
    raise NotImplementedError

  def augmented(self, payload: Any, changes: Any, rng: np.random.Generator) -> Any:
    """Returns a payload that is changed a little at random."""
    raise NotImplementedError

  def form(self, span: Span) -> Any:
    """Returns all of a span that decides on its positions, as a hashable value. Raises ValueError if it cannot fit."""
    raise NotImplementedError

  def layout(self, form: Any, written: bool) -> Layout:
    """Returns the positions of a span of this form."""
    raise NotImplementedError

  def pieces(self, span: Span) -> tuple[np.ndarray, ...]:
    """Returns the pieces of each item of the span's layout: arrays (M, …) of the streams' types."""
    raise NotImplementedError

  def joined(self, pieces: np.ndarray, form: Sequence[int]) -> Any:
    """Returns the payload that pieces (M, …) of an item of this form make up: the inverse of `pieces`."""
    raise NotImplementedError

  def crop(
    self, payload: Any, pieces: int, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns (value (pieces, …), mask (pieces,)) of a random part of a payload, to train an autoencoder on."""
    raise NotImplementedError

  def writing(self) -> Writing | None:
    """Returns how replies write the medium, or None if they cannot."""
    return None

  def form_of(self, sizes: Sequence[int], pieces: int) -> tuple[int, int, int]:
    """Returns the form of a written item.

    Args:
      sizes: what the opening said.
      pieces: how many were written.
    """
    return (1, 1, pieces) if not sizes else (1,) * (3 - len(sizes)) + tuple(sizes)

  def part(self, payload: Any) -> Part:
    """Returns a payload as a part of a reply."""
    raise NotImplementedError

  def show(self, payload: Any) -> Shown:
    """Returns a payload as a file that browsers show."""
    raise NotImplementedError

  def same_pieces(self, sizes: Any) -> bool:
    """Whether pieces of other sizes mean the same to an autoencoder."""
    return sizes == self.config

  def counted(self, payload: Any) -> Mapping[str, float]:
    """Returns what is counted of a payload in the manifest of a converted folder, by name."""
    return {}

  def codes_in(self, kind: str) -> Codes | None:
    """Returns what a stream carries in the place of payloads, or None."""
    return dict(self.stored).get(kind)
