"""Packing: every position lands in exactly one place, maps lead to its pieces, nothing overflows."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from samples import (
  BUDGET,
  chat,
  examples,
  hosts_of,
  laid,
  picture,
  rows,
  sound,
  text,
  tiny_model,
)

from omni_jax.data.making import prepare
from omni_jax.errors import UserError
from omni_jax.modalities.contract import Codes
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.sequence import pack
from omni_jax.sequence.pack import check_budget, concatenated, pack_rows, Packer
from omni_jax.types import Batch, NONE, RowBudget, Stream, StreamSpec

MODEL = tiny_model()
HOSTS = MODEL.hosts()
AUDIO = HOSTS['audio'].config
PATCH, FRAME = HOSTS['image'].config.patch, AUDIO.frame
PATCHES = HOSTS['image'].config.patches
BY_FIT = {
  fit: hosts_of(
    image=ImageConfig(fit=fit), audio=AUDIO, tokenizer=HOSTS.tokenizer.config
  )
  for fit in ('stretch', 'keep')
}
SMALL = RowBudget(
  rows=3,
  length=80,
  streams={
    'image.seen': (32, 3),
    'image.drawn': (16, 1),
    'audio.heard': (6, 3),
    'audio.spoken': (4, 2),
  },
)
# Images of many sizes, of which up to 16 patches have to lie whole within blocks of 32.
MANY = dataclasses.replace(
  SMALL, length=160, streams=SMALL.streams | {'image.seen': (64, 6)}
)
BUDGETS = {'stretch': SMALL, 'keep': MANY}
LARGE = RowBudget(
  rows=8,
  length=400,
  streams={
    'image.seen': (128, 8),
    'image.drawn': (128, 8),
    'audio.heard': (40, 12),
    'audio.spoken': (40, 12),
  },
)
every_fit = pytest.mark.parametrize('fit', BUDGETS)


def part(kind, seed):
  rng = np.random.default_rng(seed)
  size = [2, 4, 8]
  return {
    'text': lambda: text('x' * (1 + seed % 5)),
    'sound': lambda: sound(rng, 1 + seed % 4),
    'image': lambda: picture(rng, size[seed % 3], size[seed // 3 % 3]),
  }[kind]()


def parts_of(size):
  one = st.tuples(st.sampled_from(['text', 'image', 'sound']), st.integers(0, 99))
  return st.lists(one, max_size=size)


def chats_of(drawn):
  return [
    chat(str(i), *([part(*x) for x in side] for side in both))
    for i, both in enumerate(drawn)
  ]


def items_of(example):
  """By stream, the pieces of each item, (M, Y), and its form: straight from the media."""
  items = {spec.name: [] for spec in HOSTS.streams}
  for message in example['messages']:
    written = message['role'] == 'assistant'
    for medium in message['content']:
      if medium['type'] == 'image':
        squares = patches_of(np.rint(medium['pixels'] * 255))
        form = (1, *(side // PATCH for side in medium['pixels'].shape[:2]))
        items['image.drawn' if written else 'image.seen'].append((squares, form))
      if medium['type'] == 'audio':
        frames = frames_of(np.rint(medium['wave'] * 32768))
        form = (len(frames), 1, 1)
        items['audio.spoken' if written else 'audio.heard'].append((frames, form))
  return items


def patches_of(pixels):
  """The squares of an image row by row, each in reading order."""
  squares = []
  for r in range(0, pixels.shape[0], PATCH):
    for c in range(0, pixels.shape[1], PATCH):
      squares.append(pixels[r : r + PATCH, c : c + PATCH].reshape(-1))
  return np.stack(squares)


def frames_of(wave):
  """The frames of a sound, the last one filled up with silence."""
  frames = [wave[at : at + FRAME] for at in range(0, len(wave), FRAME)]
  frames[-1] = np.pad(frames[-1], (0, FRAME - len(frames[-1])))
  return np.stack(frames)


def start_of(taken, pieces, block, alone):
  """The slow reference of where an item begins: the first place that is allowed."""
  start = taken
  while block:
    whole = start // block == (start + pieces - 1) // block
    if whole and (start % block == 0 or not alone):
      break
    start += 1
  return start


class Row:
  """The slow reference of what a row has taken."""

  def __init__(self, budget, fit):
    self._budget = budget
    self._blocks = {'image': PATCHES if fit == 'stretch' else 2 * PATCHES}
    self._alone = fit == 'stretch'
    self.length = 0
    self.ends = dict.fromkeys(budget.streams, 0)
    self.counts = dict.fromkeys(budget.streams, 0)

  def starts(self, item, items):
    """By stream, where the items of an example begin; None if the row has no room."""
    if self.length + item.length > self._budget.length:
      return None
    found = {}
    for name, own in items.items():
      most, most_items = self._budget.streams[name]
      block = self._blocks.get(name.partition('.')[0], 0)
      end = self.ends[name]
      found[name] = []
      for pieces, _ in own:
        start = start_of(end, len(pieces), block, self._alone)
        found[name].append(start)
        end = start + len(pieces)
      if end > most or self.counts[name] + len(own) > most_items:
        return None
    return found

  def take(self, item, items, starts):
    self.length += item.length
    for name, own in items.items():
      self.counts[name] += len(own)
      if own:
        self.ends[name] = starts[name][-1] + len(own[-1][0])


def assert_placed(batch, row, start, item, items, starts=None, before=None):
  """Example `item` lies at row, start…: its ids, its maps and the pieces that they point to."""
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
  for name, own in items.items():
    stream = batch.streams[name]
    at = stream.at_BL[row, here]
    np.testing.assert_array_equal(
      batch.modality_BL[row, here[at != NONE]], HOSTS.numbers[name.partition('.')[0]]
    )
    at = at[at != NONE].tolist()
    assert len(at) == sum(len(pieces) for pieces, _ in own)
    for k, (pieces, form) in enumerate(own):
      ours, at = at[: len(pieces)], at[len(pieces) :]
      number = (before[name] if before else 0) + k
      if starts:
        assert ours[0] == starts[name][k]
      assert ours == list(range(ours[0], ours[0] + len(pieces)))
      np.testing.assert_array_equal(stream.value_BM[row, ours], pieces)
      assert (stream.item_BM[row, ours] == number + 1).all()
      places = [np.unravel_index(i, form) for i in range(len(pieces))]
      np.testing.assert_array_equal(stream.place_BM3[row, ours], places)
      np.testing.assert_array_equal(stream.form_BN3[row, number], form)
      key = (item.key + k) % 2**32
      assert stream.key_BN[row, number] == key


def assert_nothing_else(batch, row, ends, counts):
  """What the examples have not filled is empty; no piece is carried twice."""
  for name, stream in batch.streams.items():
    used = stream.item_BM[row] > 0
    carried = stream.at_BL[row][stream.at_BL[row] != NONE]
    np.testing.assert_array_equal(np.sort(carried), np.flatnonzero(used))
    assert not used[ends[name] :].any()
    assert not stream.value_BM[row, ~used].any()
    assert not stream.place_BM3[row, ~used].any()
    assert not stream.form_BN3[row, counts[name] :].any()
    assert not stream.key_BN[row, counts[name] :].any()
    assert stream.form_BN3[row, : counts[name]].all()


def assert_heads_find_their_places(batch, row):
  """Queries and spoken frames are listed once each, at the position that shows them or comes before them."""
  drawn = batch.streams['image.drawn']
  listed = drawn.write_at_BM[row]
  queries = np.flatnonzero(drawn.query_at_BL[row] != NONE)
  assert sorted(listed[listed != NONE]) == queries.tolist()
  np.testing.assert_array_equal(listed != NONE, drawn.item_BM[row] > 0)
  for piece in np.flatnonzero(listed != NONE):
    assert drawn.query_at_BL[row, listed[piece]] == piece
    (clean,) = np.flatnonzero(drawn.at_BL[row] == piece)
    assert clean > listed[piece]
    assert batch.segment_BL[row, clean] == batch.segment_BL[row, listed[piece]]
    np.testing.assert_array_equal(
      batch.position_BL3[row, clean], batch.position_BL3[row, listed[piece]]
    )
  spoken = batch.streams['audio.spoken']
  used = spoken.write_at_BM[row] != NONE
  np.testing.assert_array_equal(
    spoken.at_BL[row, spoken.write_at_BM[row, used] + 1], np.flatnonzero(used)
  )
  assert used.sum() == (spoken.at_BL[row] != NONE).sum()
  assert (np.diff(used.astype(int)) <= 0).all()
  for name in ('image.seen', 'audio.heard', 'audio.spoken'):
    assert batch.streams[name].query_at_BL is None
  for name in ('image.seen', 'audio.heard'):
    assert batch.streams[name].write_at_BM is None


@every_fit
@settings(max_examples=60)
@given(drawn=st.lists(st.tuples(parts_of(2), parts_of(2)), max_size=12))
def test_every_token_lands_in_exactly_one_slot(fit, drawn):
  hosts, budget = BY_FIT[fit], BUDGETS[fit]
  made = chats_of(drawn)
  candidates = [prepare(example, hosts) for example in made]
  packer = Packer(budget, hosts)
  reference = [Row(budget, fit) for _ in range(budget.rows)]
  placed = [[] for _ in range(budget.rows)]
  for example, item in zip(made, candidates, strict=True):
    items = items_of(example)
    if Row(budget, fit).starts(item, items) is None:
      with pytest.raises(ValueError, match='a row has room for'):
        packer.add(item)
      continue
    starts = [row.starts(item, items) for row in reference]
    fits = [k for k, found in enumerate(starts) if found is not None]
    assert packer.add(item) == bool(fits)
    if fits:
      row = reference[fits[0]]
      placed[fits[0]].append((item, items, starts[fits[0]], dict(row.counts)))
      row.take(item, items, starts[fits[0]])
  batch = packer.batch()
  for row, inside in enumerate(placed):
    start = 0
    for segment, (item, items, starts, before) in enumerate(inside, start=1):
      assert (batch.segment_BL[row, start : start + item.length] == segment).all()
      assert_placed(batch, row, start, item, items, starts, before)
      start += item.length
    for name in ('segment', 'modality', 'token', 'target', 'weight'):
      assert not getattr(batch, f'{name}_BL')[row, start:].any()
    assert_heads_find_their_places(batch, row)
    assert_nothing_else(batch, row, reference[row].ends, reference[row].counts)
  assert packer.filled == pytest.approx((batch.segment_BL > 0).mean())


@every_fit
@settings(max_examples=40)
@given(drawn=st.lists(st.tuples(parts_of(4), parts_of(4)), min_size=1, max_size=6))
def test_packed_is_alone(fit, drawn):
  """What an example carries does not depend on those that share its row."""
  hosts = BY_FIT[fit]
  candidates = [prepare(example, hosts) for example in chats_of(drawn)]
  alone = pack_rows(candidates, LARGE, hosts)
  packer = Packer(LARGE, hosts)
  assert all([packer.add(item) for item in candidates])
  packed = packer.batch()
  segments = dict.fromkeys(range(LARGE.rows), 0)
  for k, item in enumerate(candidates):
    row, start = found_at(packed, segments, item)
    here = slice(start, start + item.length)
    for ours, theirs in zip(packed[:-1], alone[:-1], strict=True):
      if ours is not packed.segment_BL:
        np.testing.assert_array_equal(ours[row, here], theirs[k, : item.length])
    for name in packed.streams:
      ours, theirs = packed.streams[name], alone.streams[name]
      assert_same_pieces(ours, row, start, theirs, k, item.length)


def found_at(batch, segments, item):
  """Row and first position of the next example, which has these ids."""
  for row, segment in segments.items():
    here = np.flatnonzero(batch.segment_BL[row] == segment + 1)
    same = len(here) == item.length
    if same and (batch.token_BL[row, here] == item.layout.token_n).all():
      segments[row] += 1
      return row, int(here[0])
  raise AssertionError('not packed')


def assert_same_pieces(ours, row, start, theirs, k, length):
  """The example at row, start… of one stream carries what the one at row k of the other does."""
  here = slice(start, start + length)
  for name in ('at_BL', 'query_at_BL'):
    if getattr(ours, name) is None:
      continue
    a, b = getattr(ours, name)[row, here], getattr(theirs, name)[k, :length]
    np.testing.assert_array_equal(a == NONE, b == NONE)
    a, b = a[a != NONE], b[b != NONE]
    np.testing.assert_array_equal(ours.value_BM[row, a], theirs.value_BM[k, b])
    np.testing.assert_array_equal(ours.place_BM3[row, a], theirs.place_BM3[k, b])
    if not len(a):
      continue
    a_item, b_item = ours.item_BM[row, a], theirs.item_BM[k, b]
    np.testing.assert_array_equal(a_item - a_item[0], b_item - b_item[0])
    for field in ('key_BN', 'form_BN3'):
      np.testing.assert_array_equal(
        getattr(ours, field)[row, a_item - 1], getattr(theirs, field)[k, b_item - 1]
      )
    if ours.write_at_BM is not None:
      np.testing.assert_array_equal(
        ours.write_at_BM[row, a] - start, theirs.write_at_BM[k, b]
      )


def spec_of(*, longest, block):
  return StreamSpec('x.seen', 'x', False, False, (1,), 'uint8', longest, block)


@given(st.integers(1, 20), st.integers(0, 200), st.data())
def test_an_item_lies_whole_within_a_block(longest, taken, data):
  """As early as it can; alone where a block is as long as the longest."""
  pieces = data.draw(st.integers(1, longest))
  block = data.draw(st.sampled_from([0, longest, longest + 1, 2 * longest]))
  start = spec_of(longest=longest, block=block).start(taken, pieces)
  assert start == start_of(taken, pieces, block, alone=block == longest)


@pytest.mark.parametrize(
  'block, sizes, starts',
  [
    (0, [12, 12, 12, 4], [0, 12, 24, 36]),
    (16, [12, 12, 4, 16], [0, 16, 32, 48]),
    (32, [12, 12, 12, 4, 16, 16], [0, 12, 32, 44, 48, 64]),
    (32, [16, 16, 1], [0, 16, 32]),
  ],
  ids=str,
)
def test_an_item_that_would_cross_a_block_begins_the_next_one(block, sizes, starts):
  spec, taken, found = spec_of(longest=16, block=block), 0, []
  for pieces in sizes:
    found.append(spec.start(taken, pieces))
    taken = found[-1] + pieces
  assert found == starts


@pytest.mark.parametrize(
  'fit, starts', [('stretch', [0, 16, 32, 48]), ('keep', [0, 12, 32, 44])]
)
def test_images_of_a_row_lie_in_blocks(fit, starts):
  """Of 12, 12, 12 and 4 patches: alone in a block of 16, or the third in the next one of 32."""
  rng, hosts = np.random.default_rng(0), BY_FIT[fit]
  packer = Packer(dataclasses.replace(LARGE, rows=1), hosts)
  for k, shape in enumerate([(6, 8), (6, 8), (8, 6), (4, 4)]):
    assert packer.add(prepare(chat(str(k), [picture(rng, *shape)], []), hosts))
  item_M = packer.batch().streams['image.seen'].item_BM[0]
  assert [int(np.flatnonzero(item_M == k)[0]) for k in (1, 2, 3, 4)] == starts


def test_overflow_of_every_budget_is_refused_with_both_sides():
  item = laid(MODEL)[3]  # text, image and speech in one answer
  whole = dataclasses.replace(BUDGET, rows=1)
  assert Packer(whole, HOSTS).add(item)
  streams = BUDGET.streams
  for change, said in (
    (dict(length=item.length - 1), f'length {item.length} of {item.length - 1}'),
    (dict(streams=streams | {'image.drawn': (0, 2)}), r'image\.drawn pieces 4 of 0'),
    (dict(streams=streams | {'image.drawn': (32, 0)}), r'image\.drawn items 1 of 0'),
    (dict(streams=streams | {'audio.spoken': (1, 4)}), r'audio\.spoken pieces 2 of 1'),
    (
      dict(streams={'audio.spoken': (8, 0)}),
      r'image\.drawn pieces 4 of 0, image\.drawn items 1 of 0, audio\.spoken items 1 of 0',
    ),
  ):
    with pytest.raises(
      ValueError, match=f'^example needs more than a row has room for: {said}$'
    ):
      Packer(dataclasses.replace(whole, **change), HOSTS).add(item)


def test_room_that_gaps_between_blocks_take_is_named():
  """Five images of 12 patches are 60, but no more than two have room in a block of 32."""
  rng, hosts = np.random.default_rng(0), BY_FIT['keep']
  item = prepare(chat('', [picture(rng, 6, 8) for _ in range(5)], []), hosts)
  budget = RowBudget(rows=1, length=200, streams={'image.seen': (64, 5)})
  with pytest.raises(ValueError, match=r'room for: image\.seen pieces 76 of 64$'):
    Packer(budget, hosts).add(item)
  four = prepare(chat('', [picture(rng, 6, 8) for _ in range(4)], []), hosts)
  assert Packer(budget, hosts).add(four)


@pytest.mark.parametrize(
  'fit, streams, message',
  [
    (
      'stretch',
      {'image.heard': (16, 1)},
      r'^config\.data\.budget\.streams\.image\.heard=\(16, 1\): this run has the streams '
      r'image\.seen, image\.drawn, audio\.heard, audio\.spoken$',
    ),
    (
      'stretch',
      {'image.seen': (24, 2)},
      r'^config\.data\.budget\.streams\.image\.seen=\(24, 2\): pieces come in blocks of 16; '
      'nearest: 16 or 32$',
    ),
    ('keep', {'image.drawn': (48, 2)}, 'blocks of 32; nearest: 32 or 64$'),
    ('stretch', {'image.seen': (32, 2), 'smell.seen': (1, 1)}, r'smell\.seen=\(1, 1\)'),
  ],
  ids=str,
)
def test_a_budget_that_does_not_suit_the_streams_is_refused(fit, streams, message):
  with pytest.raises(UserError, match=message):
    check_budget(RowBudget(rows=1, length=9, streams=streams), BY_FIT[fit])


def test_a_budget_that_suits_the_streams_is_taken():
  """Whole blocks, less than one of them, none at all; frames have no blocks."""
  for fit, pieces in (('stretch', (0, 8, 16, 64)), ('keep', (0, 8, 20, 32, 96))):
    for n in pieces:
      streams = {'image.seen': (n, 1), 'image.drawn': (n, 1), 'audio.heard': (7, 2)}
      check_budget(RowBudget(rows=1, length=9, streams=streams), BY_FIT[fit])
  with pytest.raises(UserError, match='this run has the streams none$'):
    text_only = Hosts({}, HOSTS.tokenizer)
    check_budget(RowBudget(rows=1, length=9, streams={'image.seen': (1, 1)}), text_only)


def assert_equal(ours, theirs):
  """Two batches agree in every array."""
  assert isinstance(ours, Batch) and ours.streams.keys() == theirs.streams.keys()
  for name, a, b in zip(ours._fields[:-1], ours[:-1], theirs[:-1], strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)
  for name, stream in ours.streams.items():
    for field, a, b in zip(Stream._fields, stream, theirs.streams[name], strict=True):
      assert (a is None) == (b is None)
      if a is not None:
        assert a.dtype == b.dtype, (name, field)
        np.testing.assert_array_equal(a, b, err_msg=f'{name} {field}')


def copied(batch):
  """A batch that is not changed by what its packer does later."""
  return concatenated([batch])


def test_a_full_row_says_no_and_stays_as_it_was():
  first, longer, shorter, *_ = laid(MODEL)
  packer = Packer(
    dataclasses.replace(BUDGET, rows=1, length=first.length + longer.length - 1), HOSTS
  )
  assert packer.add(first)
  before = copied(packer.batch())
  assert not packer.add(longer)
  assert_equal(packer.batch(), before)
  assert packer.add(shorter)


def test_a_full_pool_says_no_and_stays_as_it_was():
  """Of an example whose first image would fit and whose second one does not, nothing is left."""
  rng, hosts = np.random.default_rng(0), BY_FIT['keep']
  shown = lambda name, n: prepare(chat(name, [picture(rng, 6, 8)] * n, []), hosts)
  budget = RowBudget(rows=1, length=200, streams={'image.seen': (64, 9)})
  packer = Packer(budget, hosts)
  assert packer.add(shown('a', 3))
  before = copied(packer.batch())
  assert not packer.add(shown('b', 2))
  assert_equal(packer.batch(), before)
  assert packer.add(shown('c', 1))


def test_one_example_per_row_keeps_the_order():
  made = examples()
  batch = pack_rows(laid(MODEL), rows(BUDGET, 5), HOSTS)
  assert (batch.segment_BL.max(axis=1) == 1).all()
  for row, (example, item) in enumerate(zip(made, laid(MODEL), strict=True)):
    if 'content' in example:  # all of a plain example is written
      messages = [{'role': 'assistant', 'content': example['content']}]
      example = {'messages': messages}
    assert_placed(batch, row, 0, item, items_of(example))


@pytest.mark.parametrize('counts', [(1, 3), (2, 2), (1, 1, 1, 1)], ids=str)
def test_batches_side_by_side_are_the_batch_of_one_packer(counts):
  items = laid(MODEL) + laid(MODEL, 1)
  whole, at = Packer(rows(BUDGET, 4), HOSTS), 0
  parts = [Packer(rows(BUDGET, n), HOSTS) for n in counts]
  added = 0
  for packer, n in zip(parts, counts, strict=True):
    for k, item in enumerate(items):
      row = k % n
      taken = packer.add(item, row)
      assert whole.add(item, at + row) == taken
      added += taken
    at += n
  assert added > 4
  assert_equal(concatenated([packer.batch() for packer in parts]), whole.batch())


def test_a_span_starts_one_after_the_largest_coordinate():
  item = prepare(chat('', [picture(np.random.default_rng(0)), text('ab')], []), HOSTS)
  # <bos> <user> | <boi> <4> <4> 16 patches <eoi> | a b <sot> <eot>
  np.testing.assert_array_equal(item.layout.offset_n3[:5, 0], [0, 1, 2, 3, 4])
  patches = item.layout.offset_n3[5:21]
  assert (patches[:, 0] == 5).all()
  np.testing.assert_array_equal(patches[:, 1], 5 + np.arange(16) // 4)
  np.testing.assert_array_equal(patches[:, 2], 5 + np.arange(16) % 4)
  np.testing.assert_array_equal(item.layout.offset_n3[21:24, 0], [9, 10, 11])


def test_examples_of_one_form_share_their_positions(monkeypatch):
  lay = lambda seed: [prepare(example, HOSTS) for example in examples(seed)]
  first, second = lay(0), lay(1)  # the same kinds of examples, other media
  monkeypatch.setattr(pack, 'SHORT', -1)  # nothing is remembered
  for a, b, alone in zip(first, second, lay(1), strict=True):
    assert a.layout is b.layout and alone.layout is not b.layout
    assert a.items is b.items and a.needs is b.needs
    np.testing.assert_array_equal(a.layout.ids_3n, alone.layout.ids_3n)
    np.testing.assert_array_equal(a.layout.offset_n3, alone.layout.offset_n3)
    assert b.needs == alone.needs
    for ours, theirs in zip(b.items, alone.items, strict=True):
      assert (ours.stream, ours.pieces) == (theirs.stream, theirs.pieces)
      for x, y in zip(ours.layout, theirs.layout, strict=True):
        np.testing.assert_array_equal(x, y)
    for array in (a.layout.ids_3n, a.layout.offset_n3):
      with pytest.raises(ValueError, match='read-only'):
        array[:] = 0


def test_noise_keys_are_of_the_example_and_the_image():
  draws = [picture(np.random.default_rng(seed)) for seed in (0, 1)]
  keys = lambda name: (
    pack_rows([prepare(chat(name, [], draws), HOSTS)], rows(BUDGET, 1), HOSTS)
    .streams['image.drawn']
    .key_BN[0]
  )
  assert keys('a')[0] != keys('a')[1]
  np.testing.assert_array_equal(keys('a'), keys('a'))
  assert not set(keys('a')) & set(keys('b'))


def test_every_payload_of_the_layout_reaches_the_batch():
  """A new field of a stream must not be forgotten by the packer or by this file."""
  assert Stream._fields == (
    'value_BM',
    'item_BM',
    'place_BM3',
    'at_BL',
    'query_at_BL',
    'write_at_BM',
    'form_BN3',
    'key_BN',
  )
  assert Batch._fields == (
    'token_BL',
    'modality_BL',
    'segment_BL',
    'position_BL3',
    'target_BL',
    'weight_BL',
    'streams',
  )
  batch = pack_rows(laid(MODEL), rows(BUDGET, len(examples())), HOSTS)
  assert list(batch.streams) == [spec.name for spec in HOSTS.streams]
  for spec in HOSTS.streams:
    stream = batch.streams[spec.name]
    assert (
      stream.value_BM.shape[2:] == spec.shape and stream.value_BM.dtype == spec.dtype
    )
    assert (stream.query_at_BL is not None) == spec.queries
    assert (stream.write_at_BM is not None) == spec.written
    maps = [stream.at_BL, stream.query_at_BL, stream.write_at_BM]
    for positions in maps:
      assert positions is None or (positions != NONE).any()
    for values in (stream.value_BM, stream.item_BM, stream.place_BM3):
      assert values.any()
    assert stream.form_BN3.any() and stream.key_BN.any()


CODES = {name: Codes((4,), 256) for name in ('audio.heard', 'audio.spoken')}
STORED = MODEL.hosts(CODES)


def heard(code, name='it'):
  clip = sound(np.random.default_rng(0), 3)
  stored = {} if code is None else {'code': code}
  return chat(name, [clip | stored], [text('a')])


def test_stored_codes_take_the_place_of_the_payload():
  code = np.arange(12, dtype=np.uint16).reshape(3, 4) + 244
  batch = pack_rows([prepare(heard(code), STORED)], rows(BUDGET, 1), STORED)
  stream = batch.streams['audio.heard']
  assert stream.value_BM.dtype == np.uint16 and stream.value_BM.shape == (1, 8, 4)
  carried = stream.at_BL[0][stream.at_BL[0] != NONE]
  np.testing.assert_array_equal(stream.value_BM[0, carried], code)
  # Images have no codes: theirs are pixels as before.
  assert batch.streams['image.seen'].value_BM.dtype == np.uint8


@pytest.mark.parametrize(
  'code, message',
  [
    (None, "a part of type 'audio' has no codes; convert its data with --codes=RUN"),
    (
      np.full((3, 4), 256, np.uint16),
      r'it has the code 256, a codebook has the entries 0 to 255 \(audio\.heard: 256 entries',
    ),
    (np.array([[0, 1, 2, -1]] * 3), 'it has the code -1, a codebook'),
  ],
  ids=['none', 'too large', 'negative'],
)
def test_stored_codes_that_are_of_no_codebook_are_refused(code, message):
  with pytest.raises(UserError, match=f"^config.data.codes='stored': {message}"):
    prepare(heard(code), STORED)
  prepare(heard(code), HOSTS)  # a run that computes its codes does not look at them


def test_an_example_without_a_name_is_called_so():
  code = np.full((3, 4), 999, np.uint16)
  with pytest.raises(UserError, match='an example has the code 999'):
    prepare(heard(code, name=''), STORED)
