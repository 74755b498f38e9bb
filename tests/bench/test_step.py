"""`python -m omni_jax.bench step` times a config's train step on synthetic examples."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from samples import ROOT

from omni_jax.bench.step import config_arguments, hf_sizes, lines_of
from omni_jax.bench.synthetic import synthetic_batch
from omni_jax.config import config_file
from omni_jax.train.plan import Plan

SMALL = ('width=32', 'layers=1', 'head_dim=16', 'expert_hidden=32', 'block=16')


def plan_of(name):
  config = config_file(str(ROOT / 'configs' / 'any.py'), name)['get_config']()
  return Plan(config, jax.devices()[:1])


def test_the_command_prints_the_time_of_a_step(tmp_path):
  flags = [f'--config.model.decoder.{setting}' for setting in SMALL]
  flags += ['--config.data.budget.rows=2', '--config.data.budget.length=64']
  out = tmp_path / 'step.json'
  command = ['-m', 'omni_jax.bench', 'step', '--config=configs/speed.py', *flags]
  result = subprocess.run(
    [sys.executable, *command, '--rounds=2', '--steps=1', f'--out={out}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  assert ' s a step, ' in result.stdout
  ours = json.loads(out.read_text())['omni_jax']
  assert len(ours['times']['seconds']) == 2
  assert ours['ready']['positions'] == 128
  assert np.isfinite(ours['ready']['loss'])


@pytest.mark.parametrize('config', [['--config=a.py'], ['--config', 'a.py']])
def test_the_config_and_its_keys_are_passed_on(config):
  keys = ['--config.seed=1', '--config.omni.steps=2']
  others = ['--torch=/config/python', '--apart', '--out=config.json']
  assert config_arguments([others[0], *config, *others[1:], *keys]) == config + keys


def test_only_players_in_turns_are_compared_by_rounds():
  ready = dict(positions=10, peak_flops=None, device='cpu', devices=1, flops=1.0)
  times = dict(median=2.0, ratio=1.5, low=1.4, high=1.6, seconds=[2.0, 2.0])
  ours = {'ready': ready, 'times': times | {'median': 1.0}}
  results = {'omni_jax': ours, 'transformers': {'ready': {}, 'times': times}}
  assert lines_of(results, in_turns=True)[1].endswith(
    '; 2.00 times ours, in turns 1.50 (1.40 to 1.60)'
  )
  assert lines_of(results, in_turns=False)[1].endswith('; 2.00 times ours')


def test_a_rival_has_the_sizes_of_our_decoder():
  sizes = hf_sizes(plan_of('speed'))
  assert sizes['width'] == 256 and sizes['vocabulary'] == 8192
  assert sizes['rows'] * sizes['length'] == 2048


@pytest.mark.parametrize('name', ['digits', 'speed'])
def test_a_synthetic_batch_fills_its_rows_with_every_medium(name):
  plan = plan_of(name)
  batch = synthetic_batch(plan)
  assert (batch.segment_BL > 0).mean() > 0.8
  assert (batch.weight_BL > 0).any()
  for stream in batch.streams.values():
    assert (stream.item_BM > 0).any()
