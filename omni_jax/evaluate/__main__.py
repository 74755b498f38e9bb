"""Scores a checkpoint of a run and writes its report.

python -m omni_jax.evaluate --workdir=DIR [--step=N] [--weights=raw]
  [--data=FILE.jsonl] [--out=DIR] [--seed=N] [--sampling KEY=NUMBER]
  [--fail_under PATH=NUMBER] [--follow] [--mesh.AXIS=N]

All devices of this process share the prompts. --mesh.AXIS=N (data, expert, tensor,
context) sets another mesh than the one that suits the model, see docs/running.md.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import sys

from absl import logging
from etils import epath

from omni_jax.command_line import mesh_flags
from omni_jax.config import AVERAGE, WEIGHTS
from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.scores import missed, thresholds_of
from omni_jax.paths import checked


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Returns the flags of the command."""
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.evaluate',
    description='Scores a checkpoint and writes metrics.json, report.html and media/.',
    allow_abbrev=False,
  )
  parser.add_argument('--workdir', required=True, help='folder of the run')
  parser.add_argument(
    '--step', type=int, help='checkpoint to evaluate; default: the last one'
  )
  parser.add_argument(
    '--weights',
    choices=WEIGHTS,
    default=AVERAGE,
    help='average: the moving average of the weights, if the run keeps one; raw: the '
    'weights as trained',
  )
  parser.add_argument(
    '--data', help='JSON lines to evaluate on instead of the run’s own test data'
  )
  parser.add_argument('--out', help='folder to write; default: WORKDIR/eval/STEP')
  parser.add_argument(
    '--seed',
    type=int,
    help="seed of prompts and sampling; default: the run's config.evaluate.seed",
  )
  parser.add_argument(
    '--sampling',
    action='append',
    default=[],
    metavar='KEY=NUMBER',
    help="overrides a value of the run's config.generate, such as guidance=2; may be "
    'repeated',
  )
  parser.add_argument(
    '--fail_under',
    action='append',
    default=[],
    metavar='PATH=NUMBER',
    help='exit with 1 if a score of metrics.json is lower, such as '
    'directions.text_to_image.accuracy=0.9; may be repeated',
  )
  parser.add_argument(
    '--follow',
    action='store_true',
    help='evaluate every new step of a run that is being trained, until its end',
  )
  flags = parser.parse_args(arguments)
  for name in ('workdir', 'data', 'out'):
    path = getattr(flags, name)
    if path:
      setattr(flags, name, checked(path, f'--{name}'))
  return flags


def sampling_of(pairs: Sequence[str]) -> dict[str, float]:
  """Returns the values of pairs KEY=NUMBER: ['guidance=2'] -> {'guidance': 2}.

  Raises:
    UserError: if a value is not a number.
  """
  sampling: dict[str, float] = {}
  for pair in pairs:
    key, _, number = pair.partition('=')
    try:
      sampling[key] = float(number) if '.' in number else int(number)
    except ValueError as error:
      raise UserError(
        f'--sampling {pair}: give KEY=NUMBER, such as guidance=2'
      ) from error
  return sampling


def _check(flags: argparse.Namespace) -> None:
  """Raises UserError if the flags name no folder or file, or contradict each other."""
  if not epath.Path(flags.workdir).is_dir():
    raise UserError(
      f'--workdir={flags.workdir}: no such folder; give the one that training wrote'
    )
  if flags.data and not epath.Path(flags.data).is_file():
    raise UserError(
      f'--data={flags.data}: no such file; give JSON lines in the chat form'
    )
  if flags.follow and (flags.step is not None or flags.out):
    raise UserError(
      '--follow evaluates every new step into WORKDIR/eval/STEP: give neither --step '
      'nor --out'
    )


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  mesh, others = mesh_flags(arguments)
  flags = parse(others)
  sampling = sampling_of(flags.sampling)
  thresholds = thresholds_of(flags.fail_under)
  _check(flags)
  logging.set_verbosity(logging.ERROR)  # Orbax reports every folder that it opens
  # Imported only now: mistakes above are reported at once, without waiting for jax.
  from omni_jax.checkpoint.restore import last_step, steps_of
  from omni_jax.evaluate.follow import follow
  from omni_jax.evaluate.limits import limits_of
  from omni_jax.evaluate.run import restore, run

  log = functools.partial(print, flush=True)

  low_scores: list[str] = []

  def evaluate(step: int | None) -> None:
    trained = restore(flags.workdir, step=step, weights=flags.weights, mesh=mesh)
    limits = limits_of(trained.config)
    limits = dataclasses.replace(limits, sampling=limits.sampling | sampling)
    metrics = run(
      trained,
      flags.workdir,
      flags.out,
      seed=flags.seed,
      limits=limits,
      data=flags.data,
      log=log,
    )
    low_scores.extend(missed(metrics, thresholds))

  if not flags.follow:
    evaluate(flags.step)
  else:
    steps = functools.partial(steps_of, flags.workdir)
    last = functools.partial(last_step, flags.workdir)
    follow(evaluate, steps, last, log=log)
  for line in low_scores:
    print(f'error: --fail_under: {line}', file=sys.stderr)
  return 1 if low_scores else 0


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
