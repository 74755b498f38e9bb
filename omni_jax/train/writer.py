"""Where a run's figures go: metrics.jsonl, TensorBoard, log.txt, and a progress bar or plain lines."""

import functools
import json
import sys
import time
from typing import Any

from etils import epath
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from omni_jax.run_log import say, START


class Writer:
  """Figures of one stage. Lines of metrics.jsonl past the step resumed from are dropped first.

  A context: leaving it closes the files.
  """

  def __init__(self, workdir: str, stage: str, *, steps: int, start: int):
    self._stage, self._folder = stage, epath.Path(workdir)
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
    found = _lines(self._metrics)
    kept = [
      line
      for line in found
      if line and (line['stage'] != self._stage or line['step'] <= start)
    ]
    if len(kept) < len(found):
      part = (
        self._folder / 'metrics.jsonl.part'
      )  # a process that is killed here loses nothing
      part.write_text(''.join(json.dumps(line) + '\n' for line in kept))
      part.replace(self._metrics)

  @property
  def trace_folder(self) -> epath.Path:
    """Where a profile goes: TensorBoard's profile plug-in and xprof find it there."""
    return self._folder / 'tensorboard' / self._stage

  def advance(self) -> None:
    self._bar.update()

  def write(self, step: int, figures: dict[str, Any]) -> None:
    """One line of figures; arrays become lists, TensorBoard gets the scalars."""
    plain = {name: np.asarray(value).tolist() for name, value in figures.items()}
    seconds = self._seconds + time.time() - START
    line = {'stage': self._stage, 'step': step, 'seconds': round(seconds, 2), **plain}
    with self._metrics.open('a') as file:
      file.write(json.dumps(line) + '\n')
    for name, value in plain.items():
      if not isinstance(value, list):
        self._board.add_scalar(name, value, step)
    shown = {
      name.removeprefix('loss/'): f'{value:.3f}'
      for name, value in plain.items()
      if name.startswith(('loss/', 'codec/')) and not isinstance(value, list)
    }
    self._bar.set_postfix(shown, refresh=False)
    if self._bar.disable:
      say(
        self._folder,
        f'{self._stage} step {step}: '
        + ' '.join(f'{k}={v}' for k, v in shown.items())
        + (
          f' ({plain["speed/steps_per_second"]:.2f} steps/s)'
          if 'speed/steps_per_second' in plain
          else ''
        ),
      )


class Silent(Writer):
  """What processes other than the first have: the figures are the same in all, and so is the folder."""

  def __init__(self, workdir: str, stage: str):
    self._stage, self._folder = stage, epath.Path(workdir)

  def __exit__(self, *_) -> None:
    pass

  def advance(self) -> None:
    pass

  def write(self, step: int, figures: dict[str, Any]) -> None:
    pass


def _lines(metrics: epath.Path) -> list[dict[str, Any] | None]:
  """What metrics.jsonl holds; None for a line that a killed process left half-written."""

  def whole(line):
    try:
      return json.loads(line)
    except json.JSONDecodeError:
      return None

  return (
    [whole(line) for line in metrics.read_text().splitlines()]
    if metrics.exists()
    else []
  )


@functools.cache
def _spent_before(metrics: str) -> float:
  """Seconds that earlier processes spent on this run: asked first before this process writes anything."""
  return max(
    (line['seconds'] for line in _lines(epath.Path(metrics)) if line), default=0.0
  )
