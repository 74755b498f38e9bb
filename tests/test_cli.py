"""The command `omni-jax` runs the modules that are commands, and lists them."""

import subprocess
import sys

import pytest
import samples

from omni_jax.cli import command, COMMANDS, usage
from omni_jax.errors import UserError

PACKAGE = samples.ROOT / 'omni_jax'


def omni_jax(*arguments: str) -> subprocess.CompletedProcess:
  """Runs `omni-jax`, as the installed script does."""
  program = [sys.executable, '-m', 'omni_jax.cli', *arguments]
  return subprocess.run(program, capture_output=True, text=True, cwd=samples.ROOT)


def test_every_command_is_listed():
  """A command is a folder with a __main__.py, or the one module that is also a command."""
  commands = {path.parent.name for path in PACKAGE.glob('*/__main__.py')}
  assert set(COMMANDS) == commands | {'inspect_data'}
  for name, description in COMMANDS.items():
    assert any(name in line and description in line for line in usage().splitlines())


def test_a_command_becomes_a_module():
  line = command(['train', '--config=configs/tiny.py', '--workdir=a b'])
  module = [sys.executable, '-m', 'omni_jax.train']
  assert line == [*module, '--config=configs/tiny.py', '--workdir=a b']


@pytest.mark.parametrize('arguments, problem', [([], 'missing'), (['tain'], 'unknown')])
def test_mistakes_name_the_commands(arguments, problem):
  with pytest.raises(UserError, match=f'{problem}.*train, evaluate'):
    command(arguments)


def test_help_and_exit_codes():
  assert omni_jax('--help').stdout == usage() + '\n'
  wrong = omni_jax('tain')
  assert wrong.returncode == 2
  assert len(wrong.stderr.splitlines()) == 1
  refused = omni_jax('train')  # the command's own message and code
  assert refused.returncode == 2
  assert 'give --config=configs/digits.py and --workdir=DIR' in refused.stderr
