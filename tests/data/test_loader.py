"""The loader: the same seed gives the same batches wherever it is resumed, each process has its own, bad records count."""

import collections
import collections.abc
import dataclasses
import json
import os
import time

import grain
import numpy as np
import pytest
from samples import BUDGET, chat, examples, picture, text, tiny_model

from omni_jax.data import making
from omni_jax.data.loader import Loader, LoaderConfig, Shuffled, WAITING
from omni_jax.data.sources.mixture import Drawing, Mixture
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.augment import AudioAugment
from omni_jax.modalities.image.augment import ImageAugment
from omni_jax.sequence.pack import concatenated
from omni_jax.types import RowBudget

HOSTS = tiny_model().hosts()
TOKENIZER = HOSTS.tokenizer
STREAMS = {
  'image.seen': (32, 2),
  'image.drawn': (16, 1),
  'audio.heard': (6, 6),
  'audio.spoken': (4, 4),
}
SCARCE = RowBudget(rows=2, length=96, streams=STREAMS)
AUGMENT = {
  'image': ImageAugment(turn=0.2, scale=0.12, shear=0.15, shift=0.075),
  'audio': AudioAugment(speed=0.11, gain=3.0, noise=0.01, delay=0.05),
}


class Broken(collections.abc.Sequence):
  """A data set of which the named records cannot be read."""

  def __init__(self, items, bad):
    self._items, self._bad = items, set(bad)

  def __len__(self):
    return len(self._items)

  def __getitem__(self, index):
    if index in self._bad:
      raise BadRecord('torn', f'record {index}')
    return self._items[index]


def loader(
  items, *, seed=0, budget=SCARCE, augment=None, shard=(0, 1), prefetch=2, **config
):
  return Loader(
    making.Making(items, HOSTS, seed, augment),
    budget,
    LoaderConfig(**config),
    shard=shard,
    prefetch=prefetch,
  )


def mixed(n=40):
  """Long and short ones, so that many must wait for a later batch."""
  return [dict(examples(seed)[seed % 5], id=str(seed)) for seed in range(n)]


def words(n):
  """Examples that can be told apart in a batch by their one letter."""
  return [chat(str(i), [text(chr(0x4E00 + i))], [text('.')]) for i in range(n)]


def letters(batch):
  """Which of `words` a batch holds, in order."""
  found = []
  for tokens, segments in zip(batch.token_BL, batch.segment_BL, strict=True):
    for segment in range(1, segments.max() + 1):
      found.append(
        ord(TOKENIZER.decode(tuple(tokens[segments == segment].tolist()))[0]) - 0x4E00
      )
  return found


def assert_equal(ours, theirs):
  for name, a, b in zip(ours._fields[:-1], ours[:-1], theirs[:-1], strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)
  assert ours.streams.keys() == theirs.streams.keys()
  for name, stream in ours.streams.items():
    for field, a, b in zip(stream._fields, stream, theirs.streams[name], strict=True):
      np.testing.assert_array_equal(a, b, err_msg=f'{name} {field}')


@pytest.mark.parametrize('prefetch', [0, 2])
def test_a_restored_loader_goes_on_bit_for_bit(prefetch):
  first = loader(mixed(), prefetch=prefetch)
  for _ in range(3):
    next(first)
  state = first.state()
  assert json.loads(state)['lanes']['0']['waiting'], (
    'nothing waits: this test would show too little'
  )
  wanted = [next(first) for _ in range(4)]
  second = loader(mixed(), prefetch=prefetch)
  next(second)
  second.restore(state)
  for batch in wanted:
    assert_equal(next(second), batch)
  assert second.state() == first.state()
  first.close()
  second.close()


def test_seed_decides_the_order():
  a, b, other = (next(loader(mixed(), seed=seed, prefetch=0)) for seed in (0, 0, 1))
  assert_equal(a, b)
  assert (a.token_BL != other.token_BL).any()


def epochs(items, wanted, **kwargs):
  """Letters in the order of batches, until `wanted` of them are there."""
  batches, seen = loader(items, prefetch=0, **kwargs), []
  while len(seen) < wanted:
    seen += letters(next(batches))
  return seen


@pytest.mark.parametrize(
  'start, count, seed', [(0, 1, 0), (7, 2, 3), (100, 1000, 2**31)]
)
def test_the_order_is_that_of_grain(start, count, seed):
  ours, theirs = (
    Shuffled(start, count, seed),
    grain.MapDataset.range(start, start + count).seed(seed).shuffle().repeat(),
  )
  for number in (*range(3 * count), 10**6, 10**12):
    assert ours[number] == theirs[number]


def test_every_pass_holds_every_example_in_an_order_of_its_own():
  seen = epochs(words(30), 200)
  counts = collections.Counter(seen)
  assert (
    len(counts) == 30 and max(counts.values()) - min(counts.values()) <= 2
  )  # those who wait come a batch later
  assert seen[:30] != seen[30:60]


def test_shards_share_no_example_of_a_pass():
  shards = [epochs(words(40), 20, budget=FOUR, shard=(i, 2))[:20] for i in (0, 1)]
  assert not set(shards[0]) & set(shards[1])
  assert set(shards[0]) | set(shards[1]) == set(range(40))


def test_a_budget_that_does_not_suit_the_streams_is_refused_at_the_door():
  parts = dataclasses.replace(SCARCE, streams=STREAMS | {'image.seen': (24, 2)})
  with pytest.raises(UserError, match=r'image\.seen=\(24, 2\): .* nearest: 16 or 32'):
    loader(mixed(), budget=parts)


def test_an_example_waits_rather_than_being_split_or_lost():
  batches = loader(mixed(8), prefetch=0)
  next(batches)
  state = json.loads(batches.state())['lanes']['0']
  assert 0 < len(state['waiting']) <= WAITING
  assert state['next'] > len(state['waiting'])


def test_rows_are_filled():
  batches = loader(mixed(), budget=BUDGET, prefetch=0)
  assert np.mean([(next(batches).segment_BL > 0).mean() for _ in range(6)]) > 0.7


def test_bad_records_are_skipped_and_counted():
  batches = loader(Broken(words(60), [7, 30]), prefetch=0)
  seen = []
  for _ in range(4):
    seen += letters(next(batches))
  assert not {7, 30} & set(seen)
  assert json.loads(batches.state())['lanes']['0']['bad']['torn'] >= 2
  again = loader(Broken(words(60), [7, 30]), prefetch=0)
  again.restore(batches.state())
  assert_equal(next(again), next(batches))


@pytest.mark.parametrize('prefetch', [0, 2])
def test_too_many_bad_records_stop_the_run(prefetch):
  batches = loader(Broken(words(60), range(0, 60, 3)), prefetch=prefetch)
  with pytest.raises(
    UserError,
    match=r'1\d of \d+ records are bad: 1\d x torn, such as record \d+: torn; mend the data',
  ):
    for _ in range(20):
      next(batches)


def test_nothing_but_bad_records_does_not_hang():
  with pytest.raises(UserError, match='are bad'):
    next(loader(Broken(words(5), range(5)), prefetch=0))


def test_empty_data_is_refused():
  with pytest.raises(UserError, match='empty'):
    loader([])


def test_an_example_that_no_row_holds_is_named_with_both_sizes():
  with pytest.raises(UserError, match=r'length \d+ of 96; .*config\.data\.budget'):
    next(loader([chat('', [text('x' * 200)], [text('y')])], prefetch=0))


@pytest.mark.parametrize(
  'wrong, message',
  [
    (
      chat('', [picture(np.random.default_rng(0), 8, 10)], [text('a')]),
      '8x10x1 does not fit',
    ),
    (chat('', [text('a')], [text('b')], language='xx'), 'no token <lang:xx>'),
  ],
  ids=['image', 'language'],
)
def test_an_example_that_the_run_cannot_hold_is_a_user_error(wrong, message):
  with pytest.raises(UserError, match=message):
    next(loader([wrong], prefetch=2))


FOUR = RowBudget(rows=4, length=96, streams=STREAMS)


def global_batch(loaders):
  """What the processes make together."""
  return concatenated([next(one) for one in loaders])


def processes(items, count, **kwargs):
  return [
    loader(items, budget=FOUR, prefetch=0, lanes=4, shard=(k, count), **kwargs)
    for k in range(count)
  ]


def test_the_number_of_processes_changes_nothing():
  alone, two, four = (processes(mixed(), count) for count in (1, 2, 4))
  for _ in range(4):
    batch = global_batch(alone)
    assert_equal(global_batch(two), batch)
    assert_equal(global_batch(four), batch)
  state = Loader.merged(
    [one.state() for one in two]
  )  # of two processes, taken up by one and by four
  batch = global_batch(two)
  for count in (1, 4):
    resumed = processes(mixed(), count)
    for one in resumed:
      one.restore(state)
    assert_equal(global_batch(resumed), batch)


def test_lanes_that_do_not_fit_are_refused():
  with pytest.raises(
    UserError, match=r'config.loader.lanes=3: 4 rows are cut .* nearest: 1'
  ):
    loader(mixed(), budget=FOUR, lanes=3)
  with pytest.raises(UserError, match='nearest: 2'):
    loader(mixed(), budget=FOUR, lanes=1, shard=(0, 2))


@pytest.mark.parametrize('prefetch', [0, 2])
def test_workers_change_nothing(prefetch):
  augment = AUGMENT
  plain = loader(mixed(), prefetch=0, augment=augment)
  helped = loader(mixed(), prefetch=prefetch, workers=2, augment=augment)
  try:
    for _ in range(3):
      assert_equal(next(helped), next(plain))
    state = helped.state()
    assert state == plain.state()
    again = loader(mixed(), prefetch=0, augment=augment)
    again.restore(state)
    assert_equal(next(again), next(helped))
  finally:
    helped.close()


class Hangs(list):
  def __getitem__(self, index):
    time.sleep(300)


class Dies(list):
  def __getitem__(self, index):
    os._exit(3)


@pytest.mark.parametrize(
  'kind, said', [(Hangs, 'has made nothing for 4 s'), (Dies, 'a data worker has died')]
)
def test_workers_that_hang_or_die_are_an_error(monkeypatch, kind, said):
  monkeypatch.setattr(making, 'TIMEOUT', 4.0)
  batches = loader(kind(mixed()), prefetch=0, workers=1)
  began = time.monotonic()
  try:
    with pytest.raises(UserError, match=said):
      next(batches)
    assert (
      time.monotonic() - began < 100
    )  # a process takes its time to start where others run
  finally:
    batches.close()


@pytest.mark.parametrize(
  'change, said',
  [
    (dict(items=mixed(39)), r'examples was .*40.*, is .*39'),
    (dict(seed=1), 'seed was 0, is 1'),
    (dict(augment=AUGMENT), r"augment was {}, is {'image': {'turn': 0\.2"),
    (dict(budget=BUDGET), 'budget was'),
  ],
  ids=['items', 'seed', 'augment', 'budget'],
)
def test_other_data_than_those_of_the_state_are_refused(change, said):
  first = loader(mixed(), prefetch=0)
  next(first)
  change = dict(items=mixed()) | change
  with pytest.raises(UserError, match=said):
    loader(**change, prefetch=0).restore(first.state())
  loader(**change, prefetch=0, strict=False).restore(first.state())


def test_a_mixture_that_ends(tmp_path):
  both = Mixture(
    {'a': words(6), 'b': words(8)}, {'a': Drawing(epochs=1), 'b': Drawing(epochs=2)}
  )
  batches = loader(both, prefetch=0)
  with pytest.raises(
    UserError, match='used up .*give one of config.data.sources no epochs'
  ):
    for _ in range(20):
      next(batches)
