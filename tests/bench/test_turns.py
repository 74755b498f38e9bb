"""Players take turns, and a player that ends is named with its last words."""

import sys

import pytest

from omni_jax.bench.turns import compared, Player, take_turns
from omni_jax.errors import UserError

PLAYER = """
from omni_jax.bench.turns import serve
import time
serve({'name': 'sleeper'}, lambda steps: time.sleep(steps * SECONDS))
"""


def sleeper(name, seconds):
  return Player(name, [sys.executable, '-c', PLAYER.replace('SECONDS', str(seconds))])


def test_the_ratio_is_that_of_the_seconds_of_a_step():
  players = [sleeper('fast', 0.01), sleeper('slow', 0.03)]
  results = take_turns(players, rounds=5, steps=2)
  for player in players:
    player.close()
  assert players[0].ready == {'name': 'sleeper'}
  assert results['fast'].ratio == 1
  assert 0.01 <= results['fast'].median < 0.03 <= results['slow'].median
  assert 1.5 < results['slow'].ratio < 4


def test_a_player_that_ends_is_reported():
  with pytest.raises(UserError, match=r'broken ended with exit code 1: .*no such'):
    Player('broken', [sys.executable, '-c', 'raise ValueError("no such thing")'])


def test_bounds_are_order_statistics_around_the_median():
  comparison = compared([float(k) for k in range(1, 22)], [1.0] * 21)
  assert comparison.ratio == comparison.median == 11
  assert (comparison.low, comparison.high) == (7, 15)


def test_one_round_has_bounds_too():
  assert compared([2.0], [1.0]) == (2.0, 2.0, 2.0, 2.0, [2.0])
