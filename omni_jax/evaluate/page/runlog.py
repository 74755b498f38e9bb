"""Reads a run's metrics.jsonl: the curves of the report and the last table of experts by modality."""

from collections.abc import Mapping, Sequence
import json
import math
from typing import Any, NamedTuple

from etils import epath
import numpy as np

TABLE = 'routing/expert_by_modality'
MODALITIES = ('padding', 'text', 'image', 'audio')  # order of `types.Modality`


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
      if (
        name.startswith(prefix)
        and isinstance(value, int | float)
        and math.isfinite(value)
      ):
        curve = found.setdefault(name, Curve([], []))
        curve.minutes.append(float(record.get('seconds', 0)) / 60)
        curve.values.append(float(value))
  return found


def routing(records: Sequence[Mapping]) -> dict:
  """The last logged table, each modality's row as shares that sum to 1, and the last numbers named routing/…"""
  found: dict[str, Any] = {}
  for record in records:
    for name, value in record.items():
      if (
        name.startswith('routing/')
        and isinstance(value, int | float)
        and math.isfinite(value)
      ):
        found[name.removeprefix('routing/')] = value
      if name == TABLE:
        table = np.nan_to_num(np.asarray(value, float))
        table = table / np.maximum(table.sum(1, keepdims=True), 1e-9)
        names = (
          MODALITIES[-len(table) :]
          if len(table) <= len(MODALITIES)
          else map(str, range(len(table)))
        )
        found['expert_by_modality'] = {
          name: row
          for name, row in zip(names, table.round(4).tolist(), strict=True)
          if sum(row) > 0
        }
  return found
