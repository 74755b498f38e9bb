"""The sweep starts the right runs, resumes, and reports failures; no run is real."""

import json
import runpy
import shlex
import sys

import pytest
from samples import ROOT

from omni_jax.errors import UserError

SWEEP = runpy.run_path(str(ROOT / 'launch' / 'sweep.py'))
CONFIG = f'--config={ROOT}/configs/tiny.py'
FOUR_RUNS = [
  '--sweep',
  'omni.optim.lr=1e-3,2e-3',
  '--sweep',
  'seed=0,1',
  '--config.omni.steps=4',
]


class Runs:
  """Takes the place of the runs: writes a run's config and metrics, or fails.

  Attributes:
    commands: the commands that were started.
  """

  def __init__(self, *codes):
    self._codes = list(codes)  # exit codes of the next runs; 0 afterwards
    self.commands = []

  def __call__(self, command):
    self.commands.append(command)
    code = self._codes.pop(0) if self._codes else 0
    if not code:
      write_run(command)
    return code


def write_run(command):
  """Writes the folder of a finished run, as its command would."""
  values = {}
  for argument in command:
    name, _, value = argument.partition('=')
    if name == '--workdir':
      folder = ROOT / value
    elif name.startswith('--config.'):
      values[name.removeprefix('--config.')] = value
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(values))
  metrics = {'stage': 'omni', 'step': 4, 'seconds': 60, 'loss/text': 1.5}
  (folder / 'metrics.jsonl').write_text(json.dumps(metrics) + '\n')


def call(workdir, *args, run=None):
  """Runs the sweep's main function in this process; returns its exit code."""
  return SWEEP['main']([CONFIG, f'--workdir={workdir}', *args], run)


def test_every_combination_runs_in_a_folder_of_its_own(tmp_path, capsys):
  assert call(tmp_path / 'x', *FOUR_RUNS, '--dry_run') == 0
  commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
  assert len(commands) == 4
  assert not list(tmp_path.iterdir())
  assert commands[1] == [
    sys.executable,
    '-m',
    'omni_jax.train',
    CONFIG,
    f'--workdir={tmp_path}/x/omni.optim.lr=1e-3,seed=1',
    '--config.omni.steps=4',
    '--config.omni.optim.lr=1e-3',
    '--config.seed=1',
  ]


@pytest.mark.parametrize(
  'text, values',
  [
    ('seed=0', ['seed=0']),
    ('config.seed=0, 1', ['seed=0', 'seed=1']),
    ("omni.freeze=(),('a','b')", ['omni.freeze=()', "omni.freeze=('a','b')"]),
    ("a='x,y',z", ["a='x,y'", 'a=z']),
  ],
)
def test_commas_in_brackets_and_quotes_are_part_of_a_value(text, values):
  assert SWEEP['settings_of'](text) == values
  assert not set(SWEEP['folder_name'](values)) & set(' \'"()[]*')


def test_a_failed_run_is_reported_and_repeated_by_the_same_command(tmp_path, capsys):
  runs = Runs(0, 7, 0, 0)
  assert call(tmp_path, *FOUR_RUNS, run=runs) == 1
  out, err = capsys.readouterr()
  assert len(runs.commands) == 4
  assert 'failed with exit code 7' in out
  assert err == 'sweep: 1 of 4 runs failed: omni.optim.lr=1e-3,seed=1\n'
  second = Runs()
  assert call(tmp_path, *FOUR_RUNS, run=second) == 0
  failed_command = runs.commands[1]
  assert second.commands == [failed_command]
  assert failed_command[-1] == '--config.seed=1'
  out, err = capsys.readouterr()
  assert out.count('already finished') == 3
  assert '1.5\u00a0±\u00a00' in out
  assert not err
  assert 'omni.optim.lr' in (tmp_path / 'compare.html').read_text()


def test_a_finished_run_with_another_override_runs_again(tmp_path):
  sweep = (tmp_path / 'a', '--sweep', 'seed=0')
  call(*sweep, run=Runs())
  failing = Runs(3)
  assert call(*sweep, '--config.omni.steps=8', run=failing) == 1
  assert failing.commands


def test_a_preemption_ends_the_sweep_and_is_not_a_failure(tmp_path):
  runs = Runs(0, 75)
  assert call(tmp_path, *FOUR_RUNS, run=runs) == 75
  assert len(runs.commands) == 2
  assert len(json.loads((tmp_path / 'sweep.json').read_text())) == 1


@pytest.mark.parametrize(
  'args, message',
  [
    (['--sweep', 'seed'], 'give a key of the config'),
    (['--sweep', 'seed='], 'give a key of the config'),
    (['--sweep', 'seed=0,0'], 'two runs would be called seed=0'),
    (['--sweep', 'seed=0', '--colour=red'], '--colour=red is unknown'),
    (['--sweep', 'seed=0', '--config=no.py'], 'no.py: no such file'),
  ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, args, message):
  with pytest.raises(UserError, match=message):
    call(tmp_path / 'x', *args)
  assert not list(tmp_path.iterdir())


def test_the_sweep_waits_for_a_command_and_returns_its_exit_code():
  assert SWEEP['run_to_end']([sys.executable, '-c', 'raise SystemExit(5)']) == 5
