"""python -m omni_jax.evaluate --workdir=DIR [--step=N] [--weights=raw] [--data=F.jsonl] [--out=DIR] [--follow]"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import sys

from absl import logging
from etils import epath

from omni_jax.errors import run_command, UserError


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.evaluate',
    description='Scores a checkpoint and draws a '
    'report: metrics.json, report.html and media/.',
    allow_abbrev=False,
  )
  parser.add_argument('--workdir', required=True, help='folder of the run')
  parser.add_argument(
    '--step', type=int, help='checkpoint to evaluate; default: the last'
  )
  parser.add_argument(
    '--weights',
    choices=('average', 'raw'),
    default='average',
    help='the moving average of the weights where the run keeps one, or the weights as trained',
  )
  parser.add_argument(
    '--data', help='JSON lines to evaluate on instead of the run’s own test data'
  )
  parser.add_argument('--out', help='folder to write; default: WORKDIR/eval/STEP')
  parser.add_argument('--seed', type=int, default=0, help='of prompts and sampling')
  parser.add_argument(
    '--sampling',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='in the place of a value of '
    "the run's config.generate, such as guidance=2; may be repeated",
  )
  parser.add_argument(
    '--follow',
    action='store_true',
    help='evaluate every new step of a run that is being trained, until it is done',
  )
  return parser.parse_args(arguments)


def sampling_of(pairs: Sequence[str]) -> dict[str, float]:
  """'guidance=2' -> {'guidance': 2.0}."""
  found = {}
  for pair in pairs:
    key, _, value = pair.partition('=')
    try:
      found[key] = float(value) if '.' in value else int(value)
    except ValueError as error:
      raise UserError(
        f'--sampling {pair}: give KEY=NUMBER, such as guidance=2'
      ) from error
  return found


def main(arguments: Sequence[str]) -> None:
  flags = parse(arguments)
  sampling = sampling_of(flags.sampling)
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
      '--follow evaluates every new step into WORKDIR/eval/STEP: give neither --step nor --out'
    )
  logging.set_verbosity(logging.ERROR)  # Orbax reports every folder that it opens
  # Only now: a mistake above is answered at once, without waiting for jax.
  from omni_jax.evaluate.limits import limits_of
  from omni_jax.evaluate.run import restore, run

  log = functools.partial(print, flush=True)

  def evaluate(step: int | None) -> None:
    trained = restore(flags.workdir, step=step, weights=flags.weights)
    limits = limits_of(trained.config)
    limits = dataclasses.replace(limits, sampling=limits.sampling | sampling)
    run(
      trained,
      flags.workdir,
      flags.out,
      seed=flags.seed,
      limits=limits,
      data=flags.data,
      log=log,
    )

  if not flags.follow:
    evaluate(flags.step)
    return
  from omni_jax.checkpoint.restore import last_step, steps_of
  from omni_jax.evaluate.follow import follow

  follow(
    evaluate,
    functools.partial(steps_of, flags.workdir),
    functools.partial(last_step, flags.workdir),
    log=log,
  )


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
