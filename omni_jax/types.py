"""Types shared by all parts of the package, and the one legend of shape letters.

Letters, as suffixes of names (`x_BLD`) and in jaxtyping strings ('B L D'):

  B rows of a batch          L positions of a row       D model width
  T tokens = B·L             V vocabulary               I layers
  E experts                  F width of an expert       K router choices of a token
  H query heads              G key/value heads          A width of a head
  S keys, or segments, of a row                         Q queries
  M pieces of a row          N items of a row           Y values of a piece
  P pools of a batch         J codebooks                O ids of a reply
  U units of a batch: items, blocks of pieces, or predictions
  W width inside a head or an autoencoder               3 (time, height, width)
  m modalities               n positions of a span or of an example

Some files need more letters, or another meaning of one:

  nn/slots.py, experts.py    C choices = T·K, Z slots, G groups of slots, N blocks of
                             slots, b slots of a block, U chunks of choices, c choices
                             of a chunk, d and f widths of a matmul
  nn/expert_parallel.py      Z slots of a sender, R places of a receiver, X senders,
                             N receivers, n numbers
  nn/pool.py                 P pieces of a block
  nn/rope.py                 a angles of a head
  nn/context_parallel.py, attention_kernels.py    N devices that share a row
  modalities/text/           C tokens of a chunk, d slice of the width
  generate/                  C modes of the grammar of replies
  modalities/image           P pieces of a block, K noise samples of an item,
                             Q rows with noise = B·K
  modalities/audio           N clips, or rows of clips; R frames, S samples, L patches,
                             C mel columns, k mel bands, X mel values of a frame,
                             Z latent width, W distances in a window
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import numpy as np

FRAMES_PER_SECOND = 12.5  # one frame is one unit of a position's time axis
NONE = -1  # entry of a map that points to nothing
PADDING = 0  # modality of a position that carries nothing


class Span(NamedTuple):
  """A part of an example that has a single medium, before it becomes positions.

  Attributes:
    medium: 'text', or another name in the table of hosts.
    written: whether the model learns to write it (it has a loss), or only reads it.
    tokens: token ids, if the medium is text.
    payload: the decoded payload from the medium's host, for all other media.
    stored: codes or latents (pieces, …) that an autoencoder computed from the payload
      earlier, in runs that use them instead of the payload.
  """

  medium: str
  written: bool = False
  tokens: tuple[int, ...] = ()
  payload: Any = None
  stored: np.ndarray | None = None


def stream_name(medium: str, kind: str) -> str:
  """Returns the name of a stream, such as 'image.seen'."""
  return f'{medium}.{kind}'


def medium_and_kind(stream: str) -> tuple[str, str]:
  """Returns the medium and the kind of a stream from its name."""
  medium, _, kind = stream.partition('.')
  return medium, kind


class StreamSpec(NamedTuple):
  """The fixed properties of a stream, which do not depend on its contents.

  Attributes:
    name: name of the stream (see `stream_name`).
    medium: name of its medium.
    written: whether the model writes the items of this stream.
    queries: whether items are written as a block, each piece from the state of a
      learned query.
    shape, dtype: shape and dtype of a piece, as it comes from the host.
    longest: largest number of pieces of an item.
    block: number of pieces in a block. An item lies within one block, and has it to
      itself if a block is no larger than `longest`; 0 if items may lie anywhere.
    entries: number of values of a code, if the pieces are stored codes; otherwise 0.
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

  @property
  def kind(self) -> str:
    """Returns the kind of the stream among those of its medium."""
    return medium_and_kind(self.name)[1]

  def start(self, taken: int, pieces: int) -> int:
    """Returns the index of the first piece of a new item in a pool.

    Args:
      taken: number of pieces at the start of the pool that are taken.
      pieces: number of pieces of the new item.
    """
    if not self.block or taken % self.block == 0:
      return taken
    one_item = self.block <= self.longest
    if one_item or taken % self.block + pieces > self.block:
      return (taken // self.block + 1) * self.block
    return taken


class ItemLayout(NamedTuple):
  """The pieces of one item of a stream, and their positions.

  Positions are relative to the start of the span or the example.

  Attributes:
    stream: name of the stream.
    form: size of the item in pieces: (time, height, width).
    place_M3: int32 place of each piece inside the item: (time, height, width).
    at_M: position that carries each piece.
    query_M: position of each piece's query; None if the item has no queries.
    write_M: position whose state writes each piece; None if the item is only read.
  """

  stream: str
  form: tuple[int, int, int]
  place_M3: np.ndarray
  at_M: np.ndarray
  query_M: np.ndarray | None = None
  write_M: np.ndarray | None = None


class Layout(NamedTuple):
  """The n positions of one span or one example, relative to its start.

  Attributes:
    ids_3n: int32 rows: token (text id, or 0), modality, and label (the id that the text
      head must predict to get here, or 0).
    offset_n3: float32 offsets of the positions: (time, height, width).
    end: largest offset.
    items: items of streams that the positions carry.
  """

  ids_3n: np.ndarray
  offset_n3: np.ndarray
  end: float
  items: tuple[ItemLayout, ...] = ()

  @property
  def token_n(self) -> np.ndarray:
    return self.ids_3n[0]

  @property
  def modality_n(self) -> np.ndarray:
    return self.ids_3n[1]

  @property
  def label_n(self) -> np.ndarray:
    return self.ids_3n[2]

  @classmethod
  def empty(
    cls, n: int, end: float, text: int, items: tuple[ItemLayout, ...] = ()
  ) -> 'Layout':
    """Returns n positions of text without ids; their offsets are not initialised.

    Args:
      end: largest offset.
      text: modality number of text.
    """
    ids_3n = np.zeros((3, n), np.int32)
    ids_3n[1] = text
    return cls(ids_3n, np.empty((n, 3), np.float32), end, items)

  def frozen(self) -> 'Layout':
    """Makes its arrays read-only and returns itself, so that it can be shared."""
    self.ids_3n.flags.writeable = False
    self.offset_n3.flags.writeable = False
    return self


class Stream(NamedTuple):
  """A pool of pieces of equal shape: the items of a row, one after the other.

  Arrays are numpy arrays from the packer, and global jax arrays after `sharding.place`.
  Maps hold NONE where they point to nothing. If `group` rows share a pool (RowBudget),
  B counts pools in the arrays that have no L, and the numbers of positions continue
  from row to row of the group.

  Attributes:
    value_BM: pieces (B, M, …) in the dtype of the host: pixels, samples, stored codes
      or latents.
    item_BM: int32 number of the piece's item in the row, from 1; 0 for no piece.
    place_BM3: int32 place of the piece inside its item: (time, height, width).
    at_BL: int32 index of the piece that a position carries.
    query_at_BL: int32 index of the piece whose learned query a position holds; None in
      a stream without queries.
    write_at_BM: int32 position whose state writes the piece; None in a stream that is
      only read.
    form_BN3: int32 size of each item in pieces: (time, height, width); 0 for no item.
    key_BN: uint32 key of each item, from its example and its number: noise depends on
      the key, the step and the place only.
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
  """One packed batch.

  Arrays are numpy arrays from the packer, and global jax arrays after `sharding.place`.

  Attributes:
    token_BL: int32 text id; 0 if the position carries no text.
    modality_BL: int32 number of the medium in the table of hosts, from 1; PADDING if
      the position carries nothing.
    segment_BL: int32 number of the example in its row, from 1; 0 for padding.
    position_BL3: float32 coordinates of the position: (time, height, width).
    target_BL: int32 id that the text head should predict next.
    weight_BL: float32 weight of the loss of that prediction.
    streams: streams of all media but text, by name.
  """

  token_BL: Any
  modality_BL: Any
  segment_BL: Any
  position_BL3: Any
  target_BL: Any
  weight_BL: Any
  streams: dict[str, Stream]

  @property
  def examples(self) -> int:
    """Number of examples of the batch, whose arrays are numpy arrays."""
    return int(self.segment_BL.max(axis=1).sum())


@dataclasses.dataclass(frozen=True)
class RowBudget:
  """Static sizes of a batch; the packer refuses examples that overflow them.

  Attributes:
    rows: number of rows of the global batch.
    length: number of positions of a row.
    streams: (pieces, items) that a pool has room for, by name of the stream; a stream
      that is not named has no room.
    group: number of neighbouring rows that share their pools: room that one row leaves
      can be used by another.
  """

  rows: int
  length: int
  streams: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  group: int = 1

  @property
  def grouped(self) -> bool:
    """True if the rows can be divided into groups of this size."""
    return self.group > 0 and self.rows % self.group == 0

  @property
  def pools(self) -> int:
    """Number of pools of each stream in a batch."""
    return self.rows // self.group

  def room(self, stream: str) -> tuple[int, int]:
    """Returns the (pieces, items) of a stream that a pool has room for."""
    return self.streams.get(stream, (0, 0))
