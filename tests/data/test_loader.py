"""Tests the loader.

A seed gives the same batches wherever it is resumed, each process has its own, and bad
records are counted.
"""

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

from omni_jax.data import example_maker
from omni_jax.data.loader import Loader, LoaderConfig, ShuffledRange, WAITING
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
FIRST_LETTER = 0x4E00  # of many Chinese characters, each a word of one letter
SCARCE = RowBudget(rows=2, length=96, streams=STREAMS)
FOUR = RowBudget(rows=4, length=96, streams=STREAMS)
AUGMENT = {
  'image': ImageAugment(turn=0.2, scale=0.12, shear=0.15, shift=0.075),
  'audio': AudioAugment(speed=0.11, gain=3.0, noise=0.01, delay=0.05),
}


class Broken(collections.abc.Sequence):
  """A data set in which some records, named by index, cannot be read."""

  def __init__(self, items, bad):
    self._items = items
    self._bad = set(bad)

  def __len__(self):
    return len(self._items)

  def __getitem__(self, index):
    if index in self._bad:
      raise BadRecord('damaged', f'record {index}')
    return self._items[index]


def loader(
  items, *, seed=0, budget=SCARCE, augment=None, shard=(0, 1), prefetch=2, **config
):
  return Loader(
    example_maker.ExampleMaker(items, HOSTS, seed, augment),
    budget,
    LoaderConfig(**config),
    shard=shard,
    prefetch=prefetch,
  )


def mixed(n=40):
  """Returns long and short examples, so that many must wait for a later batch."""
  items = []
  for seed in range(n):
    example = examples(seed)[seed % 5]
    items.append({**example, 'id': str(seed)})
  return items


def words(n):
  """Returns examples that can be told apart in a batch by their one letter."""
  items = []
  for i in range(n):
    letter = chr(FIRST_LETTER + i)
    items.append(chat(str(i), [text(letter)], [text('.')]))
  return items


def letters(batch):
  """Returns the numbers of the `words` that a batch holds, in order."""
  numbers = []
  for tokens, segments in zip(batch.token_BL, batch.segment_BL, strict=True):
    for segment in range(1, segments.max() + 1):
      ids = tokens[segments == segment].tolist()
      letter = TOKENIZER.decode(tuple(ids))[0]
      numbers.append(ord(letter) - FIRST_LETTER)
  return numbers


def assert_equal(actual, expected):
  for name in actual._fields[:-1]:
    array = getattr(actual, name)
    np.testing.assert_array_equal(array, getattr(expected, name), err_msg=name)
  assert actual.streams.keys() == expected.streams.keys()
  for name, stream in actual.streams.items():
    other = expected.streams[name]
    for field, a, b in zip(stream._fields, stream, other, strict=True):
      np.testing.assert_array_equal(a, b, err_msg=f'{name} {field}')


@pytest.mark.parametrize('prefetch', [0, 2])
def test_a_restored_loader_resumes_bit_exactly(prefetch):
  first = loader(mixed(), prefetch=prefetch)
  for _ in range(3):
    next(first)
  state = first.state()
  waiting = json.loads(state)['lanes']['0']['waiting']
  assert waiting, 'no example waits, so this test shows too little'
  expected = [next(first) for _ in range(4)]
  second = loader(mixed(), prefetch=prefetch)
  next(second)
  second.restore(state)
  for batch in expected:
    assert_equal(next(second), batch)
  assert second.state() == first.state()
  first.close()
  second.close()


def test_the_seed_decides_the_order():
  first = next(loader(mixed(), seed=0, prefetch=0))
  again = next(loader(mixed(), seed=0, prefetch=0))
  other = next(loader(mixed(), seed=1, prefetch=0))
  assert_equal(first, again)
  assert (first.token_BL != other.token_BL).any()


def letters_in_order(items, count, **kwargs):
  """Returns at least `count` letters in the order of the batches."""
  batches = loader(items, prefetch=0, **kwargs)
  numbers = []
  while len(numbers) < count:
    numbers += letters(next(batches))
  return numbers


@pytest.mark.parametrize(
  'start, count, seed', [(0, 1, 0), (7, 2, 3), (100, 1000, 2**31)]
)
def test_the_order_is_that_of_grain(start, count, seed):
  actual = ShuffledRange(start, count, seed)
  expected = grain.MapDataset.range(start, start + count).seed(seed).shuffle().repeat()
  for number in (*range(3 * count), 10**6, 10**12):
    assert actual[number] == expected[number]


def test_every_epoch_has_every_example_in_a_new_order():
  numbers = letters_in_order(words(30), 200)
  counts = collections.Counter(numbers)
  assert len(counts) == 30
  # Examples that wait come a batch later.
  assert max(counts.values()) - min(counts.values()) <= 2
  assert numbers[:30] != numbers[30:60]


def test_shards_share_no_example_of_an_epoch():
  first = set(letters_in_order(words(40), 20, budget=FOUR, shard=(0, 2))[:20])
  second = set(letters_in_order(words(40), 20, budget=FOUR, shard=(1, 2))[:20])
  assert not first & second
  assert first | second == set(range(40))


def test_a_budget_that_does_not_suit_the_streams_is_refused_at_the_start():
  budget = dataclasses.replace(SCARCE, streams=STREAMS | {'image.seen': (24, 2)})
  with pytest.raises(UserError, match=r'image\.seen=\(24, 2\): .* nearest: 16 or 32'):
    loader(mixed(), budget=budget)


def test_an_example_waits_rather_than_being_split_or_lost():
  batches = loader(mixed(8), prefetch=0)
  next(batches)
  state = json.loads(batches.state())['lanes']['0']
  assert 0 < len(state['waiting']) <= WAITING
  assert state['next'] > len(state['waiting'])


def test_most_positions_of_a_batch_are_filled():
  batches = loader(mixed(), budget=BUDGET, prefetch=0)
  filled = [(next(batches).segment_BL > 0).mean() for _ in range(6)]
  assert np.mean(filled) > 0.7


def test_bad_records_are_skipped_and_counted():
  batches = loader(Broken(words(60), [7, 30]), prefetch=0)
  numbers = []
  for _ in range(4):
    numbers += letters(next(batches))
  assert not {7, 30} & set(numbers)
  assert json.loads(batches.state())['lanes']['0']['bad']['damaged'] >= 2
  restored = loader(Broken(words(60), [7, 30]), prefetch=0)
  restored.restore(batches.state())
  assert_equal(next(restored), next(batches))


@pytest.mark.parametrize('prefetch', [0, 2])
def test_too_many_bad_records_stop_the_run(prefetch):
  batches = loader(Broken(words(60), range(0, 60, 3)), prefetch=prefetch)
  with pytest.raises(
    UserError,
    match=r'1\d of \d+ records are bad: 1\d x damaged, such as record \d+: damaged; fix the data',
  ):
    for _ in range(20):
      next(batches)


def test_data_of_bad_records_only_do_not_hang():
  with pytest.raises(UserError, match='are bad'):
    next(loader(Broken(words(5), range(5)), prefetch=0))


def test_empty_data_is_refused():
  with pytest.raises(UserError, match='empty'):
    loader([])


def test_an_example_that_no_row_holds_is_refused_with_both_sizes():
  long = chat('', [text('x' * 200)], [text('y')])
  with pytest.raises(UserError, match=r'length \d+ of 96; .*config\.data\.budget'):
    next(loader([long], prefetch=0))


LARGE = picture(np.random.default_rng(0), 8, 10)


@pytest.mark.parametrize(
  'example, message',
  [
    (chat('', [LARGE], [text('a')]), '8x10x1 does not fit'),
    (chat('', [text('a')], [text('b')], language='xx'), 'no token <lang:xx>'),
  ],
  ids=['image', 'language'],
)
def test_an_example_that_the_run_cannot_hold_is_a_user_error(example, message):
  with pytest.raises(UserError, match=message):
    next(loader([example], prefetch=2))


def global_batch(loaders):
  """Returns the batch of all processes together."""
  return concatenated([next(batches) for batches in loaders])


def loaders_of_processes(items, count):
  loaders = []
  for k in range(count):
    loaders.append(loader(items, budget=FOUR, prefetch=0, lanes=4, shard=(k, count)))
  return loaders


def test_the_number_of_processes_changes_nothing():
  alone = loaders_of_processes(mixed(), 1)
  two = loaders_of_processes(mixed(), 2)
  four = loaders_of_processes(mixed(), 4)
  for _ in range(4):
    batch = global_batch(alone)
    assert_equal(global_batch(two), batch)
    assert_equal(global_batch(four), batch)
  state = Loader.merged([batches.state() for batches in two])
  batch = global_batch(two)
  for count in (1, 4):
    resumed = loaders_of_processes(mixed(), count)
    for batches in resumed:
      batches.restore(state)
    assert_equal(global_batch(resumed), batch)


def test_lanes_that_do_not_fit_are_refused():
  message = 'config.loader.lanes=3 must divide the 4 rows .* nearest: 1'
  with pytest.raises(UserError, match=message):
    loader(mixed(), budget=FOUR, lanes=3)
  with pytest.raises(UserError, match='nearest: 2'):
    loader(mixed(), budget=FOUR, lanes=1, shard=(0, 2))


@pytest.mark.parametrize('prefetch', [0, 2])
def test_workers_change_nothing(prefetch):
  plain = loader(mixed(), prefetch=0, augment=AUGMENT)
  parallel = loader(mixed(), prefetch=prefetch, workers=2, augment=AUGMENT)
  try:
    for _ in range(3):
      assert_equal(next(parallel), next(plain))
    state = parallel.state()
    assert state == plain.state()
    restored = loader(mixed(), prefetch=0, augment=AUGMENT)
    restored.restore(state)
    assert_equal(next(restored), next(parallel))
  finally:
    parallel.close()


class Hangs(list):
  def __getitem__(self, index):
    time.sleep(300)


class Dies(list):
  def __getitem__(self, index):
    os._exit(3)


@pytest.mark.parametrize(
  'data_set, message',
  [(Hangs, 'has returned nothing for 4 s'), (Dies, 'a data worker has died')],
)
def test_workers_that_hang_or_die_are_an_error(monkeypatch, data_set, message):
  monkeypatch.setattr(example_maker, 'TIMEOUT', 4.0)
  batches = loader(data_set(mixed()), prefetch=0, workers=1)
  start = time.monotonic()
  try:
    with pytest.raises(UserError, match=message):
      next(batches)
    # On a busy machine a process takes a while to start.
    assert time.monotonic() - start < 100
  finally:
    batches.close()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(items=mixed(39)), r'examples was .*40.* and is now .*39'),
    (dict(seed=1), 'seed was 0 and is now 1'),
    (dict(augment=AUGMENT), r"augment was {} and is now {'image': {'turn': 0\.2"),
    (dict(budget=BUDGET), 'budget was'),
  ],
  ids=['items', 'seed', 'augment', 'budget'],
)
def test_other_data_than_those_of_the_state_are_refused(change, message):
  first = loader(mixed(), prefetch=0)
  next(first)
  arguments = dict(items=mixed(), prefetch=0) | change
  with pytest.raises(UserError, match=message):
    loader(**arguments).restore(first.state())
  loader(**arguments, strict=False).restore(first.state())


def test_the_end_of_a_mixture_is_a_user_error():
  sources = {'a': words(6), 'b': words(8)}
  drawings = {'a': Drawing(epochs=1), 'b': Drawing(epochs=2)}
  batches = loader(Mixture(sources, drawings), prefetch=0)
  message = r'used up .*set epochs=0 \(no limit\) for one of config.data.sources'
  with pytest.raises(UserError, match=message):
    for _ in range(20):
      next(batches)
