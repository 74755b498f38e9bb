"""Tests budgets of packed rows, examples that do not fit, and stored codes."""

import dataclasses
import re

import numpy as np
import pytest
from samples import BUDGET, chat, laid_out_examples, picture, sound, text, with_rows
from sequence.reference import assert_equal, BY_FIT, HOSTS, MODEL

from omni_jax.data.example_maker import prepare
from omni_jax.errors import UserError
from omni_jax.modalities.contract import Codes
from omni_jax.modalities.hosts import Hosts
from omni_jax.sequence.pack import check_budget, concatenated, pack_rows, Packer
from omni_jax.types import NONE, RowBudget

CODES = {name: Codes((4,), 256) for name in ('audio.heard', 'audio.spoken')}
STORED = MODEL.hosts(CODES)


def test_overflow_of_every_budget_is_refused_with_both_sizes():
  item = laid_out_examples(MODEL)[3]  # text, image and speech in one answer
  one_row = dataclasses.replace(BUDGET, rows=1)
  assert Packer(one_row, HOSTS).add(item)

  def assert_refused(shortage, **changes):
    message = f'example needs more than a row has room for: {shortage}'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
      Packer(dataclasses.replace(one_row, **changes), HOSTS).add(item)

  def with_stream(name, pieces, items):
    return BUDGET.streams | {name: (pieces, items)}

  too_short = item.length - 1
  assert_refused(f'length {item.length} of {too_short}', length=too_short)
  assert_refused('image.drawn pieces 4 of 0', streams=with_stream('image.drawn', 0, 2))
  assert_refused('image.drawn items 1 of 0', streams=with_stream('image.drawn', 32, 0))
  assert_refused(
    'audio.spoken pieces 2 of 1', streams=with_stream('audio.spoken', 1, 4)
  )
  assert_refused(
    'image.drawn pieces 4 of 0, image.drawn items 1 of 0, audio.spoken items 1 of 0',
    streams={'audio.spoken': (8, 0)},
  )


def test_room_that_gaps_between_blocks_take_is_reported():
  """Five images of 12 patches are 60 patches, but a block of 32 holds only two."""
  rng = np.random.default_rng(0)
  hosts = BY_FIT['keep']
  five = prepare(chat('', [picture(rng, 6, 8) for _ in range(5)], []), hosts)
  budget = RowBudget(rows=1, length=200, streams={'image.seen': (64, 5)})
  with pytest.raises(ValueError, match=r'room for: image\.seen pieces 76 of 64$'):
    Packer(budget, hosts).add(five)
  four = prepare(chat('', [picture(rng, 6, 8) for _ in range(4)], []), hosts)
  assert Packer(budget, hosts).add(four)


@pytest.mark.parametrize(
  'fit, streams, message',
  [
    (
      'stretch',
      {'image.heard': (16, 1)},
      r'^config\.data\.budget\.streams\.image\.heard=\(16, 1\): this run has the '
      r'streams image\.seen, image\.drawn, audio\.heard, audio\.spoken$',
    ),
    (
      'stretch',
      {'image.seen': (24, 2)},
      r'^config\.data\.budget\.streams\.image\.seen=\(24, 2\): pieces come in blocks '
      'of 16; nearest: 16 or 32$',
    ),
    ('keep', {'image.drawn': (48, 2)}, 'blocks of 32; nearest: 32 or 64$'),
    ('stretch', {'image.seen': (32, 2), 'smell.seen': (1, 1)}, r'smell\.seen=\(1, 1\)'),
  ],
  ids=str,
)
def test_a_budget_that_does_not_suit_the_streams_is_refused(fit, streams, message):
  with pytest.raises(UserError, match=message):
    check_budget(RowBudget(rows=1, length=9, streams=streams), BY_FIT[fit])


def test_a_budget_that_suits_the_streams_is_accepted():
  """It is whole blocks, less than one block, or none; frames have no blocks."""
  for fit, pieces in (('stretch', (0, 8, 16, 64)), ('keep', (0, 8, 20, 32, 96))):
    for n in pieces:
      streams = {'image.seen': (n, 1), 'image.drawn': (n, 1), 'audio.heard': (7, 2)}
      check_budget(RowBudget(rows=1, length=9, streams=streams), BY_FIT[fit])


def test_a_run_of_text_only_refuses_every_stream():
  text_only = Hosts({}, HOSTS.tokenizer)
  budget = RowBudget(rows=1, length=9, streams={'image.seen': (1, 1)})
  with pytest.raises(UserError, match='this run has the streams none$'):
    check_budget(budget, text_only)


def copy_of(batch):
  """Returns a copy of a batch, which its packer cannot change."""
  return concatenated([batch])


def test_a_full_row_refuses_an_example_and_stays_the_same():
  first, longer, shorter, *_ = laid_out_examples(MODEL)
  length = first.length + longer.length - 1
  packer = Packer(dataclasses.replace(BUDGET, rows=1, length=length), HOSTS)
  assert packer.add(first)
  before = copy_of(packer.batch())
  assert not packer.add(longer)
  assert_equal(packer.batch(), before)
  assert packer.add(shorter)


def test_a_full_pool_refuses_an_example_and_stays_the_same():
  """Nothing is left of an example whose first image fits and whose second does not."""
  rng = np.random.default_rng(0)
  hosts = BY_FIT['keep']

  def chat_of_images(name, count):
    return prepare(chat(name, [picture(rng, 6, 8)] * count, []), hosts)

  budget = RowBudget(rows=1, length=200, streams={'image.seen': (64, 9)})
  packer = Packer(budget, hosts)
  assert packer.add(chat_of_images('a', 3))
  before = copy_of(packer.batch())
  assert not packer.add(chat_of_images('b', 2))
  assert_equal(packer.batch(), before)
  assert packer.add(chat_of_images('c', 1))


def chat_with_codes(code, name='it'):
  """Returns a chat in which the user plays a sound with these codes, None for none."""
  clip = sound(np.random.default_rng(0), 3)
  stored = {} if code is None else {'code': code}
  return chat(name, [clip | stored], [text('a')])


def test_stored_codes_take_the_place_of_the_payload():
  code = np.arange(12, dtype=np.uint16).reshape(3, 4) + 244
  batch = pack_rows(
    [prepare(chat_with_codes(code), STORED)], with_rows(BUDGET, 1), STORED
  )
  stream = batch.streams['audio.heard']
  assert stream.value_BM.dtype == np.uint16 and stream.value_BM.shape == (1, 8, 4)
  carried = stream.at_BL[0][stream.at_BL[0] != NONE]
  np.testing.assert_array_equal(stream.value_BM[0, carried], code)
  # Images have no codes: their pieces are still pixels.
  assert batch.streams['image.seen'].value_BM.dtype == np.uint8


@pytest.mark.parametrize(
  'code, message',
  [
    (None, "a part of type 'audio' has no codes; convert its data with --codes=RUN"),
    (
      np.full((3, 4), 256, np.uint16),
      'it has the code 256, but a codebook has the entries 0 to 255 '
      r'\(audio\.heard: 256 entries',
    ),
    (np.array([[0, 1, 2, -1]] * 3), 'it has the code -1, but a codebook'),
  ],
  ids=['none', 'too large', 'negative'],
)
def test_stored_codes_outside_the_codebook_are_refused(code, message):
  with pytest.raises(UserError, match=f"^config.data.codes='stored': {message}"):
    prepare(chat_with_codes(code), STORED)
  prepare(chat_with_codes(code), HOSTS)  # a run that computes its codes ignores them


def test_a_message_about_an_example_without_a_name_says_an_example():
  code = np.full((3, 4), 999, np.uint16)
  with pytest.raises(UserError, match='an example has the code 999'):
    prepare(chat_with_codes(code, name=''), STORED)
