"""The launch scripts, without what they launch."""

import json
import os
import pathlib
import runpy
import shlex
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'


def run(script: str, *args: str, **env: str) -> subprocess.CompletedProcess:
  clean = {
    k: v for k, v in os.environ.items() if k not in ('TPU', 'ZONE', 'SOURCE', 'PYTHON')
  }
  return subprocess.run(
    ['bash', LAUNCH / script, *args], env=clean | env, capture_output=True, text=True
  )


@pytest.mark.parametrize('script', sorted(path.name for path in LAUNCH.glob('*.sh')))
def test_usage_is_refused_in_one_line(script):
  done = run(script)
  assert done.returncode == 2
  assert done.stderr.startswith('usage:') and len(done.stderr.splitlines()) == 1


def test_local_prints_the_command_with_overrides():
  done = run(
    'local.sh', 'configs/digits.py', 'runs/a b', '--config.omni.steps=7', DRY_RUN='1'
  )
  assert shlex.split(done.stdout) == [
    'python3',
    '-m',
    'omni_jax.train',
    '--config=configs/digits.py',
    '--workdir=runs/a b',
    '--config.omni.steps=7',
  ]


@pytest.mark.parametrize('codes, starts', [([75, 75, 0], 3), ([1], 1)])
def test_local_starts_again_only_after_a_preemption(tmp_path, codes, starts):
  (tmp_path / 'codes').write_text('\n'.join(map(str, codes)) + '\n')
  fake = tmp_path / 'python'
  fake.write_text(
    f'#!/bin/bash\ncd {tmp_path}; echo started >> starts\n'
    'code=$(head -n 1 codes); sed -i 1d codes; exit $code\n'
  )
  fake.chmod(0o755)
  done = run('local.sh', 'c.py', 'dir', PYTHON=str(fake))
  assert done.returncode == codes[-1]
  assert len((tmp_path / 'starts').read_text().split()) == starts


def test_local_starts_several_processes_that_know_each_other(tmp_path):
  fake = tmp_path / 'python'
  fake.write_text(
    f'#!/bin/bash\ncd {tmp_path}; echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS $*" >> starts\n'
    '[ -e again ] && exit 0; [ $JAX_PROCESS_ID = 1 ] || { sleep 0.5; touch again; }; exit 75\n'
  )
  fake.chmod(0o755)
  done = run(
    'local.sh',
    'c.py',
    'dir',
    '--config.seed=1',
    PYTHON=str(fake),
    PROCESSES='2',
    JAX_COORDINATOR_ADDRESS='localhost:1',
  )
  assert done.returncode == 0 and done.stderr.count('starting again') == 1
  lines = sorted((tmp_path / 'starts').read_text().splitlines())
  said = 'of 2 at localhost:1 -m omni_jax.train --config=c.py --workdir=dir --config.distributed=True --config.cpu_devices=1 --config.seed=1'
  assert lines == [f'0 {said}'] * 2 + [f'1 {said}'] * 2


def test_local_hands_on_sigterm_and_does_not_start_again(tmp_path):
  fake = tmp_path / 'python'
  fake.write_text(
    f'#!/bin/bash\ntrap "exit 75" TERM; touch {tmp_path}/started.$JAX_PROCESS_ID; for k in $(seq 200); do sleep 0.05; done\n'
  )
  fake.chmod(0o755)
  with subprocess.Popen(
    ['bash', LAUNCH / 'local.sh', 'c.py', 'dir'],
    env=os.environ | dict(PYTHON=str(fake), PROCESSES='2'),
  ) as process:
    while len(list(tmp_path.glob('started.*'))) < 2:
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 75


def test_tpu_vm_installs_then_trains_on_every_worker():
  done = run(
    'tpu_vm.sh',
    'configs/digits.py',
    'gs://bucket/run',
    '--config.mesh.fsdp=16',
    DRY_RUN='1',
    TPU='pod',
    ZONE='us-east5-a',
    SOURCE='https://example.org/omni_jax.git',
  )
  assert done.returncode == 0, done.stderr
  setup, train = (shlex.split(line) for line in done.stdout.splitlines())
  for command in (setup, train):
    assert command[:6] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'pod']
    assert {'--zone=us-east5-a', '--worker=all'} <= set(command)
    subprocess.run(
      ['bash', '-n', '-c', command[-1].removeprefix('--command=')], check=True
    )
  assert "'.[tpu,demo,eval]'" in setup[-1]
  assert (
    '--config.distributed=True' in train[-1] and '--config.mesh.fsdp=16' in train[-1]
  )


def test_tpu_vm_needs_a_source(tmp_path):
  copy = tmp_path / 'launch'
  copy.mkdir()
  (copy / 'tpu_vm.sh').write_text((LAUNCH / 'tpu_vm.sh').read_text())
  env = {'PATH': os.environ['PATH'], 'TPU': 'a', 'ZONE': 'b'}
  done = subprocess.run(
    ['bash', copy / 'tpu_vm.sh', 'c.py', 'dir'], env=env, capture_output=True, text=True
  )
  assert done.returncode == 2 and 'SOURCE' in done.stderr


def test_the_page_of_pods_is_made_of_its_facts():
  """docs/pods.md by `python launch/pods.py --page`, from what was measured, of every run in the table."""
  pods = runpy.run_path(str(LAUNCH / 'pods.py'))
  facts = json.loads(pods['FACTS'].read_text())
  assert set(facts) == set(pods['RUNS'])
  assert pods['PAGE'].read_text() == pods['page'](facts)
