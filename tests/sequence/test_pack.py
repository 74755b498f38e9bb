"""Packing puts each position in exactly one place, and maps lead to its pieces."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from samples import (
  BUDGET,
  chat,
  examples,
  laid_out_examples,
  picture,
  sound,
  text,
  with_rows,
)
from sequence.reference import (
  assert_equal,
  assert_heads_find_their_places,
  assert_nothing_else,
  assert_placed,
  BUDGETS,
  BY_FIT,
  HOSTS,
  items_of,
  LARGE,
  MODEL,
  Row,
  start_of,
)

from omni_jax.data.example_maker import prepare
from omni_jax.sequence import pack
from omni_jax.sequence.pack import concatenated, pack_rows, Packer
from omni_jax.types import Batch, NONE, Stream, StreamSpec

every_fit = pytest.mark.parametrize('fit', BUDGETS)


def part(kind, seed):
  """Returns a part of one of many sizes."""
  rng = np.random.default_rng(seed)
  if kind == 'text':
    return text('x' * (1 + seed % 5))
  if kind == 'sound':
    return sound(rng, 1 + seed % 4)
  sizes = [2, 4, 8]
  return picture(rng, sizes[seed % 3], sizes[seed // 3 % 3])


def parts_of(size):
  """Returns a strategy of at most so many parts."""
  kinds = st.sampled_from(['text', 'image', 'sound'])
  return st.lists(st.builds(part, kinds, st.integers(0, 99)), max_size=size)


def chats_of(contents):
  """Returns a chat for each pair of contents, the user's and the assistant's."""
  chats = []
  for i, (user, assistant) in enumerate(contents):
    chats.append(chat(str(i), user, assistant))
  return chats


@every_fit
@settings(max_examples=60)
@given(contents=st.lists(st.tuples(parts_of(2), parts_of(2)), max_size=12))
def test_every_token_lands_in_exactly_one_slot(fit, contents):
  hosts = BY_FIT[fit]
  budget = BUDGETS[fit]
  packer = Packer(budget, hosts)
  reference = [Row(budget, fit) for _ in range(budget.rows)]
  row_examples = [[] for _ in range(budget.rows)]
  for example in chats_of(contents):
    item = prepare(example, hosts)
    items = items_of(example)
    if Row(budget, fit).starts(item, items) is None:
      with pytest.raises(ValueError, match='a row has room for'):
        packer.add(item)
      continue
    all_starts = [row.starts(item, items) for row in reference]
    fits = [k for k, starts in enumerate(all_starts) if starts is not None]
    assert packer.add(item) == bool(fits)
    if fits:
      first = fits[0]
      row = reference[first]
      starts = all_starts[first]
      row_examples[first].append((item, items, starts, dict(row.counts)))
      row.take(item, items, starts)
  batch = packer.batch()
  for row, own_examples in enumerate(row_examples):
    start = 0
    for segment, (item, items, starts, before) in enumerate(own_examples, start=1):
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
@given(contents=st.lists(st.tuples(parts_of(4), parts_of(4)), min_size=1, max_size=6))
def test_an_example_is_the_same_packed_and_alone(fit, contents):
  """Its arrays do not depend on the examples that share its row."""
  hosts = BY_FIT[fit]
  laid_out = [prepare(example, hosts) for example in chats_of(contents)]
  alone = pack_rows(laid_out, LARGE, hosts)
  packer = Packer(LARGE, hosts)
  assert all([packer.add(item) for item in laid_out])
  packed = packer.batch()
  segments = dict.fromkeys(range(LARGE.rows), 0)
  for k, item in enumerate(laid_out):
    row, start = place_of(packed, segments, item)
    positions = slice(start, start + item.length)
    for a, b in zip(packed[:-1], alone[:-1], strict=True):
      if a is not packed.segment_BL:
        np.testing.assert_array_equal(a[row, positions], b[k, : item.length])
    for name, stream in packed.streams.items():
      assert_same_pieces(stream, row, start, alone.streams[name], k, item.length)


def place_of(batch, segments, item):
  """Returns the row and the first position of the next example with these ids.

  Args:
    segments: number of the examples that were found before, by row.
    item: the example, laid out.
  """
  for row, segment in segments.items():
    positions = np.flatnonzero(batch.segment_BL[row] == segment + 1)
    if len(positions) != item.length:
      continue
    if (batch.token_BL[row, positions] == item.layout.token_n).all():
      segments[row] += 1
      return row, int(positions[0])
  raise AssertionError('not packed')


def assert_same_pieces(packed, row, start, alone, k, length):
  """Checks that an example carries the same pieces in two streams.

  It lies in `row` of `packed` from `start` on, and at the beginning of row `k` of
  `alone`.
  """
  positions = slice(start, start + length)
  for name in ('at_BL', 'query_at_BL'):
    if getattr(packed, name) is None:
      continue
    a = getattr(packed, name)[row, positions]
    b = getattr(alone, name)[k, :length]
    np.testing.assert_array_equal(a == NONE, b == NONE)
    a = a[a != NONE]
    b = b[b != NONE]
    np.testing.assert_array_equal(packed.value_BM[row, a], alone.value_BM[k, b])
    np.testing.assert_array_equal(packed.place_BM3[row, a], alone.place_BM3[k, b])
    if not len(a):
      continue
    a_item = packed.item_BM[row, a]
    b_item = alone.item_BM[k, b]
    np.testing.assert_array_equal(a_item - a_item[0], b_item - b_item[0])
    for field in ('key_BN', 'form_BN3'):
      np.testing.assert_array_equal(
        getattr(packed, field)[row, a_item - 1], getattr(alone, field)[k, b_item - 1]
      )
    if packed.write_at_BM is not None:
      np.testing.assert_array_equal(
        packed.write_at_BM[row, a] - start, alone.write_at_BM[k, b]
      )


def spec_of(*, longest, block):
  return StreamSpec('x.seen', 'x', False, False, (1,), 'uint8', longest, block)


@given(st.integers(1, 20), st.integers(0, 200), st.data())
def test_an_item_lies_entirely_within_a_block(longest, taken, data):
  """It begins as early as possible.

  If a block is as long as the longest item, each item is alone in its block.
  """
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
  spec = spec_of(longest=16, block=block)
  taken = 0
  for pieces, expected in zip(sizes, starts, strict=True):
    start = spec.start(taken, pieces)
    assert start == expected
    taken = start + pieces


@pytest.mark.parametrize(
  'fit, starts', [('stretch', [0, 16, 32, 48]), ('keep', [0, 12, 32, 44])]
)
def test_images_of_a_row_lie_in_blocks(fit, starts):
  """Packs images of 12, 12, 12 and 4 patches.

  Each is alone in a block of 16, or the third one begins the next block of 32.
  """
  rng = np.random.default_rng(0)
  hosts = BY_FIT[fit]
  packer = Packer(dataclasses.replace(LARGE, rows=1), hosts)
  for k, shape in enumerate([(6, 8), (6, 8), (8, 6), (4, 4)]):
    assert packer.add(prepare(chat(str(k), [picture(rng, *shape)], []), hosts))
  item_M = packer.batch().streams['image.seen'].item_BM[0]
  for number, start in enumerate(starts, start=1):
    assert np.flatnonzero(item_M == number)[0] == start


def test_one_example_per_row_keeps_the_order():
  items = laid_out_examples(MODEL)
  batch = pack_rows(items, with_rows(BUDGET, 5), HOSTS)
  assert (batch.segment_BL.max(axis=1) == 1).all()
  for row, (example, item) in enumerate(zip(examples(), items, strict=True)):
    if 'content' in example:  # all of a plain example is written
      messages = [{'role': 'assistant', 'content': example['content']}]
      example = {'messages': messages}
    assert_placed(batch, row, 0, item, items_of(example))


@pytest.mark.parametrize('counts', [(1, 3), (2, 2), (1, 1, 1, 1)], ids=str)
def test_batches_side_by_side_are_the_batch_of_one_packer(counts):
  items = laid_out_examples(MODEL) + laid_out_examples(MODEL, 1)
  whole = Packer(with_rows(BUDGET, 4), HOSTS)
  batches = []
  first_row = 0
  added = 0
  for count in counts:
    packer = Packer(with_rows(BUDGET, count), HOSTS)
    for k, item in enumerate(items):
      row = k % count
      fits = packer.add(item, row)
      assert whole.add(item, first_row + row) == fits
      added += fits
    batches.append(packer.batch())
    first_row += count
  assert added > 4
  assert_equal(concatenated(batches), whole.batch())


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
  def prepare_examples(seed):
    return [prepare(example, HOSTS) for example in examples(seed)]

  first = prepare_examples(0)
  second = prepare_examples(1)  # the same kinds of examples, other media
  monkeypatch.setattr(pack, 'SHORT', -1)  # nothing is cached
  for a, b, uncached in zip(first, second, prepare_examples(1), strict=True):
    assert a.layout is b.layout
    assert uncached.layout is not b.layout
    assert a.items is b.items
    assert a.needs is b.needs
    np.testing.assert_array_equal(a.layout.ids_3n, uncached.layout.ids_3n)
    np.testing.assert_array_equal(a.layout.offset_n3, uncached.layout.offset_n3)
    assert b.needs == uncached.needs
    for actual, expected in zip(b.items, uncached.items, strict=True):
      assert (actual.stream, actual.pieces) == (expected.stream, expected.pieces)
      for x, y in zip(actual.layout, expected.layout, strict=True):
        np.testing.assert_array_equal(x, y)
    for array in (a.layout.ids_3n, a.layout.offset_n3):
      with pytest.raises(ValueError, match='read-only'):
        array[:] = 0


def test_noise_keys_depend_on_the_example_and_the_image():
  images = [picture(np.random.default_rng(seed)) for seed in (0, 1)]

  def keys(name):
    item = prepare(chat(name, [], images), HOSTS)
    batch = pack_rows([item], with_rows(BUDGET, 1), HOSTS)
    return batch.streams['image.drawn'].key_BN[0]

  assert keys('a')[0] != keys('a')[1]
  np.testing.assert_array_equal(keys('a'), keys('a'))
  assert not set(keys('a')) & set(keys('b'))


def test_every_field_of_a_stream_is_filled_by_the_packer():
  """A new field fails here: the packer and the tests of this file have to handle it."""
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
  batch = pack_rows(laid_out_examples(MODEL), with_rows(BUDGET, len(examples())), HOSTS)
  assert list(batch.streams) == [spec.name for spec in HOSTS.streams]
  for spec in HOSTS.streams:
    stream = batch.streams[spec.name]
    assert stream.value_BM.shape[2:] == spec.shape
    assert stream.value_BM.dtype == spec.dtype
    assert (stream.query_at_BL is not None) == spec.queries
    assert (stream.write_at_BM is not None) == spec.written
    maps = [stream.at_BL, stream.query_at_BL, stream.write_at_BM]
    for positions in maps:
      assert positions is None or (positions != NONE).any()
    for values in (stream.value_BM, stream.item_BM, stream.place_BM3):
      assert values.any()
    assert stream.form_BN3.any() and stream.key_BN.any()
