"""Two processes train like one process with two devices.

They are real processes of jax.distributed on this machine.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest
from samples import ROOT

CHILD = pathlib.Path(__file__).with_name('child.py')
PARTS_CHILD = pathlib.Path(__file__).with_name('parts_child.py')
# Limit for one run with its compilation on a busy machine. On an idle machine it takes
# half a minute.
SECONDS = 420
CODEC_STEPS = 2
STEPS = 4
SAVED = 2  # last step of the omni stage that is saved before the stop
STOPPED = 3  # SIGTERM comes in step 2, and the processes agree one step later
# As launch/local.sh passes them to two processes. With two lanes, one process builds the
# same batches.
ARGUMENTS = [
  '--config.loader.lanes=2',
  f'--config.codec.steps={CODEC_STEPS}',
  '--config.codec.log_every=1',
  f'--config.omni.steps={STEPS}',
  '--config.omni.log_every=1',
  f'--config.omni.save_every={SAVED}',
  f'--config.compilation_cache={os.environ["OMNI_JAX_TEST_CACHE"]}/xla',
]
ALL_STAGES = "('codec','omni','evaluate')"
OMNI_STAGES = "('omni','evaluate')"  # for runs whose codec is finished
ONE_PROCESS = ['--config.cpu_devices=2']
TWO_PROCESSES = ['--config.cpu_devices=1', '--config.distributed=True']
# The sums over two devices are the same, but gloo adds across processes and XLA within
# one, each in its own order. The differences seen are 2e-7, one or two units in the
# last place. The tolerance is larger because Adam divides by small gradients.
CLOSE = dict(rtol=1e-5, atol=1e-6)


class ProcessResult(NamedTuple):
  """The exit code and the output of a process."""

  code: int
  out: str
  err: str


def free_address():
  """Returns an address of this machine whose port is free."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return f'localhost:{free.getsockname()[1]}'


def process_environment(workdir, index, count, address, variables):
  """Returns the environment of a process of a run; see `start_processes`."""
  environment = dict(os.environ)
  if count > 1:
    environment['JAX_COORDINATOR_ADDRESS'] = address
    environment['JAX_NUM_PROCESSES'] = str(count)
    environment['JAX_PROCESS_ID'] = str(index)
  for name, (owner, value) in variables.items():
    if owner == index:
      environment[name] = value
  environment['PYTHONPATH'] = str(ROOT)
  environment['JAX_PLATFORMS'] = 'cpu'
  environment['NOTES'] = str(notes_file(workdir, index))
  return environment


def notes_file(workdir, index):
  """Returns the file to which a process of a run writes the rows that it places."""
  return pathlib.Path(f'{workdir}.notes.{index}')


def start_processes(workdir, count, *arguments, stages, **variables):
  """Starts the processes of a run and returns them.

  `variables` are environment variables of one process, NAME=(process, value).
  """
  address = free_address()
  devices = TWO_PROCESSES if count > 1 else ONE_PROCESS
  command = [
    sys.executable,
    str(CHILD),
    f'--config={ROOT}/configs/tiny.py',
    f'--workdir={workdir}',
    *ARGUMENTS,
    f'--config.stages={stages}',
    *devices,
    *arguments,
  ]
  processes = []
  for index in range(count):
    environment = process_environment(workdir, index, count, address, variables)
    # Files, because a pipe may fill up and block the process.
    with (
      open(f'{workdir}.out.{index}', 'w') as out,
      open(f'{workdir}.err.{index}', 'w') as err,
    ):
      process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
    processes.append(process)
  return processes


def run(workdir, count, *arguments, stages=ALL_STAGES, **variables):
  """Runs the processes of a run to their end, and returns their results.

  A process that does not end in time fails the test.
  """
  processes = start_processes(workdir, count, *arguments, stages=stages, **variables)
  deadline = time.monotonic() + SECONDS
  late = []
  for index, process in enumerate(processes):
    try:
      process.wait(max(1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      late.append(index)
      process.kill()
      process.wait()
  results = []
  for index, process in enumerate(processes):
    out = pathlib.Path(f'{workdir}.out.{index}').read_text()
    err = pathlib.Path(f'{workdir}.err.{index}').read_text()
    results.append(ProcessResult(process.returncode, out, err))
  assert not late, f'processes {late} hang: {results}'
  return results


def logged_metrics(workdir):
  """Returns the lines of metrics.jsonl; an empty list where there is no such file."""
  file = workdir / 'metrics.jsonl'
  if not file.exists():
    return []
  return [json.loads(line) for line in file.read_text().splitlines()]


def placed_rows(workdir, index):
  """Returns for each batch the rows that a process held, as {row: digest}."""
  lines = notes_file(workdir, index).read_text().splitlines()
  return [json.loads(line) for line in lines]


def batches(workdir, count):
  """Returns {row: digest} of every global batch, joined over the processes."""
  rows_of_processes = [placed_rows(workdir, index) for index in range(count)]
  joined = []
  for parts in zip(*rows_of_processes, strict=True):
    batch = {}
    for part in parts:
      assert not batch.keys() & part.keys(), 'both processes hold the same rows'
      batch.update(part)
    joined.append(batch)
  return joined


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def alone(folder):
  """Returns the folder of a run of one process that trained to the end."""
  (process,) = run(folder / 'alone', 1)
  assert process.code == 0, process
  return folder / 'alone'


@pytest.fixture(scope='module')
def stopped(folder):
  """Returns the folder and the two processes of a run that was stopped.

  The second process gets SIGTERM in the second step of the omni stage.
  """
  processes = run(folder / 'stopped', 2, STOPS_AT=(1, str(CODEC_STEPS + 2)))
  assert [process.code for process in processes] == [75, 75], processes
  return folder / 'stopped', processes


def stages_and_steps(lines):
  """Returns the stage and the step of each line of metrics.jsonl."""
  return [(line['stage'], line['step']) for line in lines]


def assert_same_metrics(lines, expected_lines):
  """Checks that lines of metrics.jsonl are close, but for speeds and times."""
  assert stages_and_steps(lines) == stages_and_steps(expected_lines)
  for line, expected in zip(lines, expected_lines, strict=True):
    assert line.keys() == expected.keys()
    for name in line.keys() - {'stage', 'seconds'}:
      if name.startswith('speed/'):
        continue
      message = f'{name} of {line["stage"]} {line["step"]}'
      np.testing.assert_allclose(line[name], expected[name], **CLOSE, err_msg=message)


def test_two_processes_train_as_one_with_two_devices(alone, stopped):
  workdir, _ = stopped
  expected = batches(alone, 1)
  different = {json.dumps(batch) for batch in expected}
  assert len(different) == CODEC_STEPS + STEPS, 'all batches must be different'
  assert batches(workdir, 2) == expected[:-1]
  assert_same_metrics(logged_metrics(workdir), logged_metrics(alone)[:-1])


def test_sigterm_to_one_saves_the_same_step_in_both(stopped):
  workdir, (_, second) = stopped
  checkpoints = workdir / 'checkpoints' / 'omni'
  steps = sorted(path.name for path in checkpoints.iterdir())
  assert steps == [str(SAVED), str(STOPPED)]
  assert 'Traceback' not in second.err


def test_only_the_first_process_writes(stopped):
  workdir, (first, second) = stopped
  assert sorted(path.name for path in workdir.iterdir()) == [
    'checkpoints',
    'config.json',
    'goodput.jsonl',
    'lock',
    'log.txt',
    'metrics.jsonl',
    'tensorboard',
  ]
  for stage in ('codec', 'omni'):
    assert len(list((workdir / 'tensorboard' / stage).iterdir())) == 1
  messages = []
  for line in (workdir / 'log.txt').read_text().splitlines():
    _, _, message = line.partition('] ')
    messages.append(message)
  lines_of_stages = 2 * 3  # its name, that it compiles, and that the first step is done
  assert len(messages) == lines_of_stages + CODEC_STEPS + STOPPED
  assert messages[0] == 'stage codec on 2 x cpu'
  for message in messages:
    assert message in first.out
    assert message not in second.out
  assert json.loads((workdir / 'config.json').read_text())['distributed'] is True


def test_one_process_resumes_where_two_stopped(alone, stopped, folder):
  workdir = folder / 'stopped_then_one'
  stopped_workdir, _ = stopped
  shutil.copytree(stopped_workdir, workdir)
  (process,) = run(workdir, 1, stages=OMNI_STAGES)
  assert process.code == 0, process
  assert f'omni: resumed at step {STOPPED} of {STEPS}' in process.out, process
  assert batches(workdir, 1) == batches(alone, 1)[-1:]
  assert_same_metrics(logged_metrics(workdir), logged_metrics(alone))


def test_two_processes_resume_where_one_stopped_and_one_evaluates(alone, folder):
  workdir = folder / 'alone_then_two'
  shutil.copytree(alone, workdir)
  shutil.rmtree(workdir / 'checkpoints' / 'omni' / str(STEPS))
  first, second = run(workdir, 2, stages=OMNI_STAGES)
  assert first.code == second.code == 0, (first, second)
  assert f'omni: resumed at step {SAVED} of {STEPS}' in first.out
  assert batches(workdir, 2) == batches(alone, 1)[-(STEPS - SAVED) :]
  assert_same_metrics(logged_metrics(workdir), logged_metrics(alone))
  assert f'evaluates step {STEPS} of {workdir}' in first.out
  assert 'evaluates' not in second.out


@pytest.mark.parametrize(
  'axis', ['fsdp', pytest.param('context', marks=pytest.mark.long)]
)
def test_weights_and_positions_may_be_split_across_the_processes(alone, folder, axis):
  """The steps are the same as those of one process.

  Over fsdp each process places its own rows. Over context, as over tensor, both place
  the same rows.
  """
  workdir = folder / f'over_{axis}'
  shutil.copytree(alone / 'checkpoints' / 'codec', workdir / 'checkpoints' / 'codec')
  mesh = ['--config.mesh.data=1', f'--config.mesh.{axis}=2']
  processes = run(workdir, 2, *mesh, stages=OMNI_STAGES)
  assert [process.code for process in processes] == [0, 0], processes
  first_rows = placed_rows(workdir, 0)
  second_rows = placed_rows(workdir, 1)
  all_rows = batches(alone, 1)[CODEC_STEPS:]
  for first, second, batch in zip(first_rows, second_rows, all_rows, strict=True):
    assert first | second == batch
    assert (first == second) == (axis != 'fsdp')
  expected = [line for line in logged_metrics(alone) if line['stage'] == 'omni']
  assert_same_metrics(logged_metrics(workdir), expected)


def test_an_error_in_one_process_ends_both(alone, folder):
  workdir = folder / 'unreadable'
  shutil.copytree(alone / 'checkpoints' / 'codec', workdir / 'checkpoints' / 'codec')
  first, second = run(workdir, 2, stages=OMNI_STAGES, FAILS_AT=(1, '1'))
  assert second.code == 2, second
  assert 'error: process 1 of 2: unreadable on this host' in second.err, second
  assert first.code not in (0, 75), first


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      ['--config.loader.lanes=1'],
      'config.loader.lanes=1 must divide the 4 rows of a batch and be a multiple of '
      'the number of processes, 2',
    ),
    (['--config.mesh.data=1'], 'has 1 of 2 devices'),
  ],
  ids=['lanes', 'mesh'],
)
def test_what_does_not_divide_is_refused_by_all_before_training(
  folder, arguments, message
):
  first, second = run(folder / 'refused', 2, *arguments)
  assert first.code == second.code == 2, (first, second)
  assert first.err.count('error') == 1
  assert message in first.err
  assert 'Traceback' not in first.err
  assert 'error' not in second.err
  assert not (folder / 'refused').exists()


def test_every_process_places_the_rows_that_its_devices_hold():
  address = free_address()
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  processes = []
  for index in range(2):
    process = subprocess.Popen(
      [sys.executable, str(PARTS_CHILD), address, str(index)],
      env=environment,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    processes.append(process)
  try:
    outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert "{'data': 4} 0 2" in outputs[0], outputs
  assert "{'data': 4} 1 2" in outputs[1], outputs
  for output in outputs:
    # Both processes place the same rows where tensor is split across them.
    assert "{'tensor': 4} 0 1" in output, outputs
    assert 'several processes take all of them' in output, outputs
