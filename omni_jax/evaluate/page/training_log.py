"""Reads a run's metrics.jsonl: the curves of the report and the last table of experts by modality."""

from collections.abc import Iterable, Mapping, Sequence
import json
import math
from typing import Any, NamedTuple

from etils import epath
import numpy as np

TABLE = 'routing/expert_by_modality'


class Curve(NamedTuple):
  minutes: list[float]
  values: list[float]


def read(workdir: Any) -> list[dict]:
  """The log's records; none where the file is missing. A last line that was cut off by a crash is passed over."""
  path = epath.Path(workdir) / 'metrics.jsonl'
  records = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(record, dict):
      records.append(record)
  return records


def curves(records: Sequence[Mapping], *, prefix: str) -> dict[str, Curve]:
  """Every number whose name starts with `prefix`, against minutes since the start of the run."""
  found: dict[str, Curve] = {}
  for record in records:
    for name, value in record.items():
      if name.startswith(prefix) and _is_number(value):
        curve = found.setdefault(name, Curve([], []))
        curve.minutes.append(float(record.get('seconds', 0)) / 60)
        curve.values.append(float(value))
  return found


def routing(records: Sequence[Mapping], media: Iterable[str]) -> dict[str, Any]:
  """Reads what the routers did last.

  Args:
    media: in the order of their numbers; the table's first row is of padding.

  Returns:
    The last numbers named routing/…, and as expert_by_modality the last logged table: each modality's row as shares
    that sum to 1, without rows that no token had.
  """
  found: dict[str, Any] = {}
  for record in records:
    for name, value in record.items():
      if name == TABLE:
        found['expert_by_modality'] = _shares(value, ('padding', *media))
      elif name.startswith('routing/') and _is_number(value):
        found[name.removeprefix('routing/')] = value
  return found


def _shares(table: Any, names: Sequence[str]) -> dict[str, list[float]]:
  """Returns name of a row -> its shares."""
  counts_ME = np.nan_to_num(np.asarray(table, float))
  shares_ME = counts_ME / np.maximum(counts_ME.sum(axis=1, keepdims=True), 1e-9)
  rows = zip(names, shares_ME.round(4).tolist(), strict=True)
  return {name: row for name, row in rows if sum(row) > 0}


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)
