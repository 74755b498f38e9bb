"""Sinks of a stage's metrics: metrics.jsonl, TensorBoard, Weights & Biases, MLflow."""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import time
from typing import Any, NamedTuple, Protocol

from etils import epath

from omni_jax.board import Board
from omni_jax.config import flat
from omni_jax.errors import UserError
from omni_jax.line_file import LineFile
from omni_jax.paths import is_remote
from omni_jax.run_folder import BOARD, read_json_lines, TRAINING_LOG
from omni_jax.run_log import START


class StageLog(NamedTuple):
  """What a sink has to know of a stage.

  Attributes:
    folder: folder of the run.
    stage: name of the stage.
    start: step that the stage resumes from; what was logged after it is repeated.
    config: config of the run, as nested mappings.
  """

  folder: epath.Path
  stage: str
  start: int
  config: Mapping[str, Any]

  @property
  def name(self) -> str:
    """Name of the run for services that show many."""
    return f'{self.folder.name}/{self.stage}'


class Sink(Protocol):
  """Takes the metrics of a stage."""

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes the metrics of a step: numbers, and lists of numbers."""

  def close(self) -> None:
    """Ends the stage's metrics."""


class JsonLines:
  """Writes metrics.jsonl, one line per step, which the report draws its curves from."""

  def __init__(self, log: StageLog):
    self._log = log
    self._file = LineFile(log.folder / TRAINING_LOG)
    self._seconds = _seconds_before(str(self._file.path))
    self._file.keep(self._is_before_start)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Adds a line; its seconds are those of all processes of the run so far."""
    seconds = round(self._seconds + time.time() - START, 2)
    line = {'stage': self._log.stage, 'step': step, 'seconds': seconds, **metrics}
    self._file.append(json.dumps(line))

  def close(self) -> None:
    """Does nothing: every line is written at once."""

  def _is_before_start(self, text: str) -> bool:
    """Returns whether a line is whole and not after the step that is resumed from."""
    try:
      line = json.loads(text)
    except json.JSONDecodeError:
      return False
    return line['stage'] != self._log.stage or line['step'] <= self._log.start


@functools.cache
def _seconds_before(metrics: str) -> float:
  """Returns the seconds that earlier processes spent on this run.

  The first call has to come before this process writes anything.
  """
  seconds = [line['seconds'] for line in read_json_lines(epath.Path(metrics))]
  return max(seconds, default=0.0)


class TensorBoard:
  """Writes the scalars as TensorBoard event files."""

  def __init__(self, log: StageLog):
    self._board = Board(log.folder / BOARD / log.stage)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes the scalars of a step."""
    self._board.scalars(step, _scalars(metrics))

  def close(self) -> None:
    """Closes the event file."""
    self._board.close()


class WeightsAndBiases:
  """Logs the scalars to Weights & Biases; WANDB_MODE=offline needs no account."""

  def __init__(self, log: StageLog):
    import wandb

    self._run = wandb.init(
      project='omni_jax',
      name=log.name,
      config=flat(log.config),
      dir=None if is_remote(log.folder) else str(log.folder),
    )

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Logs the scalars of a step."""
    self._run.log(_scalars(metrics), step=step)

  def close(self) -> None:
    """Ends the run there."""
    self._run.finish()


class MLflow:
  """Logs the scalars to MLflow, at MLFLOW_TRACKING_URI, which may be a folder."""

  def __init__(self, log: StageLog):
    import mlflow

    self._client = mlflow.MlflowClient()
    experiment = mlflow.set_experiment('omni_jax')
    run = self._client.create_run(experiment.experiment_id, run_name=log.name)
    self._run = run.info.run_id
    for name, value in flat(log.config).items():
      self._client.log_param(self._run, name, value)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Logs the scalars of a step."""
    for name, value in _scalars(metrics).items():
      self._client.log_metric(self._run, name, value, step=step)

  def close(self) -> None:
    """Ends the run there."""
    self._client.set_terminated(self._run)


SINKS: dict[str, Callable[[StageLog], Sink]] = {
  'jsonl': JsonLines,
  'tensorboard': TensorBoard,
  'wandb': WeightsAndBiases,
  'mlflow': MLflow,
}


def check_sinks(names: Sequence[str]) -> None:
  """Checks config.writers.

  Raises:
    UserError: for a name that is unknown, or whose package is not installed.
  """
  for name in names:
    if name not in SINKS:
      known = ', '.join(SINKS)
      raise UserError(f'config.writers: {name!r} is unknown; there are {known}')
    try:
      if name == 'wandb':
        import wandb  # noqa: F401
      elif name == 'mlflow':
        import mlflow  # noqa: F401
    except ImportError as error:
      raise UserError(
        f'config.writers: {name!r} needs its package: '
        f"pip install 'omni_jax[{name}]', or remove it"
      ) from error


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics that are single numbers."""
  return {name: value for name, value in metrics.items() if not isinstance(value, list)}
