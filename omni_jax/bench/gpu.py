"""Checks and times what is special to a GPU, in one command.

python -m omni_jax.bench gpu [--torch=PYTHON] [--out=FILE.json]

1. Kernels: attention and experts against their references, gradients included.
2. The train step of configs/omni_1b.py, text alone and with all media, and that of
   transformers on the same decoder (with --torch).
3. The start of configs/digits.py: the seconds of a process that compiles the update of
   the omni stage and runs it twice.

Every part is a process of its own, one after the other, and one that fails does not end
the others. --only=NAME runs the parts whose names contain NAME. It has run only on CPUs
yet.
"""

from collections.abc import Sequence
import json
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import flags
from etils import epath

from omni_jax.command_line import show_help
from omni_jax.errors import run_command, UserError
from omni_jax.paths import checked

TIMEOUT = 240.0  # seconds for a part
ROWS = 8
STEP = ['step', '--apart', '--rounds=3', '--steps=3', '--config.distributed=False']
STEP += [f'--config.data.budget.rows={ROWS}']
DIGITS = ['our_step', '--config=configs/digits.py', '--config.compilation_cache=']

_FLAGS = flags.FlagValues()
flags.DEFINE_string(
  'torch', '', 'interpreter that has torch and transformers', flag_values=_FLAGS
)
flags.DEFINE_string('only', '', 'part of the names of parts to run', flag_values=_FLAGS)
flags.DEFINE_string('out', '', 'JSON file for the results', flag_values=_FLAGS)


class Part(NamedTuple):
  """A part of the benchmark: the module omni_jax.bench.NAME and its flags."""

  name: str
  command: Sequence[str]


def parts(torch: str) -> list[Part]:
  """Returns all parts in order.

  Args:
    torch: interpreter of the rival; '' for no rival.
  """
  rival = [f'--torch={torch}'] if torch else []
  return [
    Part('kernels', ['kernels']),
    Part('omni_1b, text', [*STEP, '--config=configs/omni_1b.py:text', *rival]),
    Part('omni_1b, all media', [*STEP, '--config=configs/omni_1b.py']),
    Part('start of digits', DIGITS),
  ]


def run_part(part: Part) -> dict[str, Any]:
  """Returns the seconds of a part, and its output or the last line of its error."""
  module, *arguments = part.command
  start = time.perf_counter()
  try:
    result = subprocess.run(
      [sys.executable, '-m', f'omni_jax.bench.{module}', *arguments],
      capture_output=True,
      text=True,
      timeout=TIMEOUT,
      stdin=subprocess.DEVNULL,
    )
  except subprocess.TimeoutExpired:
    return {'seconds': TIMEOUT, 'error': f'not finished after {TIMEOUT:.0f} s'}
  outcome: dict[str, Any] = {'seconds': time.perf_counter() - start}
  if result.returncode:
    lines = result.stderr.strip().splitlines() or ['no message']
    return outcome | {'error': f'exit code {result.returncode}: {lines[-1]}'}
  return outcome | {'output': result.stdout.strip().splitlines()}


def main() -> None:
  show_help(_FLAGS, sys.argv, __doc__)
  _FLAGS(sys.argv)
  chosen = [part for part in parts(_FLAGS.torch) if _FLAGS.only in part.name]
  if not chosen:
    names = ', '.join(part.name for part in parts(''))
    raise UserError(
      f'--only={_FLAGS.only}: no part has this in its name; there are {names}'
    )
  results = {}
  for part in chosen:
    outcome = run_part(part)
    results[part.name] = outcome
    print(f'{part.name} ({outcome["seconds"]:.0f} s)', flush=True)
    for line in outcome.get('output', [outcome.get('error')]):
      print(f'  {line}', flush=True)
  if _FLAGS.out:
    file = epath.Path(checked(_FLAGS.out, '--out'))
    file.write_text(json.dumps(results, indent=1) + '\n')
  if any('error' in outcome for outcome in results.values()):
    raise UserError('some parts failed: see above')


if __name__ == '__main__':
  run_command(main)
