"""Fault 8: the folder of the run is read-only, or is not a folder.

It is refused before the first step, in one line.
"""

import contextlib
import os
import pathlib
import subprocess

from faults.storage import small_disk
import pytest
from samples import tiny_run

from omni_jax.checkpoint.claim import exclusive
from omni_jax.errors import UserError
from omni_jax.train import stages


@contextlib.contextmanager
def read_only(folder):
  """Creates a read-only folder and yields it.

  Root may write to any folder: for root it is a file system that is mounted read-only.
  """
  with small_disk(folder, kilobytes=100) as disk:
    if disk is not None:
      subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
    else:
      pathlib.Path(folder).chmod(0o500)
    yield folder


def check_refused(workdir):
  config = tiny_run()
  config.data.budget.rows = 8
  message = r'--workdir=.* cannot be written: .*; make room there'
  with pytest.raises(UserError, match=message):
    stages.run_all(config, str(workdir))


def test_fault_08_a_read_only_folder_is_refused_before_the_first_step(tmp_path):
  with read_only(tmp_path / 'disk') as disk:
    check_refused(disk)
    check_refused(disk / 'run')


def test_fault_08_a_read_only_folder_of_checkpoints_is_refused(tmp_path):
  with read_only(tmp_path / 'run' / 'checkpoints'):
    check_refused(tmp_path / 'run')
  assert sorted(os.listdir(tmp_path / 'run')) == ['checkpoints']


def test_fault_08_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
  (tmp_path / 'run').write_text('a file')
  check_refused(tmp_path / 'run')
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'checkpoints').write_text('a file')
  check_refused(tmp_path / 'other')
  assert os.listdir(tmp_path / 'other') == ['checkpoints']


def test_fault_08_the_probe_leaves_nothing_behind(tmp_path):
  workdir = tmp_path / 'run'
  with exclusive(str(workdir)):
    assert sorted(os.listdir(workdir)) == ['checkpoints', 'lock']
    assert not os.listdir(workdir / 'checkpoints')
