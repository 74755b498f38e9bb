"""Spans -> positions -> packed rows of static size; several examples share a row and never see each other."""

from collections.abc import Iterable, Sequence
import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.interleave import HOSTS
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.types import Batch, FIELDS, Layout, MediaConfig, Modality, NONE, RowBudget, Span

NOWHERE = np.zeros(0, np.int64)
ITEM_MAPS = ('seen', 'drawn', 'heard', 'spoken')
KINDS = {(Modality.IMAGE, False): 'seen', (Modality.IMAGE, True): 'drawn',
         (Modality.AUDIO, False): 'heard', (Modality.AUDIO, True): 'spoken'}
SHORT = 64  # ids of text in an example that is likely to have been seen before but for its media


class Laid(NamedTuple):
  """One example laid out: its positions (maps point into its own media) and its media."""
  layout: Layout  # its offsets are positions
  draw_at_NP: np.ndarray  # position of each query of each drawn image, or NONE
  speak_at_Q: np.ndarray  # position before each spoken frame
  speak_frame_Q: np.ndarray
  needs: np.ndarray  # of a row's room, in the order of `_room`
  seen: list[np.ndarray]
  drawn: list[np.ndarray]
  heard: list[np.ndarray]
  spoken: list[np.ndarray]
  key: int

  @property
  def length(self) -> int:
    return len(self.layout.offset_n3)


def lay_out(spans: Sequence[Span], tokenizer: Tokenizer, media: MediaConfig, example_id: str = '') -> Laid:
  """Spans of one example -> positions. A span starts at the largest coordinate before it plus one."""
  items: dict[str, list[np.ndarray]] = {name: [] for name in ITEM_MAPS}
  forms, ids = [], 0
  for span in spans:
    forms.append((span.modality, span.written, HOSTS[span.modality].form(span, media)))
    ids += len(span.tokens)
    if span.modality != Modality.TEXT:
      items[KINDS[span.modality, span.written]].append(span.pixels if span.modality == Modality.IMAGE else span.wave)
  positions = _positions if ids <= SHORT else _positions.__wrapped__
  key = int.from_bytes(hashlib.blake2s(example_id.encode(), digest_size=4).digest(), 'little')
  return Laid(*positions(tuple(forms), tokenizer, media), **items, key=key)


class _Positions(NamedTuple):
  """The part of `Laid` that is the same for all examples of one form."""
  layout: Layout
  draw_at_NP: np.ndarray
  speak_at_Q: np.ndarray
  speak_frame_Q: np.ndarray
  needs: np.ndarray


@functools.lru_cache(maxsize=1024)
def _positions(forms: tuple[tuple[Modality, bool, Any], ...], tokenizer: Tokenizer, media: MediaConfig) -> _Positions:
  """Of spans given by modality, whether they are written, and what their host module calls their form."""
  sizes = dict(seen=media.image.patches, drawn=media.image.patches, heard=media.audio.frames, spoken=media.audio.frames)
  counts = dict.fromkeys(ITEM_MAPS, 0)
  layouts, positions, shifts, start, at = [], [], [], 0.0, 0
  for modality, written, form in forms:
    made = HOSTS[modality].layout(form, written, tokenizer, media)
    stop = at + len(made.offset_n3)
    if kind := KINDS.get((modality, written)):
      if counts[kind]:  # a map's second item begins where its first ends
        shifts += [(field, at, stop, sizes[kind] * counts[kind])
                   for field in (kind,) + (('query',) if kind == 'drawn' else ())]
      counts[kind] += 1
    positions.append(made.offset_n3 + np.float32(start))
    start, at = start + made.end + 1, stop
    layouts.append(made)
  layout = Layout(np.concatenate([made.ids_Fn for made in layouts], axis=1), np.concatenate(positions), start - 1)
  for field, begin, stop, shift in shifts:
    _shift(layout.ids_Fn[FIELDS.index(field), begin:stop], shift)
  patches = media.image.patches
  draw_at = np.full((counts['drawn'] * patches,), NONE, np.int32)
  if counts['drawn']:
    queries, = np.nonzero(layout.query_n != NONE)
    draw_at[layout.query_n[queries]] = queries
  frames_at, = np.nonzero(layout.spoken_n != NONE) if counts['spoken'] else (NOWHERE,)
  made = _Positions(layout.constant(), draw_at.reshape(-1, patches), (frames_at - 1).astype(np.int32),
                    layout.spoken_n[frames_at], np.array([at, *counts.values(), len(frames_at)]))
  for array in made[1:]:
    array.flags.writeable = False
  return made


def _shift(map_n: np.ndarray, by: int) -> None:
  """Adds to the entries of a map that are there, in place."""
  np.add(map_n, by, out=map_n, where=map_n != NONE)


def _room(b: RowBudget) -> np.ndarray:
  return np.array([b.length, b.seen, b.drawn, b.heard, b.spoken, b.spoken_frames])


def check_room(laid: Laid, budget: RowBudget) -> None:
  """Raises ValueError for an example that would not fit even an empty row."""
  room = _room(budget)
  if (laid.needs > room).any():
    raise ValueError(f'example needs (positions, seen, drawn, heard, spoken, spoken frames) = {laid.needs.tolist()}, '
                     f'a row has {room.tolist()}')


class Packer:
  """Fills one batch; `add` says whether the example found a row with room for all of it."""

  def __init__(self, budget: RowBudget, media: MediaConfig):
    self._budget, self._media = budget, media
    b, image = budget, media.image
    self._ids_FBL = np.full((len(FIELDS), b.rows, b.length), NONE, np.int32)  # at once: the batch's arrays are parts
    self._ids_FBL[:3] = 0  # token, modality, label
    # Labels become targets in `batch`.
    fields = {('target' if name == 'label' else name) + '_BL': ids_BL
              for name, ids_BL in zip(FIELDS, self._ids_FBL, strict=True)}
    self._batch = batch = Batch(
        **fields, segment_BL=np.zeros((b.rows, b.length), np.int32),
        position_BL3=np.zeros((b.rows, b.length, 3), np.float32), weight_BL=np.zeros((b.rows, b.length), np.float32),
        **{f'{name}_BNhwc': np.zeros((b.rows, n, image.height, image.width, image.channels), np.float32)
           for name, n in (('seen', b.seen), ('drawn', b.drawn))},
        **{f'{name}_BMS': np.zeros((b.rows, n, media.audio.samples), np.float32)
           for name, n in (('heard', b.heard), ('spoken', b.spoken))},
        draw_at_BNP=np.full((b.rows, b.drawn, image.patches), NONE, np.int32),
        draw_key_BN=np.zeros((b.rows, b.drawn), np.uint32),
        speak_at_BQ=np.full((b.rows, b.spoken_frames), NONE, np.int32),
        speak_frame_BQ=np.full((b.rows, b.spoken_frames), NONE, np.int32))
    self._used = np.zeros((batch.token_BL.shape[0], 6), np.int64)
    self._room = _room(b)
    self._segments = np.zeros(b.rows, np.int32)

  def add(self, laid: Laid, row: int | None = None) -> bool:
    """Puts an example into the first row with room (or into the given one).

    Raises:
      ValueError: if it would not fit even an empty row.
    """
    fits_B = (self._used + laid.needs <= self._room).all(axis=1)
    row = int(fits_B.argmax()) if row is None else row
    if not fits_B[row]:
      check_room(laid, self._budget)
      return False
    self._write(laid, row)
    self._used[row] += laid.needs
    return True

  def _write(self, laid: Laid, row: int) -> None:
    batch, layout = self._batch, laid.layout
    start, *used = (int(x) for x in self._used[row])
    stop = start + laid.length
    self._segments[row] += 1
    here_Fn = self._ids_FBL[:, row, start:stop]
    here_Fn[:] = layout.ids_Fn
    batch.segment_BL[row, start:stop] = self._segments[row]
    batch.position_BL3[row, start:stop] = layout.offset_n3
    patches, frames = self._media.image.patches, self._media.audio.frames
    sizes = dict(seen=patches, drawn=patches, heard=frames, spoken=frames)
    offsets = {name: used[i] * sizes[name] for i, name in enumerate(ITEM_MAPS)}
    for name in ITEM_MAPS:
      if offsets[name] and getattr(laid, name):
        _shift(here_Fn[FIELDS.index(name)], offsets[name])
    if laid.drawn:  # a query is known by its place in the image, whichever image of the row it belongs to
      query_n = here_Fn[FIELDS.index('query')]
      np.remainder(query_n, patches, out=query_n, where=query_n != NONE)
    for i, name in enumerate(ITEM_MAPS):
      for j, item in enumerate(getattr(laid, name), start=used[i]):
        if name in ('seen', 'drawn'):
          getattr(batch, f'{name}_BNhwc')[row, j, :item.shape[0], :item.shape[1]] = item
        else:
          getattr(batch, f'{name}_BMS')[row, j, :len(item)] = item
    if n := len(laid.drawn):
      first = used[ITEM_MAPS.index('drawn')]
      batch.draw_at_BNP[row, first:first + n] = np.where(laid.draw_at_NP == NONE, NONE, laid.draw_at_NP + start)
      batch.draw_key_BN[row, first:first + n] = (laid.key + np.arange(n)).astype(np.uint32)
    if n := len(laid.speak_at_Q):
      first = used[-1]
      batch.speak_at_BQ[row, first:first + n] = laid.speak_at_Q + start
      batch.speak_frame_BQ[row, first:first + n] = laid.speak_frame_Q + offsets['spoken']

  def batch(self) -> Batch:
    """What has been added so far; a position's target is the label of the next one of its example."""
    segment_BL, label_BL = self._batch.segment_BL, self._ids_FBL[FIELDS.index('label')]
    target_BL = np.zeros_like(label_BL)
    np.copyto(target_BL[:, :-1], label_BL[:, 1:], where=segment_BL[:, 1:] == segment_BL[:, :-1])
    return self._batch._replace(target_BL=target_BL, weight_BL=(target_BL > 0).astype(np.float32))

  @property
  def filled(self) -> float:
    """Share of positions that carry something."""
    return float(self._used[:, 0].sum() / (self._budget.rows * self._budget.length))


def pack_rows(examples: Iterable[Laid], budget: RowBudget, media: MediaConfig) -> Batch:
  """One example per row, in order: prompts, and the unpacked reference of the packing test."""
  packer = Packer(budget, media)
  for row, laid in enumerate(examples):
    packer.add(laid, row)
  return packer.batch()
