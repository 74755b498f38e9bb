"""Tests the learning rate range test: its arithmetic, and its ramp on a run of text."""

import runpy

import numpy as np
import pytest
from samples import config, ROOT, tiny_run

from omni_jax.errors import UserError
from omni_jax.model import ModelConfig


@pytest.fixture(scope='module')
def lr_find():
  """Returns the names of launch/lr_find.py."""
  return runpy.run_path(str(ROOT / 'launch' / 'lr_find.py'))


def test_the_rate_grows_by_a_constant_factor(lr_find):
  rates = [lr_find['rate'](step) for step in range(lr_find['STEPS'])]
  assert rates[0] == lr_find['FIRST']
  assert rates[-1] == pytest.approx(lr_find['LAST'])
  np.testing.assert_allclose(np.divide(rates[1:], rates[:-1]), rates[1] / rates[0])


def test_smoothing_starts_at_the_first_loss(lr_find):
  assert lr_find['smoothed']([3.0, 3.0, 3.0]) == pytest.approx([3.0] * 3)
  smooth = lr_find['SMOOTHING']
  second = (smooth * (1 - smooth) * 1 + (1 - smooth) * 2) / (1 - smooth**2)
  assert lr_find['smoothed']([1.0, 2.0]) == pytest.approx([1.0, second])


def test_the_suggestion_lies_on_the_slope_before_the_minimum(lr_find):
  """The loss falls from 4 to 1, steepest at step 50, and grows again after step 70."""
  steps = np.arange(80)
  falling = 4 - 3 / (1 + np.exp(-(steps - 50) / 4))
  growing = 0.2 * np.maximum(steps - 70, 0) ** 2
  losses = (falling + growing).tolist()
  steepest, tenth = lr_find['suggestion'](losses)
  assert lr_find['rate'](48) < steepest < lr_find['rate'](58)
  assert lr_find['rate'](70) / 10 <= tenth < lr_find['rate'](79) / 10


def test_a_loss_that_only_grows_is_refused(lr_find):
  with pytest.raises(UserError, match='does not fall at any rate'):
    lr_find['suggestion']([1.0, 2.0, 3.0])


def test_the_ramp_trains_and_keeps_nothing(lr_find, tmp_path, monkeypatch):
  """The first loss is that of a fresh network, which predicts all ids alike."""
  (tmp_path / 'a.txt').write_text('to be or not to be ' * 60)
  run = config('text')
  run.stages = ('omni',)
  run.mesh.data = 1
  run.model.decoder.update(tiny_run().model.decoder.to_dict())
  run.data.update(dict(source='text', root=str(tmp_path), train_file='a.txt', piece=32))
  run.data.budget.update(dict(rows=4, length=66))
  run.omni.optim.kind = 'adamw'
  monkeypatch.setitem(lr_find['ramp'].__globals__, 'STEPS', 6)
  losses = lr_find['ramp'](run, str(tmp_path / 'run'))
  vocabulary = ModelConfig.from_config(run.model).hosts().tokenizer.vocab_size
  assert 3 <= len(losses) <= 6 and np.isfinite(losses).all()
  assert losses[0] == pytest.approx(np.log(vocabulary), rel=0.2)
  assert not (tmp_path / 'run' / 'checkpoints').exists()
