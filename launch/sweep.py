"""Trains every combination of some config values and compares the runs at the end.

  python launch/sweep.py --config=configs/digits.py --workdir=runs/sweep \\
    --sweep 'omni.optim.lr=1e-3,2e-3' --sweep 'seed=0,1,2' \\
    [--config.omni.steps=400 ...] [--dry_run]

Each run has a folder of its own under --workdir, named after its values. The same
command goes on where it stopped; what is finished is skipped. A run that fails is
reported and the others go on; the exit code is then 1.
"""

import argparse
from collections.abc import Callable, Sequence
import itertools
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.compare import compare

PREEMPTED = 75  # of omni_jax.train: saved, start me again
Runner = Callable[[list[str]], int]  # runs a command and returns its exit code


def settings_of(argument: str) -> list[str]:
  """Splits a key and its values: 'a.b=1,(2,3)' -> ['a.b=1', 'a.b=(2,3)'].

  Commas inside brackets or quotes separate nothing.
  """
  key, equals, text = argument.partition('=')
  values = re.findall(r"""(?:\([^)]*\)|\[[^]]*\]|'[^']*'|"[^"]*"|[^,'"(\[])+""", text)
  if not key or not equals or not values:
    raise UserError(
      f'--sweep={argument!r}: give a key of the config and its values, '
      "such as 'omni.optim.lr=1e-3,2e-3'"
    )
  return [f'{key.removeprefix("config.")}={value.strip()}' for value in values]


def folder_name(settings: Sequence[str]) -> str:
  """Returns a run's folder, by a name that needs no quotes."""
  return re.sub(r'[^\w.=,+-]+', '_', ','.join(settings))


def commands_of(
  config: str, workdir: pathlib.Path, sweeps: Sequence[str], overrides: Sequence[str]
) -> dict[str, list[str]]:
  """Returns the command of every run, by the name of its folder."""
  commands: dict[str, list[str]] = {}
  for settings in itertools.product(*map(settings_of, sweeps)):
    name = folder_name(settings)
    if name in commands:
      raise UserError(f'two runs would be called {name}; give every value once')
    commands[name] = [
      sys.executable,
      '-m',
      'omni_jax.train',
      f'--config={config}',
      f'--workdir={workdir / name}',
      *overrides,
      *(f'--config.{setting}' for setting in settings),
    ]
  return commands


def run_to_end(command: list[str]) -> int:
  """Runs a command to its end and returns its exit code.

  A SIGTERM to the sweep is passed on, so that the run saves.
  """
  process = subprocess.Popen(command)
  before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
  try:
    return process.wait()
  finally:
    signal.signal(signal.SIGTERM, before)


def run_all(commands: dict[str, list[str]], workdir: pathlib.Path, run: Runner) -> int:
  """Runs what is not finished yet and returns the exit code of the sweep.

  sweep.json remembers the command and the exit code of each run.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  log = workdir / 'sweep.json'
  done = json.loads(log.read_text()) if log.exists() else {}
  codes = {}
  for k, (name, command) in enumerate(commands.items()):
    arguments = command[1:]
    start = time.monotonic()
    label = f'sweep: {k + 1} of {len(commands)}, {name}'
    if done.get(name) == {'arguments': arguments, 'code': 0}:
      print(f'{label}: already finished', flush=True)
      codes[name] = 0
      continue
    print(label, flush=True)
    codes[name] = run(command)
    if codes[name] == PREEMPTED:
      print('sweep: preempted and saved; the same command goes on', flush=True)
      return PREEMPTED
    done[name] = {'arguments': arguments, 'code': codes[name]}
    log.write_text(json.dumps(done, indent=1) + '\n')
    outcome = 'finished'
    if codes[name]:
      outcome = f'failed with exit code {codes[name]}, its message is above'
    minutes = (time.monotonic() - start) / 60
    print(f'{label}: {outcome} after {minutes:.1f} min', flush=True)
  finished = [workdir / name for name, code in codes.items() if not code]
  if finished:
    print(compare(finished, workdir / 'compare.html'))
    print(f'sweep: wrote {workdir / "compare.html"}')
  if failed := [name for name, code in codes.items() if code]:
    print(
      f'sweep: {len(failed)} of {len(codes)} runs failed: {"; ".join(failed)}',
      file=sys.stderr,
    )
  return 1 if failed else 0


def main(arguments: Sequence[str], run: Runner = run_to_end) -> int:
  parser = argparse.ArgumentParser(
    prog='python launch/sweep.py',
    allow_abbrev=False,
    description='Trains every combination of config values. '
    'Further --config.KEY=VALUE hold for all runs.',
  )
  parser.add_argument('--config', required=True, help='the config file of all runs')
  parser.add_argument(
    '--workdir', required=True, type=pathlib.Path, help='folder of the runs'
  )
  parser.add_argument(
    '--sweep',
    required=True,
    action='append',
    metavar='KEY=VALUE,VALUE',
    help='may be repeated',
  )
  parser.add_argument('--dry_run', action='store_true', help='print the commands only')
  flags, overrides = parser.parse_known_args(arguments)
  if unknown := [text for text in overrides if not re.match(r'--config\.[^=]+=', text)]:
    raise UserError(
      f'{unknown[0]} is unknown; overrides of the config are given as '
      '--config.KEY=VALUE'
    )
  if not pathlib.Path(flags.config).is_file():
    raise UserError(f'--config={flags.config}: no such file')
  commands = commands_of(flags.config, flags.workdir, flags.sweep, overrides)
  if flags.dry_run:
    print('\n'.join(map(shlex.join, commands.values())))
    return 0
  return run_all(commands, flags.workdir, run)


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
