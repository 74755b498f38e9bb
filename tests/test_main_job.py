"""Tests the README's main job in miniature: one command trains, evaluates and reports.

The trained model in the run's folder can then be used.
"""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import samples

MEDIA = ('text', 'image', 'speech')
DIRECTIONS = {f'{a}_to_{b}' for a, b in itertools.product(MEDIA, MEDIA)}


def run_module(*args: str) -> subprocess.CompletedProcess:
  """Runs a command of the package in a process of its own."""
  environment = os.environ | {'PYTHONPATH': str(samples.ROOT), 'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(
    [sys.executable, '-m', *args],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Returns the folder of a finished run."""
  folder = tmp_path_factory.mktemp('job') / 'run'
  cache = os.environ.get('OMNI_JAX_TEST_CACHE', str(folder.parent / 'cache'))
  result = run_module(
    'omni_jax.train',
    f'--config={samples.ROOT}/configs/tiny.py',
    f'--workdir={folder}',
    f'--config.compilation_cache={cache}',
  )
  assert result.returncode == 0, result.stderr
  return folder


def test_losses_fall(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  for stage, name, share in (
    ('codec', 'codec/loss', 0.8),
    ('omni', 'loss/text', 0.7),
    ('omni', 'loss/audio', 0.97),
  ):
    values = [line[name] for line in lines if line['stage'] == stage]
    assert values[-1] < share * values[0], (name, values)


def test_report_and_metrics_are_complete(workdir):
  (folder,) = (workdir / 'eval').iterdir()
  metrics = json.loads((folder / 'metrics.json').read_text())
  assert metrics['version'] == 1
  assert metrics['step'] == int(folder.name)
  assert metrics['directions'].keys() >= DIRECTIONS
  for direction in metrics['directions'].values():
    assert direction['n'] > 0
    assert 0 <= direction['accuracy'] <= 1
  page = (folder / 'report.html').read_text()
  assert 'data:image/png;base64,' in page
  assert 'data:audio/wav;base64,' in page
  assert 'src="http' not in page
  assert 'href="http' not in page


def test_the_same_command_resumes_a_finished_run_and_changes_nothing(workdir):
  before = (workdir / 'metrics.jsonl').read_bytes()
  result = run_module(
    'omni_jax.train',
    f'--config={samples.ROOT}/configs/tiny.py',
    f'--workdir={workdir}',
    "--config.stages=('codec','omni')",
  )
  assert result.returncode == 0, result.stderr
  assert 'resumed at step' in result.stdout
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_the_python_api_loads_the_run_and_answers_with_speech(workdir):
  import omni_jax

  model = omni_jax.load(str(workdir))
  prompt = [samples.picture(np.random.default_rng(0))]
  (part,) = model.generate(prompt, want='audio', voice='f1', language='de')
  assert part.type == 'audio'
  assert part.rate == 8000
  assert np.isfinite(part.wave).all()
  assert '<audio' in part._repr_html_()
