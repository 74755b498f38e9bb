"""One evaluation, from a restored run to metrics.json and report.html."""

from collections.abc import Mapping, Sequence
import json
import time
from typing import Any

from etils import epath
import numpy as np

from omni_jax.data.sources.table import source_of
from omni_jax.evaluate.limits import Limits, limits_of, Log
from omni_jax.evaluate.page import report, training_log
from omni_jax.evaluate.page.gallery import Gallery
from omni_jax.evaluate.page.shown import Media
from omni_jax.evaluate.tasks.examples import measure_on_file
from omni_jax.evaluate.tasks.table import TASKS
from omni_jax.generate.api import load
from omni_jax.modalities.devices import TABLES, Tables

VERSION = 1
TITLE = 'omni_jax: evaluation'


def restore(
  workdir: Any,
  step: int | None = None,
  weights: str = 'average',
  tables: Tables = TABLES,
) -> Any:
  """Restores a run as `omni_jax.load` does, onto one device of this process."""
  return load(str(workdir), step=step, weights=weights, tables=tables)


def run(
  trained: Any,
  workdir: Any,
  out: Any = None,
  *,
  seed: int = 0,
  limits: Limits | None = None,
  data: Any = None,
  log: Log = print,
) -> dict[str, Any]:
  """Evaluates and writes `out`/{metrics.json, report.html, media/}.

  metrics.json comes last and whole.

  Args:
    trained: what `restore` returns.
    workdir: the run's folder, for its log of losses.
    out: folder to write; by default workdir/eval/STEP.
    limits: how much is asked; by default what the run's config says.
    data: a JSON-lines file to evaluate on, instead of the run's own test data.

  Returns:
    What metrics.json holds.
  """
  began = time.monotonic()
  out = epath.Path(out) if out else epath.Path(workdir) / 'eval' / str(trained.step)
  records = training_log.read(workdir)
  limits = limits or limits_of(trained.config)
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
  metrics = plain(metrics | {'seconds': round(time.monotonic() - began, 2)})
  _write(out, metrics, measured.gallery, records)
  log(f'evaluate: wrote {out / "report.html"} after {metrics["seconds"]:.1f} s')
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


def _minutes(records: Sequence[Mapping]) -> float | None:
  """Returns the time from the start of the run to its last logged step."""
  times: list[float] = []
  for record in records:
    if isinstance(record.get('seconds'), int | float):
      times.append(record['seconds'])
  return max(times) / 60 if times else None


def _write(
  out: epath.Path,
  metrics: Mapping[str, Any],
  gallery: Gallery,
  records: Sequence[Mapping],
) -> None:
  """Writes media first; page and numbers have other names until they are whole."""
  (out / 'media').mkdir(parents=True, exist_ok=True)
  page = report.render(metrics, gallery, records, Media(out / 'media'), title=TITLE)
  texts = {
    'report.html': page,
    'metrics.json': json.dumps(metrics, indent=1, allow_nan=False) + '\n',
  }
  for name, text in texts.items():
    part = out / f'{name}.part'
    part.write_text(text)
    part.replace(out / name)
