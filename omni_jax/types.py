"""Types that travel between the rooms of the project, and the one legend of shape letters.

Letters, as suffixes of names (`x_BLD`) and in jaxtyping strings ('B L D'):

  B rows of a batch      L positions in a row   D model width         T tokens = B·L        V vocabulary
  E experts              K router choices       F expert width        H query heads         G key/value heads
  A width of a head      M pieces of a stream in a row                N items of a stream in a row
  S segments of a row    Y values of a piece    J codebooks           I layers              3 (time, height, width)
  U items or blocks of pieces of a batch        W width inside a head or an autoencoder
In modalities/audio also: R frames of a clip, S samples, X mel values of a frame, Z latent width.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import numpy as np

FRAMES_PER_SECOND = 12.5  # one unit of the time axis of a position
NONE = -1  # in a map: there is nothing here
PADDING = 0  # number of the modality of a position that carries nothing


class Span(NamedTuple):
  """A piece of one medium in an example, before it becomes positions.

  Attributes:
    medium: 'text', or another name of the table of hosts.
    written: the model is to write it (loss falls here); otherwise it is only read.
    tokens: ids, for text.
    payload: what the medium's host decodes to, for all others.
    stored: what an autoencoder made of the payload earlier, where the run takes that instead: (pieces, …).
  """

  medium: str
  written: bool = False
  tokens: tuple[int, ...] = ()
  payload: Any = None
  stored: np.ndarray | None = None


class StreamSpec(NamedTuple):
  """What is fixed about a stream, whatever is in it.

  Attributes:
    name: 'MEDIUM.KIND', such as 'image.seen'.
    medium: the name of its medium.
    written: the model writes what is in it.
    queries: it is written as a block, each piece from the state of a learned query.
    shape, dtype: of a piece as the host gives it.
    longest: most pieces of an item.
    block: an item lies whole within one block of so many pieces, alone if it is no more than the longest; 0 where it
      may lie anywhere.
    entries: pieces are stored codes below this number; 0 where they are not codes.
  """

  name: str
  medium: str
  written: bool
  queries: bool
  shape: tuple[int, ...]
  dtype: str
  longest: int
  block: int = 0
  entries: int = 0

  def start(self, taken: int, pieces: int) -> int:
    """Returns where an item of so many pieces begins in a pool of which the first pieces are taken."""
    if not self.block or taken % self.block == 0:
      return taken
    alone = self.block <= self.longest
    if alone or taken % self.block + pieces > self.block:
      return (taken // self.block + 1) * self.block
    return taken


class ItemLayout(NamedTuple):
  """The pieces of one item of a stream; positions are relative to the start of the span or the example.

  Attributes:
    stream: name of the stream.
    form: (time, height, width) of the item, in pieces.
    place_M3: int32 (time, height, width) of each piece inside the item.
    at_M: position that carries each piece.
    query_M: position of each piece's query, or None.
    write_M: position whose state writes each piece, or None where the item is read.
  """

  stream: str
  form: tuple[int, int, int]
  place_M3: np.ndarray
  at_M: np.ndarray
  query_M: np.ndarray | None = None
  write_M: np.ndarray | None = None


class Layout(NamedTuple):
  """The positions of one span or one example (n of them), relative to its start.

  Attributes:
    ids_3n: int32 rows: token (text id, or 0), modality, label (id that the text head must say to get here, or 0).
    offset_n3: float32 (time, height, width).
    end: the largest of the offsets.
    items: what the positions carry beside text.
  """

  ids_3n: np.ndarray
  offset_n3: np.ndarray
  end: float
  items: tuple[ItemLayout, ...] = ()

  token_n = property(lambda self: self.ids_3n[0])
  modality_n = property(lambda self: self.ids_3n[1])
  label_n = property(lambda self: self.ids_3n[2])

  @classmethod
  def empty(
    cls, n: int, end: float, text: int, items: tuple[ItemLayout, ...] = ()
  ) -> 'Layout':
    """Returns n positions of text (whose number is `text`) without ids, their offsets yet to be written."""
    ids_3n = np.zeros((3, n), np.int32)
    ids_3n[1] = text
    return cls(ids_3n, np.empty((n, 3), np.float32), end, items)

  def frozen(self) -> 'Layout':
    """Returns itself, no longer to be changed: for layouts that are made once and used often."""
    self.ids_3n.flags.writeable = False
    self.offset_n3.flags.writeable = False
    return self


class Stream(NamedTuple):
  """A pool of equal pieces: all items of a row lie one behind the other, whatever their sizes.

  Numpy from the packer, global arrays after `sharding.place`. Maps hold NONE where there is nothing. Where `group` rows
  share a pool (RowBudget), B counts pools in the arrays that have no L, and positions count on from row to row.

  Attributes:
    value_BM: (B, M, …) the pieces in the type that the host gives them: pixels, samples, stored codes or latents.
    item_BM: int32, 1… for the item of the row that a piece belongs to, 0 where there is none.
    place_BM3: int32 (time, height, width) of the piece inside its item.
    at_BL: int32, piece that a position carries.
    query_at_BL: int32, piece whose learned query a position holds; None in a stream without queries.
    write_at_BM: int32, position whose state writes the piece; None in a stream that is only read.
    form_BN3: int32 sizes of each item, in pieces; 0 where there is none.
    key_BN: uint32 name of each item (example, number): noise depends on it, on the step and on the place only.
  """

  value_BM: Any
  item_BM: Any
  place_BM3: Any
  at_BL: Any
  query_at_BL: Any
  write_at_BM: Any
  form_BN3: Any
  key_BN: Any


class Batch(NamedTuple):
  """One packed batch: numpy from the packer, global arrays after `sharding.place`.

  Attributes:
    token_BL: int32 text id, 0 where the position carries none.
    modality_BL: int32 number of a medium in the table of hosts, from 1; PADDING elsewhere.
    segment_BL: int32, 1… per example of the row, 0 is padding.
    position_BL3: float32 (time, height, width).
    target_BL: int32, what the text head should say next.
    weight_BL: float32, weight of that loss.
    streams: everything that is no text, by name.
  """

  token_BL: Any
  modality_BL: Any
  segment_BL: Any
  position_BL3: Any
  target_BL: Any
  weight_BL: Any
  streams: dict[str, Stream]


@dataclasses.dataclass(frozen=True)
class RowBudget:
  """Static sizes of a row; the packer refuses what overflows them.

  Attributes:
    rows: of the global batch.
    length: positions.
    streams: by name, (pieces, items) that a pool has room for; a stream that is not named has no room.
    group: rows that share the pools, one behind the other: what one of them does not need is there for another.
  """

  rows: int
  length: int
  streams: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  group: int = 1

  @property
  def grouped(self) -> bool:
    """Whether groups divide the rows."""
    return self.group > 0 and self.rows % self.group == 0

  @property
  def pools(self) -> int:
    """Of each stream in a batch."""
    return self.rows // self.group
