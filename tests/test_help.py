"""Every command answers --help with what it does and its flags."""

import subprocess
import sys

import pytest

COMMANDS = {
  'train': '--workdir: ',
  'evaluate': '--workdir ',
  'evaluate.compare': '--out ',
  'evaluate.cascade': '--workdir ',
  'generate': '--prompt: ',
  'convert': '--input ',
  'inspect_data': '--out: ',
  'compile': '--topology: ',
  'bench': 'omni_jax.bench step',
  'bench.data_command': '--workers: ',
  'bench.step': '--rounds: ',
  'bench.our_step': '--config: ',
  'bench.gpu': '--torch: ',
  'bench.kernels': '--length: ',
  'bench.checkpoint': '--rounds ',
  'data.sources.spoken_digits': '--source ',
}


@pytest.mark.parametrize('command', COMMANDS)
def test_help_describes_the_flags(command):
  arguments = [sys.executable, '-m', f'omni_jax.{command}', '--help']
  result = subprocess.run(arguments, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  assert COMMANDS[command] in result.stdout
  assert not result.stderr
  # Every flag has a word on what it does.
  lines = result.stdout.splitlines()
  flags = [line.split(': ') for line in lines if line.startswith('  --')]
  assert all(
    len(parts) > 1 or '  ' in parts[0].strip() for parts in flags if ':' in parts
  )
