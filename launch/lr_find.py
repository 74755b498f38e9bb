"""A learning-rate range test of the omni stage: the loss while the rate grows.

The test is that of Smith 2017, arXiv 1506.01186.

  python launch/lr_find.py --config=configs/digits.py --workdir=runs/digits \\
    [--config.omni.optim.kind=adamw ...]

Takes the first 100 batches at rates from 1e-5 to 1 and stops where the loss explodes;
writes WORKDIR/lr_find.html and prints a suggestion for config.omni.optim.lr. The stages
of autoencoders come first where --workdir has none; a training in the same folder uses
them. Nothing of the ramp itself is kept. One run on one seed: a starting point, not a
measurement.
"""

import itertools
import math
import pathlib

from absl import logging
import numpy as np

from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.page.charts import Line, lines_chart
from omni_jax.evaluate.page.page import page
from omni_jax.train.__main__ import parse, start_jax

FIRST = 1e-5
LAST = 1.0
STEPS = 100
SMOOTH = 0.8  # share of the old running mean in the new one
EXPLODED = 2.0  # times the smallest running mean


def rate(step):
  """Returns the learning rate of a step, on a geometric ramp."""
  return FIRST * (LAST / FIRST) ** (step / (STEPS - 1))


def smoothed(losses):
  """Returns running means that do not remember a start at zero."""
  means = itertools.accumulate(
    losses, lambda mean, x: SMOOTH * mean + (1 - SMOOTH) * x, initial=0.0
  )
  return [
    mean / (1 - SMOOTH ** (k + 1))
    for k, mean in enumerate(itertools.islice(means, 1, None))
  ]


def suggestion(losses):
  """Returns two learning rates to start from.

  They are the rate where the smoothed loss falls steepest, and a tenth of the rate
  where it is smallest.

  Raises:
    UserError: if it never falls.
  """
  curve = np.array(smoothed(losses))
  lowest = int(curve.argmin())
  if lowest < 2:
    raise UserError(f'the loss falls at no rate between {FIRST:g} and {LAST:g}')
  return rate(int(np.gradient(curve)[: lowest + 1].argmin())), rate(lowest) / 10


def ramp(config, workdir):
  """Returns the losses of the steps while they are finite and near their smallest."""
  import jax

  from omni_jax.sharding import place
  from omni_jax.train import stages

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
        state, metrics = stage.step(state, place(next(stage.batches), run.mesh))
        losses.append(float(metrics['loss/total']))
        means = smoothed(losses)
        if not math.isfinite(losses[-1]) or means[-1] > EXPLODED * min(means):
          break
    finally:
      stage.batches.close()
  return [loss for loss in losses if math.isfinite(loss)]


def main():
  config, workdir = parse()
  logging.set_verbosity(logging.ERROR)
  start_jax(config)
  losses = ramp(config, workdir)
  steepest, tenth = suggestion(losses)
  rates = [rate(step) for step in range(len(losses))]
  conclusion = (
    f'the loss falls steepest at {steepest:.1e}; a tenth of the rate of its minimum is '
    f'{tenth:.1e}: try --config.omni.optim.lr={tenth:.1e}'
  )
  lines = [Line(rates, y, np.zeros(len(y))) for y in (smoothed(losses), losses)]
  chart = lines_chart(
    'loss/total, smoothed (blue) and as it was (red)', lines, unit='rate', decades=True
  )
  chart = f'<div style="max-width:560px">{chart}</div>'
  out = pathlib.Path(workdir) / 'lr_find.html'
  out.write_text(
    page(
      'omni_jax: learning rate',
      f'<h1>Learning rate</h1><p>{conclusion}</p>',
      [('Range test', chart)],
    )
  )
  print(f'lr_find: {conclusion}; wrote {out}')


if __name__ == '__main__':
  run_command(main)
