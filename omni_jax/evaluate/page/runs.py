"""Runs side by side: what their configs differ in, their final figures, and runs that differ only in their seed."""

from collections.abc import Mapping, Sequence
import json
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from omni_jax.errors import UserError
from omni_jax.evaluate.page import training_log

BESIDE = ('diversity', 'voice_accuracy')  # of a direction
ROUTING = ('entropy', 'mutual_information')
SCORES = (
  'exact_match',
  'wer',
  'image_accuracy',
  'speech_accuracy',
  'voice_accuracy',
  'slot_f1',
)  # of a group
LOSSES = ('loss/', 'codec/loss')


class Run(NamedTuple):
  """What a run's folder says of it.

  Attributes:
    config: flat, 'omni.optim.lr' -> value.
    figures: final ones by name: accuracies and scores of the last evaluation, last losses, minutes of training.
    curves: loss -> {step: value}.
  """

  name: str
  config: dict[str, Any]
  figures: dict[str, float]
  curves: dict[str, dict[int, float]]


class Group(NamedTuple):
  """Runs of the same config but for its seed."""

  config: dict[str, Any]  # without the seed
  runs: list[Run]

  @property
  def name(self) -> str:
    return (
      self.runs[0].name
      if len(self.runs) == 1
      else f'{self.runs[0].name} and other seeds'
    )


def read_run(folder: Any) -> Run:
  """Reads config.json, metrics.jsonl and the last evaluation.

  Raises:
    UserError: if the folder holds no config, or nothing was measured in it yet.
  """
  folder = epath.Path(folder)
  if not (folder / 'config.json').exists():
    raise UserError(f'{folder} holds no run: config.json is missing')
  records = training_log.read(folder)
  metrics = _last_evaluation(folder)
  if not records and not metrics:
    raise UserError(
      f'{folder}: no metrics yet, neither metrics.jsonl nor eval/STEP/metrics.json; train it first'
    )
  curves: dict[str, dict[int, float]] = {}
  for record in records:
    for name, value in record.items():
      if (
        name.startswith(LOSSES)
        and isinstance(value, int | float)
        and np.isfinite(value)
      ):
        curves.setdefault(f'{record.get("stage", "")}: {name}', {})[
          int(record['step'])
        ] = float(value)
  last = {f'last {name}': curve[max(curve)] for name, curve in curves.items()}
  minutes = (
    {'minutes': max(record['seconds'] for record in records) / 60} if records else {}
  )
  figures = _scores(metrics) | last | minutes
  return Run(
    folder.name or str(folder), _flat(_json(folder / 'config.json')), figures, curves
  )


def _last_evaluation(folder: epath.Path) -> Mapping[str, Any]:
  found = (
    sorted(
      (int(path.name), path / 'metrics.json')
      for path in (folder / 'eval').iterdir()
      if path.name.isdecimal() and (path / 'metrics.json').exists()
    )
    if (folder / 'eval').exists()
    else []
  )
  return _json(found[-1][1]) if found else {}


def _json(path: epath.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise UserError(f'{path} is not JSON: {error}') from error


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Accuracies of the directions and what stands beside them; scores and losses of the groups of a JSON-lines file."""
  directions, routing = metrics.get('directions', {}), metrics.get('routing') or {}
  found = {name: entry.get('accuracy') for name, entry in directions.items()}
  found |= {
    f'{name} {score}': entry[score]
    for name, entry in directions.items()
    for score in BESIDE
    if score in entry
  }
  for group, entry in metrics.get('data', {}).get('groups', {}).items():
    found |= {f'{group} {name}': entry[name] for name in SCORES if name in entry}
    found |= {
      f'{group} loss {name}': value for name, value in entry.get('loss', {}).items()
    }
  found |= {f'routing {name}': routing.get(name) for name in ROUTING}
  return {name: value for name, value in found.items() if value is not None}


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in config.items():
    found |= (
      _flat(value, f'{prefix}{key}.')
      if isinstance(value, Mapping)
      else {f'{prefix}{key}': value}
    )
  return found


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
  """Keys whose values are not the same everywhere; a key that is absent somewhere differs."""
  keys = dict.fromkeys(key for config in configs for key in config)
  return [
    key
    for key in keys
    if any(config.get(key) != configs[0].get(key) for config in configs[1:])
  ]


def groups_of(runs: Sequence[Run]) -> list[Group]:
  """The runs, those together that differ in config.seed and in nothing else, in the order given."""
  found: list[Group] = []
  for run in runs:
    config = {key: value for key, value in run.config.items() if key != 'seed'}
    group = next((group for group in found if group.config == config), None)
    if group:
      group.runs.append(run)
    else:
      found.append(Group(config, [run]))
  return found


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
  """Mean and standard deviation of a sample (n - 1); 0 for a single value."""
  return float(np.mean(values)), float(np.std(values, ddof=1)) if len(
    values
  ) > 1 else 0.0
