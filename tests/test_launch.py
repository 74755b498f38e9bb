"""The launch scripts build the right commands; nothing is really launched."""

import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time

from launching import environment, executable, LAUNCH, run
import pytest

SCRIPTS = [*sorted(LAUNCH.glob('*.sh')), LAUNCH.parent / '.ci' / 'run']


def fake_python(folder: pathlib.Path, script: str) -> str:
  """Writes a bash script that takes the place of python; returns its path."""
  return executable(folder / 'python', script)


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path):
  places = f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
  shellcheck = shutil.which('shellcheck', path=places)
  if not shellcheck:
    pytest.skip("shellcheck is in the extra 'dev'")
  result = subprocess.run([shellcheck, path], capture_output=True, text=True)
  assert not result.returncode, result.stdout


@pytest.mark.parametrize('script', sorted(path.name for path in LAUNCH.glob('*.sh')))
def test_a_call_without_arguments_prints_the_usage_in_one_line(script):
  result = run(script)
  assert result.returncode == 2
  assert result.stderr.startswith('usage:')
  assert len(result.stderr.splitlines()) == 1


def test_local_prints_the_command_with_overrides():
  arguments = ('configs/digits.py', 'runs/a b', '--config.omni.steps=7')
  result = run('local.sh', *arguments, DRY_RUN='1')
  assert shlex.split(result.stdout) == [
    'python3',
    '-m',
    'omni_jax.train',
    '--config=configs/digits.py',
    '--workdir=runs/a b',
    '--config.omni.steps=7',
  ]


@pytest.mark.parametrize('codes, starts', [([75, 75, 0], 3), ([1], 1)])
def test_local_starts_again_only_after_a_preemption(tmp_path, codes, starts):
  (tmp_path / 'codes').write_text(''.join(f'{code}\n' for code in codes))
  python = fake_python(
    tmp_path,
    f'cd {tmp_path}; echo started >> starts\n'
    'code=$(head -n 1 codes); sed -i 1d codes; exit $code',
  )
  result = run('local.sh', 'c.py', 'dir', PYTHON=python)
  assert result.returncode == codes[-1]
  assert len((tmp_path / 'starts').read_text().split()) == starts


def test_local_starts_several_processes_that_know_each_other(tmp_path):
  python = fake_python(
    tmp_path,
    f'cd {tmp_path}\n'
    'process="$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"\n'
    'echo "$process $*" >> starts\n'
    '[ -e again ] && exit 0\n'
    '[ $JAX_PROCESS_ID = 1 ] || { sleep 0.5; touch again; }\n'
    'exit 75',
  )
  variables = {
    'PYTHON': python,
    'PROCESSES': '2',
    'JAX_COORDINATOR_ADDRESS': 'localhost:1',
  }
  result = run('local.sh', 'c.py', 'dir', '--config.seed=1', **variables)
  assert result.returncode == 0
  assert result.stderr.count('starting again') == 1
  lines = sorted((tmp_path / 'starts').read_text().splitlines())
  command = (
    'of 2 at localhost:1 -m omni_jax.train --config=c.py --workdir=dir '
    '--config.distributed=True --config.cpu_devices=1 --config.seed=1'
  )
  assert lines == [f'0 {command}'] * 2 + [f'1 {command}'] * 2


@pytest.mark.parametrize('processes', [1, 2])
def test_local_forwards_sigterm_and_does_not_start_again(tmp_path, processes):
  python = fake_python(
    tmp_path,
    f'trap "exit 75" TERM; touch {tmp_path}/started.$JAX_PROCESS_ID\n'
    'for k in $(seq 200); do sleep 0.05; done',
  )
  command = ['bash', LAUNCH / 'local.sh', 'c.py', 'dir']
  variables = environment(PYTHON=python, PROCESSES=str(processes))
  with subprocess.Popen(command, env=variables) as process:
    while len(list(tmp_path.glob('started.*'))) < processes:
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 75


def test_the_page_of_pods_is_up_to_date():
  """`python launch/pods.py --page` writes docs/pods.md from the results in docs/pods.json.

  There are results of every run in the table.
  """
  pods = runpy.run_path(str(LAUNCH / 'pods.py'))
  results = json.loads(pods['RESULTS_FILE'].read_text())
  assert set(results) == set(pods['RUNS'])
  assert pods['PAGE_FILE'].read_text() == pods['page'](results)


@pytest.mark.parametrize('name', ['README.md', 'docs/tpu.md'])
def test_other_pages_quote_the_page_of_pods(name):
  """Memory as '4.06 of 15.75'; steps as '0.42 / 0.49 / 0.56' or '0.42 to 0.56 s a step'."""
  pods = (LAUNCH.parent / 'docs' / 'pods.md').read_text()
  page = (LAUNCH.parent / name).read_text()
  number = r'\d+\.\d+'
  quoted = re.findall(f'{number} of {number}|{number} / {number} / {number}', page)
  assert quoted
  for figure in quoted:
    assert figure in pods
  for first, last in re.findall(f'({number}) to ({number}) s a step', page):
    assert re.search(f'{first} / {number} / {last}', pods)
