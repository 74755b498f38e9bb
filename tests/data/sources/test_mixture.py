"""Tests mixtures.

Shares are kept at every point, sources end when they are used up, and every place of
the schedule is found without the earlier ones.
"""

import collections

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from samples import config as run_config
from samples import data_config

from omni_jax.data.sources.mixture import (
  Drawing,
  ENDLESS,
  Mixture,
  mixture_of,
  part_of,
  Schedule,
)
from omni_jax.errors import UserError


def draws_one_by_one(shares, uses, n):
  """Returns n draws by the slow reference, which always takes the earliest one next."""
  weights = [max(1, round(share * 1_000_000)) for share in shares]
  counts = [0] * len(shares)  # draws of each source so far
  order = []
  for _ in range(n):
    candidates = []
    for k in range(len(shares)):
      if counts[k] < uses[k]:
        time = (2 * counts[k] + 1) / weights[k]
        candidates.append((time, k))
    _, k = min(candidates)
    order.append((k, counts[k]))
    counts[k] += 1
  return order


@given(
  st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from([1, 3, 10, ENDLESS])),
    min_size=1,
    max_size=5,
  )
)
@settings(max_examples=60, deadline=None)
def test_every_place_is_that_of_drawing_one_after_another(sources):
  weights = np.array([weight for weight, _ in sources])
  shares = weights / sum(weights)
  uses = [use for _, use in sources]
  n = min(150, sum(uses))
  schedule = Schedule(shares.tolist(), uses)
  assert [tuple(schedule[place]) for place in range(n)] == draws_one_by_one(
    shares, uses, n
  )
  if sum(uses) < 150:
    with pytest.raises(IndexError):
      schedule[n]


def test_shares_are_kept_at_every_point():
  shares = np.array([0.6, 0.3, 0.1])
  schedule = Schedule(shares.tolist(), [ENDLESS] * 3)
  counts = np.zeros(3)
  for place in range(500):
    counts[schedule[place].source] += 1
    assert (np.abs(counts - shares * (place + 1)) <= 1.5).all()


def test_far_places_are_found_at_once():
  schedule = Schedule([0.5, 0.3, 0.2], [ENDLESS, 1000, ENDLESS])
  far = [schedule[place] for place in range(10**12, 10**12 + 700)]
  assert collections.Counter(draw.source for draw in far) == {0: 500, 2: 200}


def examples(name, n):
  items = []
  for k in range(n):
    content = [{'type': 'text', 'text': f'{name}{k}'}]
    items.append({'id': str(k), 'content': content})
  return items


def mixture(temperature=1.0, **drawings):
  return Mixture(
    {'a': examples('a', 100), 'b': examples('b', 900)},
    {name: Drawing(**drawings.get(name, {})) for name in 'ab'},
    temperature,
  )


@pytest.mark.parametrize(
  'drawings, temperature, shares',
  [
    ({}, 1.0, [0.1, 0.9]),
    ({}, 2.0, [0.25, 0.75]),
    ({'b': dict(cap=300)}, 1.0, [0.25, 0.75]),
    ({'a': dict(weight=3), 'b': dict(weight=1)}, 1.0, [0.75, 0.25]),
    ({}, 1e9, [0.5, 0.5]),
  ],
  ids=str,
)
def test_shares_follow_sizes_caps_weights_and_temperature(
  drawings, temperature, shares
):
  np.testing.assert_allclose(
    mixture(temperature, **drawings).shares(), shares, rtol=1e-6
  )


def test_examples_keep_their_source_in_their_name():
  both = mixture()
  assert len(both) == 1000
  assert both[99]['id'] == 'a/99'
  assert both[100]['id'] == 'b/0'
  assert both[999]['id'] == 'b/899'
  with pytest.raises(IndexError):
    both[1000]
  assert mixture(a=dict(epochs=2.5)).uses() == [250, ENDLESS]


def test_a_mixture_of_a_config_has_usable_sources_only():
  config = data_config(sources=dict(x=dict(n=3, weight=2.0), y=dict(n=5, epochs=2.0)))

  def open_source(part):
    return examples('', part.n)

  both = mixture_of(config, open_source)
  assert both.names == ('x', 'y')
  assert both.uses() == [ENDLESS, 10]
  config.sources.y.weight = -1.0
  message = r'config.data.sources.y: weight=-1.0 .* none may be below 0'
  with pytest.raises(UserError, match=message):
    mixture_of(config, open_source)
  config.sources.y.weight = 1.0
  config.sources.x.n = 0
  with pytest.raises(UserError, match=r'config.data.sources.x holds no examples'):
    mixture_of(config, open_source)
  with pytest.raises(UserError, match='0 sources'):
    mixture_of(data_config(), list)


def test_a_part_has_every_key_and_inherits_those_that_it_lacks():
  part = dict(source='jsonl', train_file='mine.jsonl', weight=2.0)
  config = data_config(
    source='mixture',
    root='there',
    seed=5,
    temperature=2.0,
    eval_file='all.jsonl',
    sources=dict(a=part),
  )
  a = part_of(config, 'a')
  assert (a.source, a.train_file, a.weight) == ('jsonl', 'mine.jsonl', 2.0)
  assert (a.root, a.seed, a.train_split) == ('there', 5, 'train')
  assert set(a) == set(config) - {'budget', 'augment'} | {'weight', 'cap', 'epochs'}


def test_a_part_does_not_inherit_what_concerns_the_mixture_itself():
  """This also holds for a mixture that is itself a part with weight, cap and epochs."""
  inner = dict(
    source='mixture', weight=3.0, cap=7, epochs=2.0, root='here', sources=dict(a={})
  )
  config = data_config(
    source='mixture', temperature=2.0, eval_file='all.jsonl', sources=dict(inner=inner)
  )
  outer = part_of(config, 'inner')
  assert (outer.weight, outer.cap, outer.epochs) == (3.0, 7, 2.0)
  assert (outer.temperature, outer.eval_file) == (1.0, '')
  a = part_of(outer, 'a')
  assert (a.weight, a.cap, a.epochs) == (0.0, 0, 0.0)
  assert (a.source, a.eval_file, a.temperature) == ('', '', 1.0)
  assert not a.sources and a.root == 'here'
  assert config.sources.inner.sources.a.to_dict() == {}


def test_a_part_takes_the_values_of_keys_that_follow_others():
  config = run_config('ready')
  config.data.root = 'shared'
  config.model.audio.rate = 16000
  part = part_of(config.data, 'fsdd')
  assert (part.root, part.rate, part.weight) == ('shared', 16000, 1.0)
  part.rate = 1
  assert config.model.audio.rate == 16000


def test_sources_of_the_same_share_take_turns():
  schedule = Schedule([0.25] * 4, [ENDLESS] * 4)
  order = [schedule[place].source for place in range(40)]
  for k in range(0, 40, 4):
    assert sorted(order[k : k + 4]) == [0, 1, 2, 3]
