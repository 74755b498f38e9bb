"""Runs a learning-rate range test of the omni stage: the loss while the rate grows.

The test is described by Smith 2017, arXiv 1506.01186.

  python launch/lr_find.py --config=configs/digits.py --workdir=runs/digits \\
    [--config.omni.optim.kind=adamw ...]

It trains on the first 100 batches at rates from 1e-5 to 1 and stops where the loss
explodes. It writes WORKDIR/lr_find.html and prints a suggestion for
config.omni.optim.lr. The autoencoders are trained first where --workdir has none; a
later training in the same folder uses them. Nothing of the ramp itself is kept. This is
one run with one seed: a starting point, not a measurement.
"""

from collections.abc import Sequence
import math
import pathlib
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict
import numpy as np

from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.page.charts import Line, lines_chart
from omni_jax.evaluate.page.template import page
from omni_jax.train.__main__ import parse
from omni_jax.train.start import start_jax

FIRST = 1e-5  # learning rate of the first step
LAST = 1.0  # learning rate of the last step
STEPS = 100
SMOOTHING = 0.8  # weight of the old running mean in the new one
EXPLOSION = 2.0  # multiple of the smallest running mean at which the loss explodes


def rate(step: Any) -> Any:
  """Returns the learning rate of a step, on a geometric ramp.

  Args:
    step: number of the step, from 0; in the jitted step an array, like the result.
  """
  return FIRST * (LAST / FIRST) ** (step / (STEPS - 1))


def smoothed(losses: Sequence[float]) -> list[float]:
  """Returns the running means of losses, corrected for their start at zero."""
  means = []
  mean = 0.0
  for k, loss in enumerate(losses):
    mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
    means.append(mean / (1 - SMOOTHING ** (k + 1)))
  return means


class Suggestion(NamedTuple):
  """Two learning rates to start from.

  Attributes:
    steepest: rate where the smoothed loss falls fastest.
    tenth: a tenth of the rate where the smoothed loss is smallest.
  """

  steepest: float
  tenth: float


def suggestion(losses: Sequence[float]) -> Suggestion:
  """Returns two learning rates to start from.

  Args:
    losses: losses of the steps of the ramp.

  Raises:
    UserError: if the loss never falls.
  """
  curve = np.array(smoothed(losses))
  lowest = int(curve.argmin())
  if lowest < 2:
    raise UserError(f'the loss does not fall at any rate from {FIRST:g} to {LAST:g}')
  slopes = np.gradient(curve)[: lowest + 1]
  steepest = int(slopes.argmin())
  return Suggestion(rate(steepest), rate(lowest) / 10)


def ramp(config: ConfigDict, workdir: str) -> list[float]:
  """Trains on the ramp, and returns the losses up to the first that explodes.

  A loss explodes if it is too far above the smallest one or not finite; one that is not
  finite is left out.
  """
  import jax

  from omni_jax.sharding import place
  from omni_jax.train import stages
  from omni_jax.train.numerics import TOTAL_LOSS

  run = stages.Run(config, workdir)
  losses = []
  pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
  with jax.set_mesh(run.mesh):
    for name in run.run_config.autoencoders:
      if name in config.stages:
        stages.train_autoencoder(run, name)
    stage = stages.omni_stage(run, stages.restore_frozen(run), rate=rate)
    try:
      state = stage.state
      for _ in range(STEPS):
        batch = place(next(stage.batches), run.mesh)
        state, metrics = stage.step(state, batch)
        losses.append(float(metrics[TOTAL_LOSS]))
        means = smoothed(losses)
        has_exploded = means[-1] > EXPLOSION * min(means)
        if has_exploded or not math.isfinite(losses[-1]):
          break
    finally:
      stage.batches.close()
  return [loss for loss in losses if math.isfinite(loss)]


def main() -> None:
  """Runs the command: the ramp, the page and the suggestion.

  Raises:
    UserError: for a wrong flag or config, or if the loss never falls.
  """
  config, workdir = parse()
  logging.set_verbosity(logging.ERROR)
  start_jax(config)
  losses = ramp(config, workdir)
  steepest, tenth = suggestion(losses)
  rates = [rate(step) for step in range(len(losses))]
  conclusion = (
    f'the loss falls fastest at {steepest:.1e}; a tenth of the rate of its minimum is '
    f'{tenth:.1e}: try --config.omni.optim.lr={tenth:.1e}'
  )
  no_spread = np.zeros(len(losses))
  lines = [Line(rates, smoothed(losses), no_spread), Line(rates, losses, no_spread)]
  title = 'loss/total, smoothed (blue) and as measured (red)'
  chart = lines_chart(title, lines, unit='rate', log_x=True)
  chart = f'<div style="max-width:560px">{chart}</div>'
  head = f'<h1>Learning rate</h1><p>{conclusion}</p>'
  out = pathlib.Path(workdir) / 'lr_find.html'
  out.write_text(page('omni_jax: learning rate', head, [('Range test', chart)]))
  print(f'lr_find: {conclusion}; wrote {out}')


if __name__ == '__main__':
  run_command(main)
