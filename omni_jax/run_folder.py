"""Names the files in a run's folder, writes them whole, and reads lines of JSON."""

import json
from typing import Any

from etils import epath

CONFIG_FILE = 'config.json'
TRAINING_LOG = 'metrics.jsonl'
CHECKPOINTS = 'checkpoints'  # folder of the checkpoints, by stage
EVALUATIONS = 'eval'  # folder of the evaluations, by step
# Files of an evaluation.
SCORES_FILE = 'metrics.json'
REPORT_FILE = 'report.html'


def write_whole(path: epath.Path, text: str) -> None:
  """Writes a text file in one step: readers never find half of it."""
  part = path.with_name(f'{path.name}.part')
  part.write_text(text)
  part.replace(path)


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
  """Returns the objects in a file of JSON lines; none if there is no such file.

  A line that a killed process left half-written is skipped.
  """
  if not path.exists():
    return []
  objects = []
  for line in path.read_text().splitlines():
    try:
      value = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(value, dict):
      objects.append(value)
  return objects
