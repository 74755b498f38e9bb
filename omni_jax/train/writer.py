"""Writes a run's metrics: metrics.jsonl, TensorBoard, and a progress bar or log.txt."""

from collections.abc import Mapping
import functools
import json
import sys
import time

from etils import epath
from jax.typing import ArrayLike
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from omni_jax.run_folder import read_json_lines, TRAINING_LOG, write_whole
from omni_jax.run_log import say, START

LOSS = 'loss/'  # prefix of the losses of the whole model
STEPS_PER_SECOND = 'speed/steps_per_second'  # metric that the log shows as well


class Writer:
  """Writes the metrics of one stage; leaving it as a context closes the files.

  Lines of metrics.jsonl after the step that the stage resumes from are dropped first.
  """

  def __init__(self, workdir: str, stage: str, *, steps: int, start: int):
    self._stage = stage
    self._folder = epath.Path(workdir)
    self._metrics = self._folder / TRAINING_LOG
    self._seconds = _spent_before(str(self._metrics))
    self._keep_until(start)
    self._board = SummaryWriter(str(self.trace_folder))
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
    """Drops the lines of this stage after a step, and those that are half-written."""
    if not self._metrics.exists():
      return
    kept = ''
    for line in read_json_lines(self._metrics):
      if line['stage'] != self._stage or line['step'] <= start:
        kept += json.dumps(line) + '\n'
    if kept != self._metrics.read_text():
      write_whole(self._metrics, kept)  # a process that is killed here loses nothing

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
      if name.startswith((LOSS, f'{self._stage}/')):
        shown[name.removeprefix(LOSS)] = f'{value:.3f}'
    self._bar.set_postfix(shown, refresh=False)
    if self._bar.disable:
      rate = plain.get(STEPS_PER_SECOND)
      text = ' '.join(f'{name}={value}' for name, value in shown.items())
      speed = '' if rate is None else f' ({rate:.2f} steps/s)'
      say(self._folder, f'{self._stage} step {step}: {text}{speed}')


class SilentWriter(Writer):
  """Writes nothing, in processes other than the first.

  All processes have the same metrics, and the same folder.
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


@functools.cache
def _spent_before(metrics: str) -> float:
  """Returns the seconds that earlier processes spent on this run.

  The first call has to come before this process writes anything.
  """
  seconds = [line['seconds'] for line in read_json_lines(epath.Path(metrics))]
  return max(seconds, default=0.0)
