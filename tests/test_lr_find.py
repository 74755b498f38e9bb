"""The range test's arithmetic; the ramp itself is the omni stage with another rate (tests/train/test_optim.py)."""

import runpy

import numpy as np
import pytest
from samples import ROOT

from omni_jax.errors import UserError


@pytest.fixture(scope='module')
def find():
  return runpy.run_path(str(ROOT / 'launch' / 'lr_find.py'))


def test_the_rate_grows_by_one_factor(find):
  rates = [find['rate'](step) for step in range(find['STEPS'])]
  assert rates[0] == find['FIRST'] and rates[-1] == pytest.approx(find['LAST'])
  np.testing.assert_allclose(np.divide(rates[1:], rates[:-1]), rates[1] / rates[0])


def test_smoothing_starts_at_the_first_loss(find):
  assert find['smoothed']([3.0, 3.0, 3.0]) == pytest.approx([3.0] * 3)
  assert find['smoothed']([1.0, 2.0]) == pytest.approx(
    [1.0, (0.8 * 0.2 * 1 + 0.2 * 2) / (1 - 0.64)]
  )


def test_the_suggestion_lies_on_the_slope_before_the_minimum(find):
  losses = [
    4 - 3 / (1 + np.exp(-(k - 50) / 4)) + (0.2 * (k - 70) ** 2 if k > 70 else 0)
    for k in range(80)
  ]
  steepest, tenth = find['suggestion'](losses)
  assert find['rate'](48) < steepest < find['rate'](58)
  assert find['rate'](70) / 10 <= tenth < find['rate'](79) / 10


def test_a_loss_that_only_grows_is_one_line(find):
  with pytest.raises(UserError, match='falls at no rate'):
    find['suggestion']([1.0, 2.0, 3.0])
