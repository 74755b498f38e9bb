"""Fault 12: mistakes in the config, at the real command line and from hypothesis.

Each ends with one line and exit code 2, and creates no folder. There are many more
mistakes in tests/train/test_command.py.
"""

import os
import subprocess
import sys

from absl import flags
import hypothesis
from hypothesis import strategies as st
from ml_collections import config_flags
import pytest
from samples import ROOT, tiny_run

from omni_jax.config import read_config
from omni_jax.errors import UserError

CONFIG = f'--config={ROOT}/configs/tiny.py'
CASES = {
  'typo': (['--config.omni.stepz=3'], 'Did you mean'),
  'type': (['--config.omni.optim.lr=fast'], 'fast'),
  'preset': (['--config.data.source=digit'], "one of ['array_record'"),
}


@pytest.mark.parametrize('case', CASES)
def test_fault_12_the_command_prints_one_line_and_creates_no_folder(tmp_path, case):
  arguments, message = CASES[case]
  command = [sys.executable, '-m', 'omni_jax.train', CONFIG]
  command += [f'--workdir={tmp_path}/run', *arguments]
  result = subprocess.run(
    command,
    check=False,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert result.returncode == 2, result.stderr
  assert result.stderr.count('\n') == 1, result.stderr
  assert 'Traceback' not in result.stderr, result.stderr
  assert message.lower() in result.stderr.lower(), result.stderr
  assert not os.listdir(tmp_path)


NAMES = [
  *sorted(tiny_run().to_dict()),
  'omni.steps',
  'omni.optim.lr',
  'model.dtype',
  'stages',
  'mesh.data',
  'data.budget.rows',
]


@hypothesis.settings(max_examples=80)
@hypothesis.given(
  st.one_of(st.sampled_from(NAMES), st.text(max_size=12)), st.text(max_size=20)
)
def test_fault_12_any_override_is_accepted_or_a_user_error(name, value):
  """Any other exception would fail the test."""
  values = flags.FlagValues()
  arguments = ['train', CONFIG, f'--config.{name}={value}']
  config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=arguments
  )
  try:
    read_config(values, arguments)
  except UserError as error:
    assert str(error)
