"""Trains every combination of some config values and compares the runs at the end.

  python launch/sweep.py --config=configs/digits.py --workdir=runs/sweep \\
    --sweep 'omni.optim.lr=1e-3,2e-3' --sweep 'seed=0,1,2' \\
    [--config.omni.steps=400 ...] [--dry_run]

Each run has a folder of its own under --workdir, named after its values. The same
command resumes a sweep that was stopped and skips finished runs. A run that fails is
reported, the other runs still start, and the exit code is then 1.
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

from omni_jax.errors import PREEMPTED, run_command, UserError
from omni_jax.evaluate.compare import compare

Runner = Callable[[list[str]], int]  # runs a command and returns its exit code


def settings_of(argument: str) -> list[str]:
  """Returns the settings of an argument: 'a.b=1,(2,3)' -> ['a.b=1', 'a.b=(2,3)'].

  Commas inside brackets or quotes do not separate values.

  Raises:
    UserError: if the key or the values are missing.
  """
  key, equals, text = argument.partition('=')
  values = re.findall(r"""(?:\([^)]*\)|\[[^]]*\]|'[^']*'|"[^"]*"|[^,'"(\[])+""", text)
  if not key or not equals or not values:
    raise UserError(
      f'--sweep={argument!r}: give a key of the config and its values, '
      "such as 'omni.optim.lr=1e-3,2e-3'"
    )
  key = key.removeprefix('config.')
  return [f'{key}={value.strip()}' for value in values]


def folder_name(settings: Sequence[str]) -> str:
  """Returns the name of a run's folder, which needs no quotes in a shell."""
  return re.sub(r'[^\w.=,+-]+', '_', ','.join(settings))


def commands_of(
  config: str, workdir: pathlib.Path, sweeps: Sequence[str], overrides: Sequence[str]
) -> dict[str, list[str]]:
  """Returns the command of every run by the name of its folder.

  Args:
    config: config file of all runs.
    workdir: folder of the sweep.
    sweeps: keys and their values, as of --sweep.
    overrides: flags --config.KEY=VALUE of all runs.

  Raises:
    UserError: if two runs would have the same folder.
  """
  commands: dict[str, list[str]] = {}
  for settings in itertools.product(*map(settings_of, sweeps)):
    name = folder_name(settings)
    if name in commands:
      raise UserError(f'two runs would be called {name}; give every value only once')
    command = [sys.executable, '-m', 'omni_jax.train', f'--config={config}']
    command.append(f'--workdir={workdir / name}')
    command.extend(overrides)
    command.extend(f'--config.{setting}' for setting in settings)
    commands[name] = command
  return commands


def run_to_end(command: list[str]) -> int:
  """Runs a command to its end and returns its exit code.

  A SIGTERM to the sweep is passed on to the command, so that the run saves.
  """
  process = subprocess.Popen(command)
  previous_handler = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
  try:
    return process.wait()
  finally:
    signal.signal(signal.SIGTERM, previous_handler)


def run_all(commands: dict[str, list[str]], workdir: pathlib.Path, run: Runner) -> int:
  """Runs the commands that are not finished, and returns the exit code of the sweep.

  sweep.json stores the command and the exit code of each run.

  Args:
    commands: command of each run by the name of its folder.
    workdir: folder of the sweep.
    run: runs a command and returns its exit code.

  Returns:
    0 if all runs are finished, 1 if one failed, PREEMPTED if one was preempted.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  log = workdir / 'sweep.json'
  results = json.loads(log.read_text()) if log.exists() else {}
  codes: dict[str, int] = {}
  for number, (name, command) in enumerate(commands.items(), 1):
    arguments = command[1:]
    start = time.monotonic()
    label = f'sweep: {number} of {len(commands)}, {name}'
    if results.get(name) == {'arguments': arguments, 'code': 0}:
      print(f'{label}: already finished', flush=True)
      codes[name] = 0
      continue
    print(label, flush=True)
    codes[name] = run(command)
    if codes[name] == PREEMPTED:
      print('sweep: preempted and saved; the same command resumes', flush=True)
      return PREEMPTED
    results[name] = {'arguments': arguments, 'code': codes[name]}
    log.write_text(json.dumps(results, indent=1) + '\n')
    outcome = 'finished'
    if codes[name]:
      outcome = f'failed with exit code {codes[name]} (its message is above)'
    minutes = (time.monotonic() - start) / 60
    print(f'{label}: {outcome} after {minutes:.1f} min', flush=True)
  return summarise(codes, workdir)


def summarise(codes: dict[str, int], workdir: pathlib.Path) -> int:
  """Compares the finished runs, reports the failed ones and returns the exit code.

  Args:
    codes: exit code of each run by the name of its folder.
    workdir: folder of the sweep; compare.html is written there.
  """
  finished = [workdir / name for name, code in codes.items() if not code]
  failed = [name for name, code in codes.items() if code]
  if finished:
    out = workdir / 'compare.html'
    print(compare(finished, out))
    print(f'sweep: wrote {out}')
  if not failed:
    return 0
  message = f'sweep: {len(failed)} of {len(codes)} runs failed: {"; ".join(failed)}'
  print(message, file=sys.stderr)
  return 1


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  parser = argparse.ArgumentParser(
    prog='python launch/sweep.py',
    allow_abbrev=False,
    description='Trains every combination of config values. '
    'Other flags --config.KEY=VALUE apply to all runs.',
  )
  parser.add_argument('--config', required=True, help='config file of all runs')
  parser.add_argument(
    '--workdir', required=True, type=pathlib.Path, help='folder of the runs'
  )
  parser.add_argument(
    '--sweep',
    required=True,
    action='append',
    metavar='KEY=VALUE,VALUE',
    help='key of the config and its values; may be given several times',
  )
  parser.add_argument('--dry_run', action='store_true', help='only print the commands')
  return parser


def main(arguments: Sequence[str], run: Runner = run_to_end) -> int:
  """Runs the sweep and returns its exit code; see `run_all`.

  Args:
    arguments: command line without the program.
    run: runs a command and returns its exit code.

  Raises:
    UserError: for a wrong argument; nothing is written then.
  """
  flags, overrides = make_parser().parse_known_args(arguments)
  for override in overrides:
    if not re.match(r'--config\.[^=]+=', override):
      raise UserError(
        f'{override} is unknown; give overrides of the config as --config.KEY=VALUE'
      )
  if not pathlib.Path(flags.config).is_file():
    raise UserError(f'--config={flags.config}: no such file')
  commands = commands_of(flags.config, flags.workdir, flags.sweep, overrides)
  if flags.dry_run:
    for command in commands.values():
      print(shlex.join(command))
    return 0
  return run_all(commands, flags.workdir, run)


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
