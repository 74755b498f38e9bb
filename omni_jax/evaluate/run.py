"""Runs one evaluation, from a restored run to metrics.json and report.html."""

from collections.abc import Mapping, Sequence
import json
import time
from typing import Any

from etils import epath
import numpy as np

from omni_jax.board import Board
from omni_jax.config import AVERAGE, EVALUATE
from omni_jax.data.sources.table import source_of
from omni_jax.evaluate.limits import Limits, limits_of, Log, seed_of
from omni_jax.evaluate.page import report, training_log
from omni_jax.evaluate.page.gallery import Gallery
from omni_jax.evaluate.page.page_media import grid, Media
from omni_jax.evaluate.page.training_log import Record
from omni_jax.evaluate.scores import numbers_in
from omni_jax.evaluate.tasks.examples import measure_on_file
from omni_jax.evaluate.tasks.table import TASKS
from omni_jax.evaluate.tasks.task_result import TaskResult
from omni_jax.generate.api import load, TrainedModel
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.run_folder import (
  BOARD,
  EVALUATIONS,
  PREDICTIONS_FILE,
  REPORT_FILE,
  SCORES_FILE,
  write_whole,
)

VERSION = 1
TITLE = 'omni_jax: evaluation'


def restore(
  workdir: epath.PathLike,
  step: int | None = None,
  weights: str = AVERAGE,
  tables: Tables = TABLES,
  mesh: Mapping[str, int] | None = None,
) -> TrainedModel:
  """Restores a run as `omni_jax.load` does, onto the devices of this process.

  Args:
    workdir: folder of the run.
    step: checkpoint to restore; by default the last one.
    weights: 'average' (the moving average, where the run keeps one) or 'raw'.
    tables: media of the run.
    mesh: sizes of the mesh's axes; by default all devices, in the way that suits the
      model.

  Raises:
    UserError: if there is no such run or step.
  """
  return load(str(workdir), step, weights, mesh, tables)


def run(
  trained: TrainedModel,
  workdir: epath.PathLike,
  out: epath.PathLike | None = None,
  *,
  seed: int | None = None,
  limits: Limits | None = None,
  data: epath.PathLike | None = None,
  log: Log = print,
) -> dict[str, Any]:
  """Evaluates and writes `out`/{metrics.json, report.html, predictions.jsonl, media/}.

  metrics.json is written last, and never appears half-written.

  Args:
    trained: the restored run.
    workdir: the run's folder, which holds its training log.
    out: folder to write; by default workdir/eval/STEP.
    seed: seed of prompts and sampling; by default that of the run's config.
    limits: size of the evaluation; by default that of the run's config.
    data: a JSON-lines file to evaluate on, instead of the run's own test data.
    log: reports progress.

  Returns:
    The contents of metrics.json.

  Raises:
    UserError: if the data cannot be used.
  """
  began = time.monotonic()
  by_step = epath.Path(workdir) / EVALUATIONS / str(trained.step)
  out = epath.Path(out) if out else by_step
  records = training_log.read(workdir)
  limits = limits or limits_of(trained.config)
  if seed is None:
    seed = seed_of(trained.config)
  if data:
    measured = measure_on_file(trained, data, limits, seed=seed, log=log)
  else:
    task = TASKS[source_of(trained.config.data).evaluation]
    measured = task(trained, limits, seed=seed, log=log)
  metrics = {
    'version': VERSION,
    'step': int(trained.step),
    'seconds': 0.0,
    'train_minutes': _minutes(records),
    **measured.metrics,
    'routing': training_log.routing(records, trained.hosts.numbers),
  }
  metrics['seconds'] = round(time.monotonic() - began, 2)
  metrics = plain(metrics)
  _write(out, metrics, measured, records)
  if out == by_step:
    _write_board(epath.Path(workdir) / BOARD / EVALUATE, metrics, measured.gallery)
  log(f'evaluate: wrote {out / REPORT_FILE} after {metrics["seconds"]:.1f} s')
  return metrics


def plain(value: Any) -> Any:
  """Returns the value as JSON can hold it: infinite numbers and NaN as null.

  Numbers of numpy and jax become Python's.
  """
  if isinstance(value, Mapping):
    return {str(name): plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if value is None or isinstance(value, str | bool | int):
    return value
  number = np.asarray(value).item()
  return number if np.isfinite(number) else None


def _minutes(records: Sequence[Record]) -> float | None:
  """Returns the time from the start of the run to its last logged step."""
  times: list[float] = []
  for record in records:
    if isinstance(record.get('seconds'), int | float):
      times.append(record['seconds'])
  return max(times) / 60 if times else None


def _write(
  out: epath.Path,
  metrics: Mapping[str, Any],
  measured: TaskResult,
  records: Sequence[Record],
) -> None:
  """Writes media first; page and numbers get their names when they are complete."""
  (out / 'media').mkdir(parents=True, exist_ok=True)
  numbers = json.dumps(metrics, indent=1, allow_nan=False)
  lines = [json.dumps(plain(line), ensure_ascii=False) for line in measured.predictions]
  write_whole(out / PREDICTIONS_FILE, ''.join(f'{line}\n' for line in lines))
  page = report.render(
    metrics, measured.gallery, records, Media(out / 'media'), title=TITLE
  )
  write_whole(out / REPORT_FILE, page)
  write_whole(out / SCORES_FILE, numbers + '\n')


def _write_board(
  folder: epath.Path, metrics: Mapping[str, Any], gallery: Gallery
) -> None:
  """Writes scores, drawings and spoken words of a run's own evaluation to TensorBoard."""
  step = metrics['step']
  with Board(folder) as board:
    board.scalars(step, numbers_in(metrics))
    if gallery.drawn:
      board.image(step, 'drawn', grid(gallery.drawn))
    for word in gallery.spoken:
      part = word.generated
      if part is not None and part.wave is not None and part.rate:
        board.sound(step, word.title, part.wave, part.rate)
