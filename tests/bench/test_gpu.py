"""`python -m omni_jax.bench gpu`: a part that fails is named and ends no other part."""

import subprocess
import sys

import pytest

from omni_jax.bench import gpu
from omni_jax.bench.gpu import Part, parts, run_part


def test_kernels_are_compared_with_their_references():
  outcome = run_part(Part('kernels', ['kernels', '--rows=1', '--length=32']))
  lines = [line.partition(':')[0] for line in outcome['output']]
  assert lines == [
    'attention, 4 segments, reference',
    'attention, 32 segments, reference',
    'experts, loop',
  ]


def test_a_part_that_fails_has_the_last_line_of_its_error():
  outcome = run_part(Part('step', ['step', '--config=configs/speed.py', '--rounds=0']))
  assert outcome['error'].startswith('exit code ')
  assert 'rounds' in outcome['error']


def test_a_part_that_takes_too_long_is_ended(monkeypatch):
  monkeypatch.setattr(gpu, 'TIMEOUT', 0.01)
  assert 'not finished' in run_part(parts('')[0])['error']


def test_a_name_that_no_part_has_is_refused():
  command = [sys.executable, '-m', 'omni_jax.bench', 'gpu', '--only=nothing']
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 2
  assert '--only=nothing' in result.stderr and 'Traceback' not in result.stderr


@pytest.mark.parametrize('torch', ['', '/usr/bin/python3'])
def test_only_the_text_step_has_a_rival(torch):
  with_rival = [
    part.name for part in parts(torch) if f'--torch={torch}' in part.command
  ]
  assert with_rival == (['omni_1b, text'] if torch else [])
