"""Reads a run's metrics.jsonl: curves for the report, and the last routing metrics."""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from omni_jax.run_folder import read_json_lines, TRAINING_LOG

TABLE = 'routing/expert_by_modality'

Record = Mapping[str, Any]  # a line of metrics.jsonl


class Curve(NamedTuple):
  """A logged number over the minutes since the start of the run."""

  minutes: list[float]
  values: list[float]


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Returns the records of the log, or none where the file is missing."""
  return read_json_lines(epath.Path(workdir) / TRAINING_LOG)


def curves(records: Sequence[Record], *, prefix: str) -> dict[str, Curve]:
  """Returns the curve of every number whose name starts with `prefix`."""
  by_name: dict[str, Curve] = {}
  for record in records:
    for name, value in record.items():
      if name.startswith(prefix) and _is_number(value):
        curve = by_name.setdefault(name, Curve([], []))
        curve.minutes.append(float(record.get('seconds', 0)) / 60)
        curve.values.append(float(value))
  return by_name


def routing(records: Sequence[Record], media: Iterable[str]) -> dict[str, Any]:
  """Returns the last metrics of the routers.

  Args:
    records: the log.
    media: names of the media in the order of their numbers; the table's first row is
      padding.

  Returns:
    The last numbers named routing/…, and as expert_by_modality the last logged table:
    each modality's row as shares that sum to 1, without modalities that no token had.
  """
  latest: dict[str, Any] = {}
  for record in records:
    for name, value in record.items():
      if name == TABLE:
        latest['expert_by_modality'] = _shares(value, ('padding', *media))
      elif name.startswith('routing/') and _is_number(value):
        latest[name.removeprefix('routing/')] = value
  return latest


def _shares(
  table: Sequence[Sequence[float | None]], names: Sequence[str]
) -> dict[str, list[float]]:
  """Returns the shares of each row by the name of the row."""
  counts_mE = np.nan_to_num(np.asarray(table, float))
  shares_mE = counts_mE / np.maximum(counts_mE.sum(axis=1, keepdims=True), 1e-9)
  rows = zip(names, shares_mE.round(4).tolist(), strict=True)
  return {name: row for name, row in rows if sum(row) > 0}


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)
