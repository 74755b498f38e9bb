"""Runs the train command as users do.

A mistake prints one line and leaves nothing behind; SIGTERM saves, and the same command
resumes.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from samples import ROOT

from omni_jax.errors import PREEMPTED

CONFIG = f'--config={ROOT}/configs/tiny.py'


def start(workdir, *arguments):
  """Starts the command in a folder outside the project."""
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-m', 'omni_jax.train', *arguments]
  return subprocess.Popen(
    [*command, f'--workdir={workdir}'],
    cwd=workdir.parent,
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


MISTAKES = {
  'misspelt_key': ([CONFIG, '--config.omni.stepz=3'], 'stepz'),
  'wrong_type': ([CONFIG, '--config.omni.steps=many'], 'many'),
  'no_such_config': (['--config=nowhere.py'], 'nowhere.py'),
  'broken_config': ([f'--config={ROOT}/pyproject.toml'], 'pyproject.toml'),
  'no_config': ([], '--config'),
  'unknown_flag': ([CONFIG, '--wrokdir=x'], 'wrokdir'),
  'unknown_stage': (
    [CONFIG, "--config.stages=('codec','omny')"],
    "['omny'] is unknown; a stage is one of",
  ),
  'rows': (
    [CONFIG, '--config.data.budget.rows=5'],
    'batch of 5 rows is not divisible by 2 devices',
  ),
  'codec_rows': (
    [CONFIG, '--config.codec.batch=5'],
    'batch of 5 rows is not divisible by 2 devices',
  ),
  'mesh': ([CONFIG, '--config.mesh.data=3'], 'needs 3 devices, but there are 2'),
  'experts': (
    [
      CONFIG,
      '--config.mesh.data=1',
      '--config.mesh.expert=2',
      '--config.model.decoder.experts=5',
    ],
    'config.model.decoder.experts=5 is not divisible by config.mesh.expert=2; '
    'nearest: 4 or 6 for',
  ),
  'heads': (
    [CONFIG, '--config.model.decoder.kv_heads=3'],
    'heads=2 is not a multiple of kv_heads=3',
  ),
  'optimizer': ([CONFIG, '--config.omni.optim.kind=adamax'], 'adamax'),
  'dtype': ([CONFIG, '--config.model.dtype=flaot32'], 'flaot32'),
  'source': (
    [CONFIG, '--config.data.source=nothing'],
    "'nothing' is unknown; it is one of",
  ),
  'profile': ([CONFIG, '--config.profile=10-15'], "'10-15'"),
  'multipliers': ([CONFIG, '--config.omni.optim.multipliers.x=1.0'], 'x'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_prints_one_line_and_leaves_nothing_behind(tmp_path, mistake):
  arguments, message = MISTAKES[mistake]
  process = start(tmp_path / 'run', *arguments)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 2, err
  assert err.startswith('error: '), err
  assert err.count('\n') == 1, err
  assert 'Traceback' not in err + out
  assert message in err
  assert not list(tmp_path.iterdir())


def test_a_missing_workdir_is_a_mistake(tmp_path):
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  result = subprocess.run(
    [sys.executable, '-m', 'omni_jax.train', CONFIG],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2
  assert result.stderr.startswith('error: ')
  assert '--workdir' in result.stderr


def logged_metrics(folder):
  """Returns the lines of metrics.jsonl; an empty list where there is no such file."""
  file = folder / 'metrics.jsonl'
  if not file.exists():
    return []
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_sigterm_saves_and_the_same_command_resumes_and_finishes(tmp_path):
  workdir = tmp_path / 'run'
  cache = f'--config.compilation_cache={os.environ["OMNI_JAX_TEST_CACHE"]}/xla'
  arguments = [
    CONFIG,
    "--config.stages=('codec','omni')",
    cache,
    '--config.codec.log_every=1',
    '--config.codec.save_every=5000',
    '--config.omni.steps=6',
    '--config.omni.log_every=2',
  ]
  process = start(workdir, *arguments, '--config.codec.steps=2000')
  while not logged_metrics(workdir) and process.poll() is None:
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=120)
  assert process.returncode == PREEMPTED, err
  assert 'Traceback' not in err, err
  step = logged_metrics(workdir)[-1]['step']
  assert 0 < step < 2000
  assert (workdir / 'checkpoints' / 'codec' / str(step)).exists()

  config = json.loads((workdir / 'config.json').read_text())
  assert config['codec']['steps'] == 2000
  steps = step + 3  # running all 2000 would only waste time
  process = start(workdir, *arguments, f'--config.codec.steps={steps}')
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert f'codec: resumed at step {step} of {steps}' in out
  lines = logged_metrics(workdir)
  codec_steps = [line['step'] for line in lines if line['stage'] == 'codec']
  omni_steps = [line['step'] for line in lines if line['stage'] == 'omni']
  assert codec_steps == list(range(1, steps + 1))
  assert omni_steps == [2, 4, 6]
  seconds = [line['seconds'] for line in lines]
  assert seconds == sorted(seconds)
  assert lines[-1]['loss/total'] > 0
