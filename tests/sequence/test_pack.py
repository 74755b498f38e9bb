"""Packing: every position lands in exactly one place, maps lead to its payload, nothing overflows."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from samples import BUDGET, chat, examples, laid, picture, rows, sound, text, tiny_model

from omni_jax.data.making import prepare
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.sequence import pack
from omni_jax.sequence.pack import pack_rows, Packer
from omni_jax.types import FIELDS, NONE, RowBudget

MODEL = tiny_model()
MEDIA, TOKENIZER = MODEL.media, Tokenizer(MODEL.tokenizer)
PATCHES = MEDIA.image.patches
SMALL = RowBudget(rows=3, length=80, seen=2, drawn=1, heard_frames=6, spoken_frames=4)


def part(kind, seed):
  rng = np.random.default_rng(seed)
  size = [2, 4, 6]
  return {
    'text': lambda: text('x' * (1 + seed % 5)),
    'sound': lambda: sound(rng, 1 + seed % 4),
    'image': lambda: picture(rng, size[seed % 3], size[seed // 3 % 3]),
  }[kind]()


parts = st.lists(
  st.tuples(st.sampled_from(['text', 'image', 'sound']), st.integers(0, 99)), max_size=2
)


def needs(item):
  frames = lambda waves: sum(-(-len(wave) // MEDIA.audio.frame) for wave in waves)
  return np.array(
    [
      item.length,
      len(item.seen),
      len(item.drawn),
      frames(item.heard),
      frames(item.spoken),
    ]
  )


def patch_of(pixels, index):
  """The square of the image that patch `index` of the largest grid shows."""
  r, c = divmod(index, MEDIA.image.grid[1])
  p = MEDIA.image.patch
  return pixels[r * p : (r + 1) * p, c * p : (c + 1) * p]


def frames_of(waves):
  """(frame, which wave it is of) of all frames, one wave behind the other."""
  size = MEDIA.audio.frame
  return [
    (np.pad(wave, (0, size))[at : at + size], i)
    for i, wave in enumerate(waves)
    for at in range(0, len(wave), size)
  ]


def assert_placed(batch, row, start, item):
  """Example `item` lies at row, start…: its ids, its maps and the payloads that they point to."""
  here = np.arange(start, start + item.length)
  for name in ('token', 'modality'):
    np.testing.assert_array_equal(
      getattr(batch, f'{name}_BL')[row, here], getattr(item.layout, f'{name}_n')
    )
  np.testing.assert_array_equal(batch.position_BL3[row, here], item.layout.offset_n3)
  np.testing.assert_array_equal(
    batch.target_BL[row, here], [*item.layout.label_n[1:], 0]
  )
  np.testing.assert_array_equal(
    batch.weight_BL[row, here], batch.target_BL[row, here] > 0
  )
  for name in ('seen', 'drawn', 'heard', 'spoken'):
    theirs, ours = (
      getattr(item.layout, f'{name}_n'),
      getattr(batch, f'{name}_BL')[row, here],
    )
    np.testing.assert_array_equal(ours == NONE, theirs == NONE)
    theirs, ours = theirs[theirs != NONE], ours[ours != NONE]
    if name in ('seen', 'drawn'):
      for a, b in zip(theirs, ours, strict=True):
        copy = getattr(batch, f'{name}_BNhwc')[row, b // PATCHES]
        np.testing.assert_array_equal(
          patch_of(copy, b % PATCHES),
          patch_of(getattr(item, name)[a // PATCHES], a % PATCHES),
        )
    else:
      frames, clip_R = (
        frames_of(getattr(item, name)),
        getattr(batch, f'{name}_clip_BR')[row],
      )
      np.testing.assert_array_equal(theirs, np.arange(len(frames)))
      for b, (frame, i) in zip(ours, frames, strict=True):
        np.testing.assert_array_equal(getattr(batch, f'{name}_BRS')[row, b], frame)
        np.testing.assert_array_equal(
          clip_R[ours] == clip_R[b], [i == other for _, other in frames]
        )
      assert (clip_R > 0).sum() == (getattr(batch, f'{name}_BL')[row] != NONE).sum()


def assert_heads_find_their_places(batch, row):
  """Queries and spoken frames are listed once each, at the position that shows them or comes before them."""
  listed = batch.draw_at_BNP[row]
  places = listed[listed != NONE]
  assert sorted(places) == sorted(np.flatnonzero(batch.query_BL[row] != NONE))
  for n, p in zip(*np.nonzero(listed != NONE), strict=True):
    assert batch.query_BL[row, listed[n, p]] == p
    (clean,) = np.flatnonzero(batch.drawn_BL[row] == n * PATCHES + p)
    assert (
      clean > listed[n, p]
      and batch.segment_BL[row, clean] == batch.segment_BL[row, listed[n, p]]
    )
    np.testing.assert_array_equal(
      batch.position_BL3[row, clean], batch.position_BL3[row, listed[n, p]]
    )
  used = batch.speak_at_BR[row] != NONE
  np.testing.assert_array_equal(
    batch.spoken_BL[row, batch.speak_at_BR[row, used] + 1], np.flatnonzero(used)
  )
  assert (
    used.sum() == (batch.spoken_BL[row] != NONE).sum()
    and (np.diff(used.astype(int)) <= 0).all()
  )


@settings(max_examples=60)
@given(st.lists(st.tuples(parts, parts), max_size=12))
def test_every_token_lands_in_exactly_one_slot(drawn):
  made = [[[part(*x) for x in side] for side in both] for both in drawn]
  candidates = [
    prepare(chat(str(i), *both), TOKENIZER, MEDIA) for i, both in enumerate(made)
  ]
  packer, placed = Packer(SMALL, MEDIA), [[] for _ in range(SMALL.rows)]
  room = np.tile(
    [SMALL.length, SMALL.seen, SMALL.drawn, SMALL.heard_frames, SMALL.spoken_frames],
    (SMALL.rows, 1),
  )
  before = room.copy()
  for item in candidates:
    if (needs(item) > before[0]).any():
      with pytest.raises(ValueError, match='a row has'):
        packer.add(item)
      continue
    (fits,) = np.nonzero((needs(item) <= room).all(axis=1))
    assert packer.add(item) == bool(len(fits))
    if len(fits):
      placed[fits[0]].append(item)
      room[fits[0]] -= needs(item)
  batch = packer.batch()
  for row, inside in enumerate(placed):
    start = 0
    for segment, item in enumerate(inside, start=1):
      assert (batch.segment_BL[row, start : start + item.length] == segment).all()
      assert_placed(batch, row, start, item)
      start += item.length
    for name in ('segment', 'modality', 'token', 'target', 'weight'):
      assert not getattr(batch, f'{name}_BL')[row, start:].any()
    assert_heads_find_their_places(batch, row)
  assert packer.filled == pytest.approx((batch.segment_BL > 0).mean())


def test_overflow_of_every_budget_is_refused_with_both_sides():
  item = laid(MODEL)[3]  # text, image and speech in one answer
  whole = dataclasses.replace(BUDGET, rows=1)
  assert Packer(whole, MEDIA).add(item)
  for name, limit in (('length', item.length - 1), ('drawn', 0), ('spoken_frames', 1)):
    with pytest.raises(
      ValueError, match=r'example needs .*spoken_frames\) = .* a row has'
    ):
      Packer(dataclasses.replace(whole, **{name: limit}), MEDIA).add(item)


def test_a_full_row_says_no_and_stays_as_it_was():
  first, longer, shorter, *_ = laid(MODEL)
  packer = Packer(
    dataclasses.replace(BUDGET, rows=1, length=first.length + longer.length - 1), MEDIA
  )
  assert packer.add(first)
  before = [np.copy(x) for x in packer.batch()]
  assert not packer.add(longer)
  for ours, theirs in zip(packer.batch(), before, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert packer.add(shorter)


def test_one_example_per_row_keeps_the_order():
  batch = pack_rows(laid(MODEL), rows(BUDGET, 5), MEDIA)
  assert (batch.segment_BL.max(axis=1) == 1).all()
  for row, item in enumerate(laid(MODEL)):
    assert_placed(batch, row, 0, item)


def test_a_span_starts_one_after_the_largest_coordinate():
  item = prepare(
    chat('', [picture(np.random.default_rng(0)), text('ab')], []), TOKENIZER, MEDIA
  )
  # <bos> <user> | <boi> <4> <4> 16 patches <eoi> | a b <sot> <eot>
  np.testing.assert_array_equal(item.layout.offset_n3[:5, 0], [0, 1, 2, 3, 4])
  patches = item.layout.offset_n3[5:21]
  assert (patches[:, 0] == 5).all()
  np.testing.assert_array_equal(patches[:, 1], 5 + np.arange(16) // 4)
  np.testing.assert_array_equal(patches[:, 2], 5 + np.arange(16) % 4)
  np.testing.assert_array_equal(item.layout.offset_n3[21:24, 0], [9, 10, 11])


def test_examples_of_one_form_share_their_positions(monkeypatch):
  lay = lambda seed: [prepare(example, TOKENIZER, MEDIA) for example in examples(seed)]
  first, second = lay(0), lay(1)  # the same kinds of examples, other media
  monkeypatch.setattr(pack, 'SHORT', -1)  # nothing is remembered
  for a, b, alone in zip(first, second, lay(1), strict=True):
    assert a.layout is b.layout and alone.layout is not b.layout
    np.testing.assert_array_equal(a.layout.ids_Fn, alone.layout.ids_Fn)
    np.testing.assert_array_equal(a.layout.offset_n3, alone.layout.offset_n3)
    for name in ('draw_at_NP', 'speak_at_R', 'needs'):
      np.testing.assert_array_equal(getattr(b, name), getattr(alone, name))
    with pytest.raises(ValueError, match='read-only'):
      a.layout.ids_Fn[:] = 0


def test_noise_keys_are_of_the_example_and_the_image():
  draws = [picture(np.random.default_rng(seed)) for seed in (0, 1)]
  keys = lambda name: pack_rows(
    [prepare(chat(name, [], draws), TOKENIZER, MEDIA)], rows(BUDGET, 1), MEDIA
  ).draw_key_BN[0]
  assert keys('a')[0] != keys('a')[1]
  np.testing.assert_array_equal(keys('a'), keys('a'))
  assert not set(keys('a')) & set(keys('b'))


def test_every_payload_of_the_layout_reaches_the_batch():
  """A new kind of payload must not be forgotten by the packer or by this file."""
  assert FIELDS == (
    'token',
    'modality',
    'label',
    'seen',
    'drawn',
    'query',
    'heard',
    'spoken',
  )
  batch = pack_rows(laid(MODEL), rows(BUDGET, len(examples())), MEDIA)
  for name in ('seen', 'drawn', 'query', 'heard', 'spoken'):
    assert (getattr(batch, f'{name}_BL') != NONE).any()
