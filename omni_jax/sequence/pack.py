"""Spans -> positions -> packed rows of static size; several examples share a row and never see each other."""

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

SHORT = 64  # ids of text in an example that is likely to have been seen before but for its media


class Item(NamedTuple):
  """One item of an example: its layout relative to the example, and the number of its stream."""

  stream: int
  layout: ItemLayout
  pieces: int


class Positions(NamedTuple):
  """The part of `Laid` that is the same for all examples of one form."""

  layout: Layout  # its offsets are positions
  items: tuple[Item, ...]
  needs: tuple[int, ...]  # of everything in `room_of`


class Laid(NamedTuple):
  """One example laid out: its positions, the pieces of its items, and its name as a number."""

  layout: Layout
  items: tuple[Item, ...]
  needs: tuple[int, ...]
  values: list[np.ndarray]  # by item, its pieces
  key: int

  @property
  def length(self) -> int:
    return len(self.layout.offset_n3)


def lay_out(spans: Sequence[Span], hosts: Hosts, example_id: str = '') -> Laid:
  """Returns the positions of an example. A span starts at the largest coordinate before it plus one."""
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
  return Laid(*positions(tuple(forms), hosts), values=values, key=key)


def _values(span: Span, hosts: Hosts, example_id: str) -> Sequence[np.ndarray]:
  """Returns the pieces of a span's items: of its payload, or the codes that are stored in their place.

  Raises:
    UserError: where there should be codes and there are none, or one that no codebook has: an index that leads out
      of a table would be clamped in silence on the device.
  """
  host = hosts[span.medium]
  specs = {spec.written: spec for spec in host.streams()} if host.stored else {}
  spec = specs.get(span.written)
  if spec is None or not spec.entries:
    return host.pieces(span)
  codes = span.stored
  if codes is None:
    raise UserError(
      f"config.data.codes='stored': a part of type {span.medium!r} has no codes; convert its data with --codes=RUN, "
      "or take config.data.codes='computed'"
    )
  lowest, largest = int(codes.min(initial=0)), int(codes.max(initial=0))
  if lowest < 0 or largest >= spec.entries:
    bad = largest if largest >= spec.entries else lowest
    raise UserError(
      f"config.data.codes='stored': {example_id or 'an example'} has the code {bad}, a codebook has the entries 0 to "
      f'{spec.entries - 1} ({spec.name}: {spec.entries} entries by config.model); convert its data again with '
      "--codes=RUN, or take config.data.codes='computed'"
    )
  return (codes,)


@functools.lru_cache(maxsize=1024)
def _positions(forms: tuple[tuple[str, bool, Any], ...], hosts: Hosts) -> Positions:
  """Returns the positions of spans given by medium, whether they are written, and their form."""
  numbers = {spec.name: k for k, spec in enumerate(hosts.streams)}
  layouts: list[Layout] = []
  offsets: list[np.ndarray] = []
  items: list[Item] = []
  start = 0.0
  at = 0
  for medium, written, form in forms:
    layout = hosts[medium].layout(form, written)
    for item in layout.items:
      items.append(Item(numbers[item.stream], _moved(item, at), len(item.place_M3)))
    offsets.append(layout.offset_n3 + np.float32(start))
    start += layout.end + 1
    at += len(layout.offset_n3)
    layouts.append(layout)
  ids_3n = np.concatenate([layout.ids_3n for layout in layouts], axis=1)
  layout = Layout(ids_3n, np.concatenate(offsets), start - 1).frozen()
  needs = [at] + [0] * (2 * len(hosts.streams))
  for item in items:
    needs[1 + 2 * item.stream] += item.pieces
    needs[2 + 2 * item.stream] += 1
  return Positions(layout, tuple(items), tuple(needs))


def _moved(item: ItemLayout, by: int) -> ItemLayout:
  """Returns an item's layout whose positions begin `by` later."""

  def later(positions_M: np.ndarray | None) -> np.ndarray | None:
    return None if positions_M is None else positions_M + by

  return item._replace(
    at_M=later(item.at_M), query_M=later(item.query_M), write_M=later(item.write_M)
  )


def room_names(hosts: Hosts) -> list[str]:
  """Returns what `room_of` counts, as messages call it."""
  names = ['length']
  for spec in hosts.streams:
    names += [f'{spec.name} pieces', f'{spec.name} items']
  return names


def room_of(budget: RowBudget, hosts: Hosts) -> list[int]:
  """Returns the room of a row: positions, then pieces and items of each stream."""
  room = [budget.length]
  for spec in hosts.streams:
    room += budget.streams.get(spec.name, (0, 0))
  return room


def check_budget(budget: RowBudget, hosts: Hosts) -> None:
  """Refuses groups that do not divide the rows, room for unknown streams, and parts of a block of pieces.

  Raises:
    UserError: with the stream and what would fit.
  """
  if not budget.grouped:
    raise UserError(
      f'config.data.budget.group={budget.group}: it is 1 or more and divides rows={budget.rows}'
    )
  specs = {spec.name: spec for spec in hosts.streams}
  for name, (pieces, items) in budget.streams.items():
    said = f'config.data.budget.streams.{name}=({pieces}, {items})'
    if name not in specs:
      raise UserError(f'{said}: this run has the streams {", ".join(specs) or "none"}')
    block = specs[name].block
    if block and pieces % block and pieces > block:
      low = pieces // block * block
      raise UserError(
        f'{said}: pieces come in blocks of {block}; nearest: {low} or {low + block}'
      )


def starts_of(
  laid: Laid, cursors: Sequence[int], room: Sequence[int], specs: Sequence[StreamSpec]
) -> list[int] | None:
  """Returns where the items of an example begin in their streams, or None if there is no room for all of them.

  Args:
    cursors: by stream, pieces that are taken.
    room: by stream, pieces that there are.
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


def check_room(laid: Laid, budget: RowBudget, hosts: Hosts) -> None:
  """Raises ValueError for an example that would not fit even an empty row; it names what is short."""
  specs = hosts.streams
  endless = [sys.maxsize] * len(specs)
  starts = starts_of(laid, [0] * len(specs), endless, specs)
  needs = list(laid.needs)
  for item, start in zip(laid.items, starts, strict=True):
    needs[1 + 2 * item.stream] = start + item.pieces  # with the gaps between blocks
  short = []
  room = room_of(budget, hosts)
  for name, need, there in zip(room_names(hosts), needs, room, strict=True):
    if need > there:
      short.append(f'{name} {need} of {there}')
  if short:
    said = ', '.join(short)
    raise ValueError(f'example needs more than a row has room for: {said}')


class _Place(NamedTuple):
  """Where an example lies.

  Attributes:
    pool: of its row.
    start: first position in the row.
    start_in_pool: first position among those of all rows that share the pool.
  """

  row: int
  pool: int
  start: int
  start_in_pool: int


class _Pools:
  """The arrays of one stream of a batch in the making."""

  def __init__(self, spec: StreamSpec, budget: RowBudget):
    rows, length, pools = budget.rows, budget.length, budget.pools
    pieces, items = budget.streams.get(spec.name, (0, 0))

    def nothing(*shape: int) -> np.ndarray:
      return np.full(shape, NONE, np.int32)

    self.stream = Stream(
      value_BM=np.zeros((pools, pieces, *spec.shape), spec.dtype),
      item_BM=np.zeros((pools, pieces), np.int32),
      place_BM3=np.zeros((pools, pieces, 3), np.int32),
      at_BL=nothing(rows, length),
      query_at_BL=nothing(rows, length) if spec.queries else None,
      write_at_BM=nothing(pools, pieces) if spec.written else None,
      form_BN3=np.zeros((pools, items, 3), np.int32),
      key_BN=np.zeros((pools, items), np.uint32),
    )

  def write(
    self, place: _Place, item: ItemLayout, value: np.ndarray, first: int, number: int
  ) -> None:
    """Puts an item into a pool.

    Args:
      place: of its example.
      first: first piece in the pool.
      number: of the item in the pool, from 0.
    """
    stream, pool, row = self.stream, place.pool, place.row
    end = first + len(item.at_M)
    stream.value_BM[pool, first:end] = value
    stream.item_BM[pool, first:end] = number + 1
    stream.place_BM3[pool, first:end] = item.place_M3
    stream.form_BN3[pool, number] = item.form
    pieces = np.arange(first, end)
    stream.at_BL[row, item.at_M + place.start] = pieces
    if item.query_M is not None:
      stream.query_at_BL[row, item.query_M + place.start] = pieces
    if item.write_M is not None:
      stream.write_at_BM[pool, first:end] = item.write_M + place.start_in_pool


class Packer:
  """Fills one batch; `add` says whether the example found a row with room for all of it."""

  def __init__(self, budget: RowBudget, hosts: Hosts):
    self._budget, self._hosts = budget, hosts
    rows, length = budget.rows, budget.length
    self._ids_3BL = np.zeros((3, rows, length), np.int32)  # labels become targets
    self._segment_BL = np.zeros((rows, length), np.int32)
    self._position_BL3 = np.zeros((rows, length, 3), np.float32)
    self._pools = [_Pools(spec, budget) for spec in hosts.streams]
    self._room = room_of(budget, hosts)
    self._pieces = self._room[1::2]
    # Plain numbers: there are few of them, and numpy would cost more than it counts.
    self._used = [0] * rows  # positions
    self._empty = [0] * (len(self._room) - 1)  # pieces and items of each stream
    self._used_of_pool = [list(self._empty) for _ in range(budget.pools)]
    self._segments = [0] * rows

  def add(self, laid: Laid, row: int | None = None) -> bool:
    """Puts an example into the first row with room, or into the given one.

    Raises:
      ValueError: if it would not fit even an empty row.
    """
    group = self._budget.group
    latest = self._room[0] - laid.length
    full = -1  # a pool that has no room for the example
    for candidate in range(len(self._used)) if row is None else (row,):
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

  def _starts(self, laid: Laid, used: Sequence[int]) -> list[int] | None:
    """Returns where the items of an example begin in a pool, or None if it has no room for them.

    Args:
      used: pieces and items of each stream that the pool holds already.
    """
    for taken, need, room in zip(used, laid.needs[1:], self._room[1:], strict=True):
      if taken + need > room:
        return None
    return starts_of(laid, used[::2], self._pieces, self._hosts.streams)

  def _write(self, laid: Laid, row: int, starts: Sequence[int]) -> None:
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
    before: dict[int, int] = {}  # items of a stream in this example
    for item, value, first in zip(laid.items, laid.values, starts, strict=True):
      pools, k = self._pools[item.stream], before.get(item.stream, 0)
      number = used[1 + 2 * item.stream]
      pools.write(place, item.layout, value, first, number)
      pools.stream.key_BN[pool, number] = (laid.key + k) & 0xFFFFFFFF
      before[item.stream] = k + 1
      used[2 * item.stream] = first + item.pieces
      used[1 + 2 * item.stream] = number + 1

  def batch(self) -> Batch:
    """Returns what has been added so far; a position's target is the label of the next one of its example."""
    token_BL, modality_BL, label_BL = self._ids_3BL
    segment_BL = self._segment_BL
    target_BL = np.zeros_like(label_BL)
    same = segment_BL[:, 1:] == segment_BL[:, :-1]
    np.copyto(target_BL[:, :-1], label_BL[:, 1:], where=same)
    weight_BL = (target_BL > 0).astype(np.float32)
    streams = {
      spec.name: pool.stream
      for spec, pool in zip(self._hosts.streams, self._pools, strict=True)
    }
    return Batch(
      token_BL,
      modality_BL,
      segment_BL,
      self._position_BL3,
      target_BL,
      weight_BL,
      streams,
    )

  @property
  def filled(self) -> float:
    """Share of positions that carry something."""
    return sum(self._used) / (self._budget.rows * self._budget.length)


def pack_rows(examples: Iterable[Laid], budget: RowBudget, hosts: Hosts) -> Batch:
  """Returns one example per row, in order: prompts, and the unpacked reference of the packing test."""
  packer = Packer(budget, hosts)
  for row, laid in enumerate(examples):
    packer.add(laid, row)
  return packer.batch()


def concatenated(batches: Sequence[Batch]) -> Batch:
  """Returns the rows of several batches of one budget as one."""
  core = [
    np.concatenate(parts) for parts in zip(*(b[:-1] for b in batches), strict=True)
  ]
  streams = {}
  for name in batches[0].streams:
    fields = zip(*(batch.streams[name] for batch in batches), strict=True)
    streams[name] = Stream(
      *(None if parts[0] is None else np.concatenate(parts) for parts in fields)
    )
  return Batch(*core, streams)
