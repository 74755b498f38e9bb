"""Fault 26: two trainers on one folder.

The second is refused, and a trainer that was killed leaves no lock behind.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
from samples import ROOT

from omni_jax.checkpoint.claim import exclusive
from omni_jax.errors import UserError

HOLDER = """
import sys
from omni_jax.checkpoint.claim import exclusive
with exclusive(sys.argv[1]):
  print('mine', flush=True)
  sys.stdin.read()
"""
ENVIRONMENT = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


@pytest.fixture
def holder(tmp_path):
  """Returns a process that holds the lock of a folder."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path / 'run')],
    env=ENVIRONMENT,
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert process.stdout.readline() == 'mine\n'
  yield process
  process.kill()
  process.wait()


def test_fault_26_a_second_trainer_is_refused_until_the_first_is_gone(tmp_path, holder):
  workdir = str(tmp_path / 'run')
  message = (
    rf'is in use by another trainer \(.*"pid": {holder.pid}.*use another --workdir'
  )
  for _ in range(2):
    with pytest.raises(UserError, match=message), exclusive(workdir):
      pass
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with exclusive(workdir):
    assert json.loads((tmp_path / 'run' / 'lock').read_text())['pid'] == os.getpid()
  with exclusive(workdir):
    pass


def test_fault_26_the_command_is_refused_in_one_line_and_changes_nothing(
  tmp_path, holder
):
  workdir = tmp_path / 'run'
  config = f'--config={ROOT}/configs/tiny.py'
  result = subprocess.run(
    [sys.executable, '-m', 'omni_jax.train', config, f'--workdir={workdir}'],
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    check=False,
    cwd=tmp_path,
  )
  assert result.returncode == 2, result.stderr
  assert result.stderr.count('\n') == 1, result.stderr
  assert 'is in use by another trainer' in result.stderr, result.stderr
  assert sorted(os.listdir(workdir)) == ['checkpoints', 'lock']
  assert not os.listdir(workdir / 'checkpoints')


def test_fault_26_on_an_object_store_the_log_says_that_there_is_no_lock(
  tmp_path, monkeypatch
):
  from omni_jax.checkpoint import claim

  monkeypatch.setattr(claim, 'is_remote', lambda path: True)
  message = 'cannot be locked: make sure that no other process trains there'
  with exclusive(str(tmp_path)), exclusive(str(tmp_path)):
    log = (tmp_path / 'log.txt').read_text()
    assert log.count(message) == 2
