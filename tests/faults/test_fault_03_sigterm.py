"""Fault 3: SIGTERM to the only process, or to one of two.

The current step is completed and saved, the exit code is 75, and the same command
resumes. tests/multidevice/test_two_processes.py does this with the real model; here it
is the toy stage, in seconds.
"""

import signal
import socket
import time

from faults.storage import flip_in_arrays
from faults.toy import logged_metrics, stage_folder, start, wait_for
import pytest

from omni_jax.checkpoint import manifest, step_folders


def start_processes(workdir, count, *arguments):
  """Starts a run of this many processes and returns them."""
  if count == 1:
    return [start(workdir, *arguments)]
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  variables = {
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': str(count),
  }
  processes = []
  for k in range(count):
    processes.append(start(workdir, *arguments, JAX_PROCESS_ID=str(k), **variables))
  return processes


def run_processes(workdir, count, *arguments):
  """Runs processes to their end; returns what `wait_for` returns for each."""
  processes = start_processes(workdir, count, *arguments)
  return [wait_for(process) for process in processes]


def codes(results):
  """Returns the exit codes of processes."""
  return [code for code, _, _ in results]


def leaves(workdir, step):
  """Returns the arrays of a step, with their digests, as its manifest lists them."""
  return manifest.read(stage_folder(workdir) / str(step)).leaves


@pytest.mark.parametrize('count', [1, 2])
def test_fault_03_sigterm_to_one_saves_the_same_step_in_all(tmp_path, count):
  parts = tmp_path / 'parts'
  uninterrupted = tmp_path / 'uninterrupted'
  arguments = ['--steps=60', '--save_every=1000', '--pause=0.02']
  processes = start_processes(parts, count, *arguments)
  while len(logged_metrics(parts)) < 5 and all(
    process.poll() is None for process in processes
  ):
    time.sleep(0.01)
  processes[-1].send_signal(signal.SIGTERM)
  results = [wait_for(process) for process in processes]
  assert codes(results) == [75] * count, results
  (step,) = step_folders.complete(stage_folder(parts))
  assert step == logged_metrics(parts)[-1]['step']
  assert 5 <= step < 60
  results = run_processes(parts, count, *arguments)
  assert codes(results) == [0] * count, results
  assert f'resumed at step {step} of 60' in results[0][1], results
  results = run_processes(uninterrupted, count, *arguments)
  assert codes(results) == [0] * count, results
  assert leaves(parts, 60) == leaves(uninterrupted, 60)
  assert logged_metrics(parts) == logged_metrics(uninterrupted)


def test_fault_03_and_04_two_processes_agree_on_the_step_before_a_damaged_one(tmp_path):
  """Both processes read the damaged step, and one of them moves it to quarantine.

  They would also agree if only one of them failed to read its part.
  """
  workdir = tmp_path / 'run'
  arguments = ['--steps=4', '--save_every=2']
  assert codes(run_processes(workdir, 2, *arguments)) == [0, 0]
  before = leaves(workdir, 4)
  flip_in_arrays(stage_folder(workdir) / '4' / 'model', seed=0)
  results = run_processes(workdir, 2, *arguments)
  _, out, err = results[0]
  assert codes(results) == [0, 0], err
  assert out.count('WARNING') == 1
  assert 'step 2 is used instead' in out
  assert 'resumed at step 2 of 4' in out
  assert leaves(workdir, 4) == before
