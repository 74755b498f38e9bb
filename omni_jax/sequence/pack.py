"""Packs examples into rows of static size: spans become positions, positions fill rows.

Several examples share a row and never see each other.
"""

from collections.abc import Iterable, Sequence
import functools
import hashlib
import sys
from typing import Any, NamedTuple

import numpy as np

from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.types import (
  Batch,
  ItemLayout,
  Layout,
  NONE,
  RowBudget,
  Span,
  Stream,
  StreamSpec,
)

# Positions are cached for examples with at most this many text ids: such examples often
# differ from an earlier one in their media alone.
SHORT = 64


class Item(NamedTuple):
  """One item of an example.

  Attributes:
    stream: number of its stream.
    layout: its layout, relative to the example.
    pieces: number of its pieces.
  """

  stream: int
  layout: ItemLayout
  pieces: int


class Positions(NamedTuple):
  """The part of `LaidOut` that all examples of one form share.

  Attributes:
    layout: positions; its offsets are relative to the example.
    items: items in order.
    needs: amount needed of everything in `room_of`.
  """

  layout: Layout
  items: tuple[Item, ...]
  needs: tuple[int, ...]


class LaidOut(NamedTuple):
  """One example laid out.

  Attributes:
    layout, items, needs: as in `Positions`.
    values: the pieces of each item.
    key: hash of the example's id, uint32.
  """

  layout: Layout
  items: tuple[Item, ...]
  needs: tuple[int, ...]
  values: list[np.ndarray]
  key: int

  @property
  def length(self) -> int:
    """Number of positions."""
    return len(self.layout.offset_n3)


def lay_out(spans: Sequence[Span], hosts: Hosts, example_id: str = '') -> LaidOut:
  """Returns the positions and pieces of an example.

  A span starts at the largest coordinate before it plus one.

  Raises:
    UserError: for stored codes that are missing or outside the codebook.
  """
  values: list[np.ndarray] = []
  forms = []
  ids = 0
  for span in spans:
    host = hosts[span.medium]
    forms.append((span.medium, span.written, host.form(span)))
    ids += len(span.tokens)
    if span.medium != TEXT:
      values += _values(span, hosts, example_id)
  positions = _positions if ids <= SHORT else _positions.__wrapped__
  digest = hashlib.blake2s(example_id.encode(), digest_size=4).digest()
  key = int.from_bytes(digest, 'little')
  return LaidOut(*positions(tuple(forms), hosts), values=values, key=key)


def _values(span: Span, hosts: Hosts, example_id: str) -> Sequence[np.ndarray]:
  """Returns the pieces of a span's items: of its payload, or the codes stored for it.

  Raises:
    UserError: if codes are expected and missing, or a code is outside the codebook: an
      index outside a table would be clamped silently on the device.
  """
  host = hosts[span.medium]
  if not host.stored:
    return host.pieces(span)
  specs = {spec.written: spec for spec in host.streams()}
  spec = specs.get(span.written)
  if spec is None or not spec.entries:
    return host.pieces(span)
  codes = span.stored
  if codes is None:
    raise UserError(
      f"config.data.codes='stored': a part of type {span.medium!r} has no codes; "
      "convert its data with --codes=RUN, or set config.data.codes='computed'"
    )
  lowest = int(codes.min(initial=0))
  largest = int(codes.max(initial=0))
  if lowest < 0 or largest >= spec.entries:
    bad = largest if largest >= spec.entries else lowest
    raise UserError(
      f"config.data.codes='stored': {example_id or 'an example'} has the code {bad}, "
      f'but a codebook has the entries 0 to {spec.entries - 1} ({spec.name}: '
      f'{spec.entries} entries by config.model); convert its data again with '
      "--codes=RUN, or set config.data.codes='computed'"
    )
  return (codes,)


@functools.lru_cache(maxsize=1024)
def _positions(forms: tuple[tuple[str, bool, Any], ...], hosts: Hosts) -> Positions:
  """Returns the positions of spans.

  Args:
    forms: medium, whether it is written, and form of each span.
  """
  numbers = {spec.name: k for k, spec in enumerate(hosts.streams)}
  ids: list[np.ndarray] = []
  offsets: list[np.ndarray] = []
  items: list[Item] = []
  start = 0.0
  at = 0
  for medium, written, form in forms:
    layout = hosts[medium].layout(form, written)
    for item in layout.items:
      items.append(Item(numbers[item.stream], _moved(item, at), len(item.place_M3)))
    ids.append(layout.ids_3n)
    offsets.append(layout.offset_n3 + np.float32(start))
    start += layout.end + 1
    at += len(layout.offset_n3)
  ids_3n = np.concatenate(ids, axis=1)
  layout = Layout(ids_3n, np.concatenate(offsets), start - 1).frozen()
  needs = [at] + [0] * (2 * len(hosts.streams))
  for placed in items:
    needs[1 + 2 * placed.stream] += placed.pieces
    needs[2 + 2 * placed.stream] += 1
  return Positions(layout, tuple(items), tuple(needs))


def _moved(item: ItemLayout, by: int) -> ItemLayout:
  """Returns an item's layout with its positions moved by `by`."""

  def later(positions_M: np.ndarray | None) -> np.ndarray | None:
    return None if positions_M is None else positions_M + by

  query_M = later(item.query_M)
  write_M = later(item.write_M)
  return item._replace(at_M=item.at_M + by, query_M=query_M, write_M=write_M)


def room_names(hosts: Hosts) -> list[str]:
  """Returns the names in messages of everything that `room_of` counts."""
  names = ['length']
  for spec in hosts.streams:
    names += [f'{spec.name} pieces', f'{spec.name} items']
  return names


def room_of(budget: RowBudget, hosts: Hosts) -> list[int]:
  """Returns the room of a row: positions, then the pieces and items of each stream."""
  room = [budget.length]
  for spec in hosts.streams:
    room += budget.room(spec.name)
  return room


def check_budget(budget: RowBudget, hosts: Hosts) -> None:
  """Checks a budget against the streams of a run.

  Raises:
    UserError: if a stream is unknown, or if groups or blocks do not fit.
  """
  if not budget.grouped:
    raise UserError(
      f'config.data.budget.group={budget.group} must be 1 or more and divide '
      f'rows={budget.rows}'
    )
  specs = {spec.name: spec for spec in hosts.streams}
  for name, (pieces, items) in budget.streams.items():
    setting = f'config.data.budget.streams.{name}=({pieces}, {items})'
    if name not in specs:
      known = ', '.join(specs) or 'none'
      raise UserError(f'{setting}: this run has the streams {known}')
    block = specs[name].block
    if block and pieces % block and pieces > block:
      low = pieces // block * block
      raise UserError(
        f'{setting}: pieces come in blocks of {block}; nearest: {low} or {low + block}'
      )


def starts_of(
  laid: LaidOut,
  cursors: Sequence[int],
  room: Sequence[int],
  specs: Sequence[StreamSpec],
) -> list[int] | None:
  """Returns where the items of an example begin in their streams; None without room.

  Args:
    cursors: pieces already used, by stream.
    room: pieces that a pool has room for, by stream.
  """
  cursor = list(cursors)
  starts = []
  for item in laid.items:
    start = specs[item.stream].start(cursor[item.stream], item.pieces)
    cursor[item.stream] = start + item.pieces
    if cursor[item.stream] > room[item.stream]:
      return None
    starts.append(start)
  return starts


def check_room(laid: LaidOut, budget: RowBudget, hosts: Hosts) -> None:
  """Checks that an example fits an empty row. Raises ValueError with what is short."""
  specs = hosts.streams
  unlimited = [sys.maxsize] * len(specs)
  starts = starts_of(laid, [0] * len(specs), unlimited, specs)
  assert starts is not None
  needs = list(laid.needs)
  for item, start in zip(laid.items, starts, strict=True):
    needs[1 + 2 * item.stream] = start + item.pieces  # with the gaps between blocks
  short = []
  rooms = room_of(budget, hosts)
  for name, need, room in zip(room_names(hosts), needs, rooms, strict=True):
    if need > room:
      short.append(f'{name} {need} of {room}')
  if short:
    shortages = ', '.join(short)
    raise ValueError(f'example needs more than a row has room for: {shortages}')


class _Place(NamedTuple):
  """The place of an example in a batch.

  Attributes:
    row: its row.
    pool: the pool of its row.
    start: its first position in the row.
    start_in_pool: its first position, counted over all rows that share the pool.
  """

  row: int
  pool: int
  start: int
  start_in_pool: int


class _Pools:
  """The arrays of one stream of a batch that is being packed."""

  def __init__(self, spec: StreamSpec, budget: RowBudget):
    pools = budget.pools
    pieces, items = budget.room(spec.name)

    def empty_map(*shape: int) -> np.ndarray:
      return np.full(shape, NONE, np.int32)

    self.stream = Stream(
      value_BM=np.zeros((pools, pieces, *spec.shape), spec.dtype),
      item_BM=np.zeros((pools, pieces), np.int32),
      place_BM3=np.zeros((pools, pieces, 3), np.int32),
      at_BL=empty_map(budget.rows, budget.length),
      query_at_BL=empty_map(budget.rows, budget.length) if spec.queries else None,
      write_at_BM=empty_map(pools, pieces) if spec.written else None,
      form_BN3=np.zeros((pools, items, 3), np.int32),
      key_BN=np.zeros((pools, items), np.uint32),
    )

  def write(
    self, place: _Place, item: ItemLayout, value: np.ndarray, first: int, number: int
  ) -> None:
    """Puts an item into a pool.

    Args:
      place: place of its example.
      item: layout of the item, relative to the example.
      value: its pieces.
      first: number of its first piece in the pool.
      number: number of the item in the pool, from 0.
    """
    stream = self.stream
    pool = place.pool
    end = first + len(item.at_M)
    stream.value_BM[pool, first:end] = value
    stream.item_BM[pool, first:end] = number + 1
    stream.place_BM3[pool, first:end] = item.place_M3
    stream.form_BN3[pool, number] = item.form
    pieces = np.arange(first, end)
    stream.at_BL[place.row, item.at_M + place.start] = pieces
    if item.query_M is not None:
      stream.query_at_BL[place.row, item.query_M + place.start] = pieces
    if item.write_M is not None:
      stream.write_at_BM[pool, first:end] = item.write_M + place.start_in_pool


class Packer:
  """Fills one batch with examples."""

  def __init__(self, budget: RowBudget, hosts: Hosts):
    self._budget = budget
    self._hosts = hosts
    rows, length = budget.rows, budget.length
    # Tokens, modalities and labels; `batch` turns the labels into targets.
    self._ids_3BL = np.zeros((3, rows, length), np.int32)
    self._segment_BL = np.zeros((rows, length), np.int32)
    self._position_BL3 = np.zeros((rows, length, 3), np.float32)
    self._pools = [_Pools(spec, budget) for spec in hosts.streams]
    self._room = room_of(budget, hosts)
    self._pieces = self._room[1::2]
    # Plain lists: for so few numbers numpy would cost more than the counting itself.
    self._used = [0] * rows  # positions of each row
    self._empty = [0] * (len(self._room) - 1)  # pieces and items of each stream
    self._used_of_pool = [list(self._empty) for _ in range(budget.pools)]
    self._segments = [0] * rows

  def add(self, laid: LaidOut, row: int | None = None) -> bool:
    """Puts an example into the first row with room, or into the given one.

    Returns:
      Whether there was a row with room for all of it; if not, nothing has changed.

    Raises:
      ValueError: if it would not fit even an empty row.
    """
    group = self._budget.group
    latest = self._room[0] - laid.length
    full = -1  # the last pool that had no room for the example
    candidates = range(len(self._used)) if row is None else (row,)
    for candidate in candidates:
      pool = candidate // group
      if self._used[candidate] > latest or pool == full:
        continue
      starts = self._starts(laid, self._used_of_pool[pool])
      if starts is not None:
        self._write(laid, candidate, starts)
        return True
      full = pool
    if latest < 0 or self._starts(laid, self._empty) is None:
      check_room(laid, self._budget, self._hosts)
    return False

  def _starts(self, laid: LaidOut, used: Sequence[int]) -> list[int] | None:
    """Returns where the items of an example begin in a pool; None without room.

    Args:
      used: pieces and items of each stream that the pool already holds.
    """
    for taken, need, room in zip(used, laid.needs[1:], self._room[1:], strict=True):
      if taken + need > room:
        return None
    return starts_of(laid, used[::2], self._pieces, self._hosts.streams)

  def _write(self, laid: LaidOut, row: int, starts: Sequence[int]) -> None:
    start = self._used[row]
    stop = start + laid.length
    self._segments[row] += 1
    self._ids_3BL[:, row, start:stop] = laid.layout.ids_3n
    self._segment_BL[row, start:stop] = self._segments[row]
    self._position_BL3[row, start:stop] = laid.layout.offset_n3
    self._used[row] = stop
    pool, in_pool = divmod(row, self._budget.group)
    place = _Place(row, pool, start, start + in_pool * self._budget.length)
    used = self._used_of_pool[pool]
    before: dict[int, int] = {}  # items of each stream written so far
    for item, value, first in zip(laid.items, laid.values, starts, strict=True):
      pools = self._pools[item.stream]
      k = before.get(item.stream, 0)
      number = used[1 + 2 * item.stream]
      pools.write(place, item.layout, value, first, number)
      pools.stream.key_BN[pool, number] = (laid.key + k) & 0xFFFFFFFF
      before[item.stream] = k + 1
      used[2 * item.stream] = first + item.pieces
      used[1 + 2 * item.stream] = number + 1

  def batch(self) -> Batch:
    """Returns the examples added so far, as one batch.

    The target of a position is the label of the next position of its example.
    """
    token_BL, modality_BL, label_BL = self._ids_3BL
    segment_BL = self._segment_BL
    target_BL = np.zeros_like(label_BL)
    same = segment_BL[:, 1:] == segment_BL[:, :-1]
    np.copyto(target_BL[:, :-1], label_BL[:, 1:], where=same)
    weight_BL = (target_BL > 0).astype(np.float32)
    position_BL3 = self._position_BL3
    streams = {}
    for spec, pool in zip(self._hosts.streams, self._pools, strict=True):
      streams[spec.name] = pool.stream
    return Batch(
      token_BL, modality_BL, segment_BL, position_BL3, target_BL, weight_BL, streams
    )

  @property
  def filled(self) -> float:
    """Share of the positions that hold an example."""
    return sum(self._used) / (self._budget.rows * self._budget.length)


def pack_rows(examples: Iterable[LaidOut], budget: RowBudget, hosts: Hosts) -> Batch:
  """Returns a batch of one example per row, in order, as for prompts."""
  packer = Packer(budget, hosts)
  for row, laid in enumerate(examples):
    packer.add(laid, row)
  return packer.batch()


def concatenated(batches: Sequence[Batch]) -> Batch:
  """Returns the rows of several batches of one budget as one batch."""
  core_fields = zip(*(batch[:-1] for batch in batches), strict=True)
  core = [np.concatenate(parts) for parts in core_fields]
  streams = {}
  for name in batches[0].streams:
    fields = zip(*(batch.streams[name] for batch in batches), strict=True)
    streams[name] = Stream(*(_joined(parts) for parts in fields))
  return Batch._make([*core, streams])


def _joined(parts: Sequence[Any]) -> np.ndarray | None:
  """Returns the rows of several arrays as one array, or None if they are None."""
  return None if parts[0] is None else np.concatenate(parts)
