"""Mistakes at the command line are named, give exit code 2, and write nothing."""

import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

from ml_collections import ConfigDict
import pytest

from omni_jax.errors import UserError
from omni_jax.evaluate import __main__ as command
from omni_jax.evaluate import run as run_lib
from omni_jax.evaluate.metrics import text_metrics
from omni_jax.evaluate.page import charts
from omni_jax.evaluate.page.training_log import Curve

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--workdir=missing'], 'missing: no such folder'),
    (['--workdir=.', '--data=no.jsonl'], 'no.jsonl: no such file'),
    (['--workdir=.', '--follow', '--step=3'], '--follow evaluates every new step'),
    (['--workdir=.', '--sampling=guidance'], '--sampling guidance: give KEY=NUMBER'),
    ([], '--workdir'),
  ],
)
def test_a_mistake_is_named_and_nothing_is_written(tmp_path, flags, message):
  result = subprocess.run(
    [sys.executable, '-m', 'omni_jax.evaluate', *flags],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    check=False,
  )
  assert result.returncode == 2
  assert message in result.stderr
  assert 'Traceback' not in result.stderr
  assert list(tmp_path.iterdir()) == []


def test_sampling_of_the_command_overrides_that_of_the_config(monkeypatch):
  settings = {}
  sampling = dict(guidance=1.5, temperature=0.5)
  config = ConfigDict(dict(evaluate=dict(n=3, sampling=sampling)))

  def restore(*args, **options):
    return SimpleNamespace(config=config)

  def run(*args, limits, **options):
    settings.update(n=limits.n, **limits.sampling)
    return {}

  monkeypatch.setattr(run_lib, 'restore', restore)
  monkeypatch.setattr(run_lib, 'run', run)
  flags = ['--sampling', 'guidance=2.5', '--sampling', 'dit_steps=8']
  command.main(['--workdir=.', *flags])
  assert settings == {'n': 3, 'guidance': 2.5, 'temperature': 0.5, 'dit_steps': 8}


@pytest.mark.parametrize('threshold, code', [(0.4, 0), (0.6, 1)])
def test_a_score_below_its_threshold_gives_exit_code_1(
  monkeypatch, capsys, threshold, code
):
  trained = SimpleNamespace(config=ConfigDict())
  monkeypatch.setattr(run_lib, 'restore', lambda *args, **options: trained)
  metrics = {'directions': {'a': {'accuracy': 0.5}}}
  monkeypatch.setattr(run_lib, 'run', lambda *args, **options: metrics)
  flags = ['--fail_under', f'directions.a.accuracy={threshold}']
  assert command.main(['--workdir=.', *flags]) == code
  expected = 'error: --fail_under: directions.a.accuracy is 0.5, below 0.6\n'
  assert capsys.readouterr().err == (expected if code else '')


def test_ticks_are_round_and_inside():
  assert charts.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
  assert charts.ticks(0.13, 0.31) == [0.15, 0.2, 0.25, 0.3]


@pytest.mark.parametrize('values', [[1.0, 1.0], [100.0, 0.01], [-1.0, 5.0]])
def test_every_curve_stays_inside_its_frame(values):
  chart = charts.curve_chart('loss', Curve([0.0, 2.0], values))
  points = chart.split('points="')[1].split('"')[0]
  for point in points.split():
    x, y = map(float, point.split(','))
    assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
    assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM


def test_the_error_of_a_missing_package_names_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'jiwer', None)
  with pytest.raises(UserError, match=r"pip install 'omni_jax\[eval\]'"):
    text_metrics.cer(['a'], ['b'])
