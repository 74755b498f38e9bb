"""Spans -> positions -> packed rows of static size; several examples share a row and never see each other."""

from collections.abc import Iterable, Sequence
import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np

from omni_jax.errors import UserError
from omni_jax.modalities.audio.host import frames_of
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.sequence.interleave import HOSTS
from omni_jax.types import (
  Batch,
  FIELDS,
  Layout,
  MediaConfig,
  Modality,
  NONE,
  RowBudget,
  Span,
)

NOWHERE = np.zeros(0, np.int64)
ITEM_MAPS = ('seen', 'drawn', 'heard', 'spoken')
ROOM = (
  'length',
  'seen',
  'drawn',
  'heard_frames',
  'spoken_frames',
)  # of RowBudget, what an example takes of a row
KINDS = {
  (Modality.IMAGE, False): 'seen',
  (Modality.IMAGE, True): 'drawn',
  (Modality.AUDIO, False): 'heard',
  (Modality.AUDIO, True): 'spoken',
}
SHORT = 64  # ids of text in an example that is likely to have been seen before but for its media


class Laid(NamedTuple):
  """One example laid out: its positions (maps point into its own media) and its media."""

  layout: Layout  # its offsets are positions
  draw_at_NP: np.ndarray  # position of each query of each drawn image, or NONE
  speak_at_R: np.ndarray  # position before each spoken frame
  needs: np.ndarray  # of everything in ROOM
  seen: list[np.ndarray]
  drawn: list[np.ndarray]
  heard: list[np.ndarray]  # samples, or codes (frames, codebooks)
  spoken: list[np.ndarray]
  key: int

  @property
  def length(self) -> int:
    return len(self.layout.offset_n3)


def lay_out(
  spans: Sequence[Span], tokenizer: Tokenizer, media: MediaConfig, example_id: str = ''
) -> Laid:
  """Spans of one example -> positions. A span starts at the largest coordinate before it plus one."""
  items: dict[str, list[np.ndarray]] = {name: [] for name in ITEM_MAPS}
  forms, ids = [], 0
  for span in spans:
    forms.append((span.modality, span.written, HOSTS[span.modality].form(span, media)))
    ids += len(span.tokens)
    if span.modality != Modality.TEXT:
      items[KINDS[span.modality, span.written]].append(
        span.pixels
        if span.modality == Modality.IMAGE
        else _sound(span, media, example_id)
      )
  positions = _positions if ids <= SHORT else _positions.__wrapped__
  key = int.from_bytes(
    hashlib.blake2s(example_id.encode(), digest_size=4).digest(), 'little'
  )
  return Laid(*positions(tuple(forms), tokenizer, media), **items, key=key)


def _sound(span: Span, media: MediaConfig, example_id: str) -> np.ndarray:
  """What the batch carries of a sound.

  Raises:
    UserError: where it should be codes and there are none, or one that no codebook has: an index that leads out of a
      table would be clamped in silence on the device.
  """
  if not (media.spoken_codes if span.written else media.heard_codes):
    return span.wave
  if span.code is None:
    raise UserError(
      "config.data.codes='stored': a sound has no codes; convert its data with --codes=RUN, or take "
      "config.data.codes='computed'"
    )
  largest = int(span.code.max(initial=0))
  if largest >= media.entries or span.code.min(initial=0) < 0:
    bad = largest if largest >= media.entries else int(span.code.min())
    raise UserError(
      f"config.data.codes='stored': {example_id or 'an example'} has the code {bad}, a codebook has the "
      f'entries 0 to {media.entries - 1} (config.model.codec.entries={media.entries}); convert its data '
      "again with --codes=RUN, or take config.data.codes='computed'"
    )
  return span.code


class _Positions(NamedTuple):
  """The part of `Laid` that is the same for all examples of one form."""

  layout: Layout
  draw_at_NP: np.ndarray
  speak_at_R: np.ndarray
  needs: np.ndarray


@functools.lru_cache(maxsize=1024)
def _positions(
  forms: tuple[tuple[Modality, bool, Any], ...],
  tokenizer: Tokenizer,
  media: MediaConfig,
) -> _Positions:
  """Of spans given by modality, whether they are written, and what their host module calls their form."""
  patches, used = media.image.patches, dict.fromkeys(ITEM_MAPS, 0)  # patches or frames
  layouts, positions, shifts, start, at = [], [], [], 0.0, 0
  for modality, written, form in forms:
    made = HOSTS[modality].layout(form, written, tokenizer, media)
    stop = at + len(made.offset_n3)
    if kind := KINDS.get((modality, written)):
      if used[kind]:  # a map's second item begins where its first ends
        shifts += [
          (field, at, stop, used[kind])
          for field in (kind,) + (('query',) if kind == 'drawn' else ())
        ]
      used[kind] += patches if modality == Modality.IMAGE else form
    positions.append(made.offset_n3 + np.float32(start))
    start, at = start + made.end + 1, stop
    layouts.append(made)
  layout = Layout(
    np.concatenate([made.ids_Fn for made in layouts], axis=1),
    np.concatenate(positions),
    start - 1,
  )
  for field, begin, stop, shift in shifts:
    _shift(layout.ids_Fn[FIELDS.index(field), begin:stop], shift)
  draw_at = np.full((used['drawn'],), NONE, np.int32)
  if used['drawn']:
    (queries,) = np.nonzero(layout.query_n != NONE)
    draw_at[layout.query_n[queries]] = queries
  (frames_at,) = np.nonzero(layout.spoken_n != NONE) if used['spoken'] else (NOWHERE,)
  needs = np.array(
    [
      at,
      used['seen'] // patches,
      used['drawn'] // patches,
      used['heard'],
      used['spoken'],
    ]
  )
  made = _Positions(
    layout.constant(),
    draw_at.reshape(-1, patches),
    (frames_at - 1).astype(np.int32),
    needs,
  )
  for array in made[1:]:
    array.flags.writeable = False
  return made


def _shift(map_n: np.ndarray, by: int) -> None:
  """Adds to the entries of a map that are there, in place."""
  np.add(map_n, by, out=map_n, where=map_n != NONE)


def _room(budget: RowBudget) -> np.ndarray:
  return np.array([getattr(budget, name) for name in ROOM])


def check_room(laid: Laid, budget: RowBudget) -> None:
  """Raises ValueError for an example that would not fit even an empty row."""
  room = _room(budget)
  if (laid.needs > room).any():
    raise ValueError(
      f'example needs ({", ".join(ROOM)}) = {laid.needs.tolist()}, a row has {room.tolist()}'
    )


class Packer:
  """Fills one batch; `add` says whether the example found a row with room for all of it."""

  def __init__(self, budget: RowBudget, media: MediaConfig):
    self._budget, self._media = budget, media
    b, image, frame = budget, media.image, media.audio.frame
    pools = (
      ('heard', b.heard_frames, media.heard_codes),
      ('spoken', b.spoken_frames, media.spoken_codes),
    )
    self._ids_FBL = np.full(
      (len(FIELDS), b.rows, b.length), NONE, np.int32
    )  # at once: the batch's arrays are parts
    self._ids_FBL[:3] = 0  # token, modality, label; labels become targets in `batch`
    fields = {
      ('target' if name == 'label' else name) + '_BL': ids_BL
      for name, ids_BL in zip(FIELDS, self._ids_FBL, strict=True)
    }
    self._batch = batch = Batch(
      **fields,
      segment_BL=np.zeros((b.rows, b.length), np.int32),
      position_BL3=np.zeros((b.rows, b.length, 3), np.float32),
      weight_BL=np.zeros((b.rows, b.length), np.float32),
      **{
        f'{name}_BNhwc': np.zeros(
          (b.rows, n, image.height, image.width, image.channels), np.float32
        )
        for name, n in (('seen', b.seen), ('drawn', b.drawn))
      },
      **{
        f'{name}_BRS': np.zeros((b.rows, n, 0 if books else frame), np.float32)
        for name, n, books in pools
      },
      **{f'{name}_clip_BR': np.zeros((b.rows, n), np.int32) for name, n, _ in pools},
      **{
        f'{name}_code_BRJ': np.zeros((b.rows, n, books), np.int32)
        for name, n, books in pools
      },
      draw_at_BNP=np.full((b.rows, b.drawn, image.patches), NONE, np.int32),
      draw_key_BN=np.zeros((b.rows, b.drawn), np.uint32),
      speak_at_BR=np.full((b.rows, b.spoken_frames), NONE, np.int32),
    )
    self._used = np.zeros((batch.token_BL.shape[0], len(ROOM)), np.int64)
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
    patches = self._media.image.patches
    for name, first in zip(ITEM_MAPS, used, strict=True):
      if first and getattr(laid, name):
        _shift(
          here_Fn[FIELDS.index(name)],
          first * (patches if name in ('seen', 'drawn') else 1),
        )
    if laid.drawn:  # a query is known by its place in the image, whichever image of the row it belongs to
      query_n = here_Fn[FIELDS.index('query')]
      np.remainder(query_n, patches, out=query_n, where=query_n != NONE)
    for name, first in zip(('seen', 'drawn'), used, strict=False):
      for j, item in enumerate(getattr(laid, name), start=first):
        getattr(batch, f'{name}_BNhwc')[row, j, : item.shape[0], : item.shape[1]] = item
    for name, first in zip(('heard', 'spoken'), used[2:], strict=True):
      for sound in getattr(laid, name):
        if sound.ndim == 2:
          end = first + len(sound)
          getattr(batch, f'{name}_code_BRJ')[row, first:end] = sound
        else:
          end = first + frames_of(sound, self._media.audio)
          getattr(batch, f'{name}_BRS')[row, first:end].reshape(-1)[: len(sound)] = (
            sound
          )
        getattr(batch, f'{name}_clip_BR')[row, first:end] = 1 + first
        first = end
    if n := len(laid.drawn):
      first = used[ITEM_MAPS.index('drawn')]
      batch.draw_at_BNP[row, first : first + n] = np.where(
        laid.draw_at_NP == NONE, NONE, laid.draw_at_NP + start
      )
      batch.draw_key_BN[row, first : first + n] = (laid.key + np.arange(n)).astype(
        np.uint32
      )
    first = used[ITEM_MAPS.index('spoken')]
    batch.speak_at_BR[row, first : first + len(laid.speak_at_R)] = (
      laid.speak_at_R + start
    )

  def batch(self) -> Batch:
    """What has been added so far; a position's target is the label of the next one of its example."""
    segment_BL, label_BL = self._batch.segment_BL, self._ids_FBL[FIELDS.index('label')]
    target_BL = np.zeros_like(label_BL)
    np.copyto(
      target_BL[:, :-1], label_BL[:, 1:], where=segment_BL[:, 1:] == segment_BL[:, :-1]
    )
    return self._batch._replace(
      target_BL=target_BL, weight_BL=(target_BL > 0).astype(np.float32)
    )

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
