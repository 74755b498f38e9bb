"""Names the files in a run's folder, writes them whole, and reads lines of JSON."""

import json
from typing import Any

from etils import epath

from omni_jax.line_file import LineFile
from omni_jax.paths import is_remote

CONFIG_FILE = 'config.json'
TRAINING_LOG = 'metrics.jsonl'
BOARD = 'tensorboard'  # folder of TensorBoard's files, by stage
CHECKPOINTS = 'checkpoints'  # folder of the checkpoints, by stage
EVALUATIONS = 'eval'  # folder of the evaluations, by step
# Files of an evaluation.
SCORES_FILE = 'metrics.json'
REPORT_FILE = 'report.html'
PREDICTIONS_FILE = 'predictions.jsonl'


def write_whole(path: epath.Path, text: str) -> None:
  """Writes a text file in one step: readers never find half of it."""
  if is_remote(path):
    path.write_text(text)  # objects appear as a whole
    return
  part = path.with_name(f'{path.name}.part')
  part.write_text(text)
  part.replace(path)


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
  """Returns the objects in a file of JSON lines; none if there is no such file.

  A line that a killed process left half-written is skipped.
  """
  objects = []
  for line in LineFile(path).lines():
    try:
      value = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(value, dict):
      objects.append(value)
  return objects
