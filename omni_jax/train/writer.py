"""Reports on a stage: its metrics to all sinks, a line to log.txt, a progress bar."""

from collections.abc import Mapping, Sequence
import sys
from typing import Any

from jax.typing import ArrayLike
import numpy as np
from tqdm import tqdm

from omni_jax.run_log import say
from omni_jax.train.sinks import Sink, SINKS, StageLog

LOSS = 'loss/'  # prefix of the losses of the whole model
STEPS_PER_SECOND = 'speed/steps_per_second'
LEARNING_RATE = 'optim/learning_rate'
EXAMPLES = 'data/examples'


class Writer:
  """Reports on one stage; leaving it as a context closes the sinks.

  Args:
    log: the stage.
    names: names of the sinks, of `SINKS`.
    steps: number of steps of the stage.
  """

  def __init__(self, log: StageLog, names: Sequence[str], *, steps: int):
    self._log = log
    self._steps = steps
    self._sinks: list[Sink] = [SINKS[name](log) for name in names]
    self._bar = tqdm(
      total=steps,
      initial=log.start,
      desc=log.stage,
      unit='step',
      disable=not sys.stderr.isatty(),
    )

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()
    for sink in self._sinks:
      sink.close()

  def advance(self) -> None:
    """Counts one step."""
    self._bar.update()

  def say(self, text: str) -> None:
    """Writes a line about the stage to log.txt, and to the terminal above the bar."""
    with tqdm.external_write_mode():
      say(self._log.folder, f'{self._log.stage}: {text}')

  def write(self, step: int, metrics: Mapping[str, ArrayLike]) -> None:
    """Writes the metrics of a step; arrays become lists."""
    plain = {name: np.asarray(value).tolist() for name, value in metrics.items()}
    for sink in self._sinks:
      sink.write(step, plain)
    losses = self._losses(plain)
    self._bar.set_postfix(losses, refresh=False)
    values = ' '.join(f'{name}={value}' for name, value in losses.items())
    progress = _progress(plain, self._steps - step)
    line = f'{self._log.stage} step {step}: {values}{progress}'
    say(self._log.folder, line, show=self._bar.disable)

  def _losses(self, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns the losses as text by the names that the log shows."""
    losses = {}
    for name, value in metrics.items():
      if name.startswith((LOSS, f'{self._log.stage}/')) and not isinstance(value, list):
        losses[name.removeprefix(LOSS)] = f'{value:.3f}'
    return losses


class SilentWriter(Writer):
  """Writes nothing, in processes other than the first.

  All processes have the same metrics, and the same folder.
  """

  def __init__(self):
    pass

  def __exit__(self, *_) -> None:
    pass

  def advance(self) -> None:
    pass

  def say(self, text: str) -> None:
    pass

  def write(self, step: int, metrics: Mapping[str, ArrayLike]) -> None:
    pass


def _progress(metrics: Mapping[str, Any], steps_left: int) -> str:
  """Returns learning rate, examples, speed and remaining time as the log shows them."""
  words = []
  if LEARNING_RATE in metrics:
    words.append(f'learning rate {metrics[LEARNING_RATE]:.2e}')
  if EXAMPLES in metrics:
    words.append(f'{metrics[EXAMPLES]:,} examples')
  rate = metrics.get(STEPS_PER_SECOND)
  if rate:
    words += [f'{rate:.2f} steps/s', f'{_duration(steps_left / rate)} left']
  return f' ({", ".join(words)})' if words else ''


def _duration(seconds: float) -> str:
  """Returns seconds as text: '42 s', '7 min' or '3 h 20 min'."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = round(seconds / 60)
  if minutes < 90:
    return f'{minutes} min'
  return f'{minutes // 60} h {minutes % 60} min'
