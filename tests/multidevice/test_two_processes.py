"""Two real processes of jax.distributed on this machine train as one process with two devices does."""

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

CHILD, PARTS = (
  pathlib.Path(__file__).with_name(name) for name in ('child.py', 'parts_child.py')
)
SECONDS = 420  # for one run with its compilation on a machine that is busy with others; alone it takes half a minute
CODEC_STEPS, STEPS, SAVED = 2, 4, 2
# As in launch/local.sh with two processes and --config.loader.lanes=2, so that one process makes the same batches.
ARGUMENTS = [
  '--config.loader.lanes=2',
  f'--config.codec.steps={CODEC_STEPS}',
  '--config.codec.log_every=1',
  f'--config.omni.steps={STEPS}',
  '--config.omni.log_every=1',
  f'--config.omni.save_every={SAVED}',
  f'--config.compilation_cache={os.environ["OMNI_JAX_TEST_CACHE"]}/xla',
]
ALL, OMNI = (
  "('codec','omni','evaluate')",
  "('omni','evaluate')",
)  # the latter where the codec is finished
ALONE, TWO = (
  ['--config.cpu_devices=2'],
  ['--config.cpu_devices=1', '--config.distributed=True'],
)
# The same sums over two devices, but gloo adds across processes and XLA within one, in what order each likes: seen are
# differences of 2e-7, one or two units in the last place. Adam divides by small gradients, hence room for more.
CLOSE = dict(rtol=1e-5, atol=1e-6)


class Ended(NamedTuple):
  code: int
  out: str
  err: str


def free_address():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return f'localhost:{free.getsockname()[1]}'


def started(workdir, count, *arguments, stages, **variables):
  """The processes of a run; `variables` are NAME=(process, value)."""
  address, processes = free_address(), []
  for k in range(count):
    own = (
      dict(
        JAX_COORDINATOR_ADDRESS=address,
        JAX_NUM_PROCESSES=str(count),
        JAX_PROCESS_ID=str(k),
      )
      if count > 1
      else {}
    )
    own |= {name: value for name, (who, value) in variables.items() if who == k}
    environment = (
      os.environ
      | own
      | {
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'NOTES': f'{workdir}.notes.{k}',
      }
    )
    command = [
      sys.executable,
      str(CHILD),
      f'--config={ROOT}/configs/tiny.py',
      f'--workdir={workdir}',
      *ARGUMENTS,
      f'--config.stages={stages}',
      *(TWO if count > 1 else ALONE),
      *arguments,
    ]
    with (
      open(f'{workdir}.out.{k}', 'w') as out,
      open(f'{workdir}.err.{k}', 'w') as err,
    ):  # a pipe may fill and block
      processes.append(
        subprocess.Popen(command, env=environment, stdout=out, stderr=err)
      )
  return processes


def run(workdir, count, *arguments, stages=ALL, **variables):
  """What became of the processes of a run; to hang is to fail."""
  processes, until, late = (
    started(workdir, count, *arguments, stages=stages, **variables),
    time.monotonic() + SECONDS,
    [],
  )
  for k, process in enumerate(processes):
    try:
      process.wait(max(1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
      late.append(k)
      process.kill()
      process.wait()
  found = [
    Ended(
      process.returncode,
      *(pathlib.Path(f'{workdir}.{name}.{k}').read_text() for name in ('out', 'err')),
    )
    for k, process in enumerate(processes)
  ]
  assert not late, f'processes {late} hang: {found}'
  return found


def logged(workdir):
  file = workdir / 'metrics.jsonl'
  return (
    [json.loads(line) for line in file.read_text().splitlines()]
    if file.exists()
    else []
  )


def batches(workdir, count):
  """{row: digest} of every global batch, put together from what the processes hold."""
  notes = [
    pathlib.Path(f'{workdir}.notes.{k}').read_text().splitlines() for k in range(count)
  ]
  together = []
  for lines in zip(*notes, strict=True):
    parts = [json.loads(line) for line in lines]
    assert not set.intersection(*map(set, parts)) or count == 1, (
      'both processes hold the same rows'
    )
    together.append({row: digest for part in parts for row, digest in part.items()})
  return together


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def alone(folder):
  """One process to the end."""
  (done,) = run(folder / 'alone', 1)
  assert done.code == 0, done
  return folder / 'alone'


@pytest.fixture(scope='module')
def stopped(folder):
  """Two processes, of which the second gets SIGTERM in the second step of the omni stage."""
  done = run(folder / 'stopped', 2, STOPS_AT=(1, str(CODEC_STEPS + 2)))
  assert [one.code for one in done] == [75, 75], done
  return folder / 'stopped', done


def assert_same_figures(ours, theirs):
  """Lines of metrics.jsonl."""
  assert [(line['stage'], line['step']) for line in ours] == [
    (line['stage'], line['step']) for line in theirs
  ]
  for mine, other in zip(ours, theirs, strict=True):
    assert mine.keys() == other.keys()
    for name in mine.keys() - {'stage', 'seconds'}:
      if not name.startswith('speed/'):
        np.testing.assert_allclose(
          mine[name],
          other[name],
          **CLOSE,
          err_msg=f'{name} of {mine["stage"]} {mine["step"]}',
        )


def test_two_processes_train_as_one_with_two_devices(alone, stopped):
  workdir, _ = stopped
  ours, theirs = batches(workdir, 2), batches(alone, 1)
  assert len({json.dumps(batch) for batch in theirs}) == CODEC_STEPS + STEPS, (
    'no two batches are alike'
  )
  assert ours == theirs[:-1]
  assert_same_figures(logged(workdir), logged(alone)[:-1])


def test_sigterm_to_one_saves_the_same_step_in_both(stopped):
  workdir, (_, second) = stopped
  assert sorted(path.name for path in (workdir / 'checkpoints' / 'omni').iterdir()) == [
    str(SAVED),
    '3',
  ]  # agreed one step later
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
  assert [
    len(list((workdir / 'tensorboard' / stage).iterdir()))
    for stage in ('codec', 'omni')
  ] == [1, 1]
  said = [
    line.partition('] ')[2] for line in (workdir / 'log.txt').read_text().splitlines()
  ]
  assert len(said) == 2 + CODEC_STEPS + 3 and said[0] == 'stage codec on 2 x cpu'
  assert all(line in first.out for line in said) and not any(
    line in second.out for line in said
  )
  assert json.loads((workdir / 'config.json').read_text())['distributed'] is True


def test_one_process_goes_on_where_two_stopped(alone, stopped, folder):
  parts = folder / 'stopped_then_one'
  shutil.copytree(stopped[0], parts)
  (done,) = run(parts, 1, stages=OMNI)
  assert done.code == 0 and f'omni: resumed at step 3 of {STEPS}' in done.out, done
  assert batches(parts, 1) == batches(alone, 1)[-1:]
  assert_same_figures(logged(parts), logged(alone))


def test_two_processes_go_on_where_one_stopped_and_one_evaluates(alone, folder):
  parts = folder / 'alone_then_two'
  shutil.copytree(alone, parts)
  shutil.rmtree(parts / 'checkpoints' / 'omni' / str(STEPS))
  first, second = run(parts, 2, stages=OMNI)
  assert first.code == second.code == 0, (first, second)
  assert f'omni: resumed at step {SAVED} of {STEPS}' in first.out
  assert batches(parts, 2) == batches(alone, 1)[-(STEPS - SAVED) :]
  assert_same_figures(logged(parts), logged(alone))
  assert f'evaluates step {STEPS} of {parts}' in first.out
  assert 'evaluates' not in second.out


@pytest.mark.parametrize(
  'axis', ['fsdp', pytest.param('context', marks=pytest.mark.long)]
)
def test_weights_and_positions_may_lie_across_the_processes(alone, folder, axis):
  """Over fsdp every process gives rows of its own, over context both give the same (as over tensor); the steps are the same ones."""
  parts = folder / f'over_{axis}'
  shutil.copytree(alone / 'checkpoints' / 'codec', parts / 'checkpoints' / 'codec')
  done = run(parts, 2, '--config.mesh.data=1', f'--config.mesh.{axis}=2', stages=OMNI)
  assert [one.code for one in done] == [0, 0], done
  own = [pathlib.Path(f'{parts}.notes.{k}').read_text().splitlines() for k in range(2)]
  for first, second, whole in zip(*own, batches(alone, 1)[CODEC_STEPS:], strict=True):
    first, second = json.loads(first), json.loads(second)
    assert first | second == whole and (first == second) == (axis != 'fsdp')
  theirs = [line for line in logged(alone) if line['stage'] == 'omni']
  assert_same_figures(logged(parts), theirs)


def test_an_error_in_one_process_ends_both(alone, folder):
  parts = folder / 'torn'
  shutil.copytree(alone / 'checkpoints' / 'codec', parts / 'checkpoints' / 'codec')
  first, second = run(parts, 2, stages=OMNI, FAILS_AT=(1, '1'))
  assert (
    second.code == 2 and 'error: process 1 of 2: torn on this host' in second.err
  ), second
  assert first.code not in (0, 75), first


@pytest.mark.parametrize(
  'arguments, said',
  [
    (
      ['--config.loader.lanes=1'],
      'config.loader.lanes=1 must divide the 4 rows of a batch and be a multiple of the number of processes, 2',
    ),
    (['--config.mesh.data=1'], 'has 1 of 2 devices'),
  ],
  ids=['lanes', 'mesh'],
)
def test_what_does_not_divide_is_refused_by_all_before_training(
  folder, arguments, said
):
  first, second = run(folder / 'refused', 2, *arguments)
  assert first.code == second.code == 2, (first, second)
  assert (
    first.err.count('error') == 1 and said in first.err and 'Traceback' not in first.err
  )
  assert 'error' not in second.err
  assert not (folder / 'refused').exists()


def test_every_process_gives_the_rows_that_its_devices_hold():
  address, environment = (
    free_address(),
    os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
  )
  processes = [
    subprocess.Popen(
      [sys.executable, str(PARTS), address, str(k)],
      env=environment,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    for k in range(2)
  ]
  try:
    said = [process.communicate(timeout=SECONDS)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], said
  assert "{'data': 4} 0 2" in said[0] and "{'data': 4} 1 2" in said[1], said
  for out in said:  # the rows of both are the same where tensor lies across them
    assert "{'tensor': 4} 0 1" in out and 'several processes take all of them' in out, (
      said
    )
