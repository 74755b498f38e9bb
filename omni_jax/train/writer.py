"""Writes a run's metrics: metrics.jsonl, TensorBoard, and a progress bar or log.txt."""

from collections.abc import Mapping
import functools
import json
import sys
import time
from typing import Any

from etils import epath
from jax.typing import ArrayLike
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from omni_jax.run_log import say, START

SHOWN = ('loss/', 'codec/')  # prefixes of the metrics on the progress bar


class Writer:
  """Writes the metrics of one stage. A context: leaving it closes the files.

  Lines of metrics.jsonl past the step that the stage resumes from are dropped first.
  """

  def __init__(self, workdir: str, stage: str, *, steps: int, start: int):
    self._stage = stage
    self._folder = epath.Path(workdir)
    self._metrics = self._folder / 'metrics.jsonl'
    self._seconds = _spent_before(str(self._metrics))
    self._keep_until(start)
    self._board = SummaryWriter(str(self._folder / 'tensorboard' / stage))
    self._bar = tqdm(
      total=steps,
      initial=start,
      desc=stage,
      unit='step',
      disable=not sys.stderr.isatty(),
    )

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()
    self._board.close()

  def _keep_until(self, start: int) -> None:
    """Drops the lines of this stage past a step, and those that are half-written."""
    lines = _lines(self._metrics)
    kept = []
    for line in lines:
      if line and (line['stage'] != self._stage or line['step'] <= start):
        kept.append(line)
    if len(kept) == len(lines):
      return
    # A process that is killed here loses nothing.
    part = self._folder / 'metrics.jsonl.part'
    part.write_text(''.join(json.dumps(line) + '\n' for line in kept))
    part.replace(self._metrics)

  @property
  def trace_folder(self) -> epath.Path:
    """Folder of the profile, where TensorBoard's profile plug-in and xprof find it."""
    return self._folder / 'tensorboard' / self._stage

  def advance(self) -> None:
    """Counts one step."""
    self._bar.update()

  def write(self, step: int, metrics: Mapping[str, ArrayLike]) -> None:
    """Writes one line of metrics; arrays become lists, TensorBoard gets the scalars."""
    plain = {name: np.asarray(value).tolist() for name, value in metrics.items()}
    seconds = self._seconds + time.time() - START
    line = {'stage': self._stage, 'step': step, 'seconds': round(seconds, 2), **plain}
    with self._metrics.open('a') as file:
      file.write(json.dumps(line) + '\n')
    shown = {}
    for name, value in plain.items():
      if isinstance(value, list):
        continue
      self._board.add_scalar(name, value, step)
      if name.startswith(SHOWN):
        shown[name.removeprefix('loss/')] = f'{value:.3f}'
    self._bar.set_postfix(shown, refresh=False)
    if self._bar.disable:
      rate = plain.get('speed/steps_per_second')
      text = ' '.join(f'{name}={value}' for name, value in shown.items())
      speed = '' if rate is None else f' ({rate:.2f} steps/s)'
      say(self._folder, f'{self._stage} step {step}: {text}{speed}')


class Silent(Writer):
  """Writes nothing, in processes other than the first.

  The metrics are the same in all processes, and so is the folder.
  """

  def __init__(self, workdir: str, stage: str):
    self._stage = stage
    self._folder = epath.Path(workdir)

  def __exit__(self, *_) -> None:
    pass

  def advance(self) -> None:
    pass

  def write(self, step: int, metrics: Mapping[str, ArrayLike]) -> None:
    pass


def _lines(metrics: epath.Path) -> list[dict[str, Any] | None]:
  """Returns the lines of metrics.jsonl, None for one that a killed process tore."""
  if not metrics.exists():
    return []
  return [_parsed(text) for text in metrics.read_text().splitlines()]


def _parsed(text: str) -> dict[str, Any] | None:
  """Returns a line of JSON as an object, or None if it is torn."""
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    return None


@functools.cache
def _spent_before(metrics: str) -> float:
  """Returns the seconds that earlier processes spent on this run.

  The first call has to come before this process writes anything.
  """
  seconds = [line['seconds'] for line in _lines(epath.Path(metrics)) if line]
  return max(seconds, default=0.0)
