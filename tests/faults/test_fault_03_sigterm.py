"""Fault 3: SIGTERM to one process, and to one of two: the step is ended and saved, exit code 75, the same command goes on.

tests/multidevice/test_two_processes.py does it with the real model; here the small stage, in seconds.
"""

import signal
import socket
import time

from etils import epath
from faults.storage import data_files, flip
from faults.toy import finished, logged, start
import numpy as np
import pytest

from omni_jax.checkpoint import manifest, step_folders


def folder(workdir):
  return epath.Path(workdir / 'checkpoints' / 'toy')


def started(workdir, count, *arguments):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  return [
    start(
      workdir,
      *arguments,
      **(
        dict(
          JAX_COORDINATOR_ADDRESS=address,
          JAX_NUM_PROCESSES=str(count),
          JAX_PROCESS_ID=str(k),
        )
        if count > 1
        else {}
      ),
    )
    for k in range(count)
  ]


def whole_run(workdir, count, *arguments):
  return [finished(process) for process in started(workdir, count, *arguments)]


def leaves(workdir, step):
  return manifest.read(folder(workdir) / str(step)).leaves


@pytest.mark.parametrize('count', [1, 2])
def test_fault_03_sigterm_to_one_saves_the_same_step_in_all(tmp_path, count):
  arguments = ['--steps=60', '--save_every=1000', '--pause=0.02']
  processes = started(tmp_path / 'parts', count, *arguments)
  while len(logged(tmp_path / 'parts')) < 5 and all(
    process.poll() is None for process in processes
  ):
    time.sleep(0.01)
  processes[-1].send_signal(signal.SIGTERM)
  done = [finished(process) for process in processes]
  assert [code for code, _, _ in done] == [75] * count, done
  (step,) = step_folders.listed(folder(tmp_path / 'parts'))
  assert step == logged(tmp_path / 'parts')[-1]['step'] and 5 <= step < 60
  done = whole_run(tmp_path / 'parts', count, *arguments)
  assert [code for code, _, _ in done] == [
    0
  ] * count and f'resumed at step {step} of 60' in done[0][1], done
  done = whole_run(tmp_path / 'whole', count, *arguments)
  assert [code for code, _, _ in done] == [0] * count, done
  assert leaves(tmp_path / 'parts', 60) == leaves(tmp_path / 'whole', 60)
  assert logged(tmp_path / 'parts') == logged(tmp_path / 'whole')


def test_fault_03_and_04_two_processes_agree_on_the_step_before_a_damaged_one(tmp_path):
  """Also where one of them alone cannot read its part: here both read all of it, and one puts it aside."""
  arguments = ['--steps=4', '--save_every=2']
  assert [code for code, _, _ in whole_run(tmp_path / 'run', 2, *arguments)] == [0, 0]
  before = leaves(tmp_path / 'run', 4)
  path = max(
    data_files(folder(tmp_path / 'run') / '4' / 'model'),
    key=lambda path: path.stat().st_size,
  )
  flip(path, np.random.default_rng(0))
  (code, out, err), (other, _, _) = whole_run(tmp_path / 'run', 2, *arguments)
  assert (code, other) == (0, 0), err
  assert (
    out.count('WARNING') == 1
    and 'step 2 is used instead' in out
    and 'resumed at step 2 of 4' in out
  )
  assert leaves(tmp_path / 'run', 4) == before
