"""Trains every combination of some config values, one run after another, and compares them at the end.

  python launch/sweep.py --config=configs/digits.py --workdir=runs/sweep --sweep 'omni.optim.lr=1e-3,2e-3' \\
    --sweep 'seed=0,1,2' [--config.omni.steps=400 ...] [--dry_run]

Each run has a folder of its own under --workdir, named after its values. The same command goes on where it stopped;
what is finished is skipped. A run that fails is reported and the others go on; the exit code is then 1.
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
Start = Callable[[list[str]], int]  # a command -> its exit code


def values_of(sweep: str) -> list[str]:
  """'a.b=1,(2,3)' -> ['a.b=1', 'a.b=(2,3)']: commas inside brackets or quotes separate nothing."""
  key, equals, text = sweep.partition('=')
  values = re.findall(r"""(?:\([^)]*\)|\[[^]]*\]|'[^']*'|"[^"]*"|[^,'"(\[])+""", text)
  if not key or not equals or not values:
    raise UserError(
      f"--sweep={sweep!r}: give a key of the config and its values, such as 'omni.optim.lr=1e-3,2e-3'"
    )
  return [f'{key.removeprefix("config.")}={value.strip()}' for value in values]


def name_of(setting: Sequence[str]) -> str:
  """A folder's name that needs no quotes."""
  return re.sub(r'[^\w.=,+-]+', '_', ','.join(setting))


def runs_of(
  config: str, workdir: pathlib.Path, sweeps: Sequence[str], overrides: Sequence[str]
) -> dict[str, list[str]]:
  """Name -> command of every run."""
  commands: dict[str, list[str]] = {}
  for setting in itertools.product(*map(values_of, sweeps)):
    if (name := name_of(setting)) in commands:
      raise UserError(f'two runs would be called {name}; give every value once')
    commands[name] = [
      sys.executable,
      '-m',
      'omni_jax.train',
      f'--config={config}',
      f'--workdir={workdir / name}',
      *overrides,
      *(f'--config.{value}' for value in setting),
    ]
  return commands


def start(command: list[str]) -> int:
  """Runs it to its end; a SIGTERM to the sweep is passed on, so that the run saves."""
  process = subprocess.Popen(command)
  before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
  try:
    return process.wait()
  finally:
    signal.signal(signal.SIGTERM, before)


def sweep(commands: dict[str, list[str]], workdir: pathlib.Path, begin: Start) -> int:
  """Runs what is not finished yet; sweep.json remembers the command and the exit code of each."""
  workdir.mkdir(parents=True, exist_ok=True)
  log = workdir / 'sweep.json'
  done = json.loads(log.read_text()) if log.exists() else {}
  codes = {}
  for k, (name, command) in enumerate(commands.items()):
    arguments, before = command[1:], time.monotonic()
    said = f'sweep: {k + 1} of {len(commands)}, {name}'
    if done.get(name) == {'arguments': arguments, 'code': 0}:
      print(f'{said}: already finished', flush=True)
      codes[name] = 0
      continue
    print(said, flush=True)
    codes[name] = begin(command)
    if codes[name] == PREEMPTED:
      print('sweep: preempted and saved; the same command goes on', flush=True)
      return PREEMPTED
    done[name] = {'arguments': arguments, 'code': codes[name]}
    log.write_text(json.dumps(done, indent=1) + '\n')
    ended = (
      'finished'
      if not codes[name]
      else f'failed with exit code {codes[name]}, its message is above'
    )
    print(
      f'{said}: {ended} after {(time.monotonic() - before) / 60:.1f} min', flush=True
    )
  good = [workdir / name for name, code in codes.items() if not code]
  if good:
    print(compare(good, workdir / 'compare.html'))
    print(f'sweep: wrote {workdir / "compare.html"}')
  if failed := [name for name, code in codes.items() if code]:
    print(
      f'sweep: {len(failed)} of {len(codes)} runs failed: {"; ".join(failed)}',
      file=sys.stderr,
    )
  return 1 if failed else 0


def main(arguments: Sequence[str], begin: Start = start) -> int:
  parser = argparse.ArgumentParser(
    prog='python launch/sweep.py',
    allow_abbrev=False,
    description='Trains every '
    'combination of config values. Further --config.KEY=VALUE hold for all runs.',
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
      f'{unknown[0]} is unknown; overrides of the config are given as --config.KEY=VALUE'
    )
  if not pathlib.Path(flags.config).is_file():
    raise UserError(f'--config={flags.config}: no such file')
  commands = runs_of(flags.config, flags.workdir, flags.sweep, overrides)
  if flags.dry_run:
    print('\n'.join(map(shlex.join, commands.values())))
    return 0
  return sweep(commands, flags.workdir, begin)


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
