"""Reads runs for a comparison: their configs, final metrics and loss curves."""

from collections.abc import Mapping, Sequence
import json
import math
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from omni_jax.config import flat
from omni_jax.errors import UserError
from omni_jax.evaluate.page import training_log
from omni_jax.run_folder import CONFIG_FILE, EVALUATIONS, SCORES_FILE, TRAINING_LOG

# Metrics of a direction that are compared besides its accuracy.
DIRECTION_SCORES = ('diversity', 'voice_accuracy')
ROUTING = ('entropy', 'mutual_information')
# Metrics of a group of a JSON-lines file that are compared besides its losses.
GROUP_SCORES = (
  'exact_match',
  'wer',
  'image_accuracy',
  'speech_accuracy',
  'voice_accuracy',
  'slot_f1',
)

Curves = dict[str, dict[int, float]]


class FinishedRun(NamedTuple):
  """The contents of a run's folder.

  Attributes:
    name: name of the folder.
    config: flattened config, such as 'omni.optim.lr' -> value.
    metrics: final values by name: accuracies and scores of the last evaluation, last
      losses, minutes of training.
    curves: loss -> {step: value}.
  """

  name: str
  config: dict[str, Any]
  metrics: dict[str, float]
  curves: Curves


class SeedGroup(NamedTuple):
  """Runs whose configs are the same except for the seed."""

  config: dict[str, Any]  # without the seed
  runs: list[FinishedRun]

  @property
  def name(self) -> str:
    first = self.runs[0].name
    return first if len(self.runs) == 1 else f'{first} and other seeds'


def read_run(folder: epath.PathLike) -> FinishedRun:
  """Returns a run from its config.json, metrics.jsonl and last evaluation.

  Raises:
    UserError: if the folder holds no config or no metrics yet.
  """
  folder = epath.Path(folder)
  config_file = folder / CONFIG_FILE
  if not config_file.exists():
    raise UserError(f'{folder} holds no run: {CONFIG_FILE} is missing')
  records = training_log.read(folder)
  evaluation = _last_evaluation(folder)
  if not records and not evaluation:
    raise UserError(
      f'{folder}: no metrics yet, neither {TRAINING_LOG} nor '
      f'{EVALUATIONS}/STEP/{SCORES_FILE}: train the run first'
    )
  curves = _loss_curves(records)
  metrics = _scores(evaluation)
  for name, curve in curves.items():
    metrics[f'last {name}'] = curve[max(curve)]
  if records:
    metrics['minutes'] = max(record['seconds'] for record in records) / 60
  config = flat(_read_json(config_file))
  return FinishedRun(folder.name or str(folder), config, metrics, curves)


def _loss_curves(records: Sequence[training_log.Record]) -> Curves:
  """Returns every logged loss as 'STAGE: NAME' -> {step: value}."""
  curves: Curves = {}
  for record in records:
    stage = record.get('stage', '')
    prefixes = ('loss/', f'{stage}/loss')  # of the whole model, of an autoencoder
    for name, value in record.items():
      if not name.startswith(prefixes) or not isinstance(value, int | float):
        continue
      if math.isfinite(value):
        key = f'{stage}: {name}'
        curve = curves.setdefault(key, {})
        curve[int(record['step'])] = float(value)
  return curves


def _last_evaluation(folder: epath.Path) -> Mapping[str, Any]:
  """Returns the contents of the last metrics.json; empty if there is none."""
  evaluations = folder / EVALUATIONS
  if not evaluations.exists():
    return {}
  files: dict[int, epath.Path] = {}
  for path in evaluations.iterdir():
    scores = path / SCORES_FILE
    if path.name.isdecimal() and scores.exists():
      files[int(path.name)] = scores
  return _read_json(files[max(files)]) if files else {}


def _read_json(path: epath.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise UserError(f'{path} is not JSON: {error}') from error


def _scores(evaluation: Mapping[str, Any]) -> dict[str, float]:
  """Returns metrics of directions, of groups of a JSON-lines file, and of routing."""
  directions = evaluation.get('directions', {})
  scores = {name: entry.get('accuracy') for name, entry in directions.items()}
  for name, entry in directions.items():
    for score in DIRECTION_SCORES:
      scores[f'{name} {score}'] = entry.get(score)
  groups = evaluation.get('data', {}).get('groups', {})
  for group, entry in groups.items():
    for score in GROUP_SCORES:
      scores[f'{group} {score}'] = entry.get(score)
    for name, loss in entry.get('loss', {}).items():
      scores[f'{group} loss {name}'] = loss
  routing = evaluation.get('routing') or {}
  for name in ROUTING:
    scores[f'routing {name}'] = routing.get(name)
  return {name: value for name, value in scores.items() if value is not None}


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the keys whose values are not the same in all configs.

  A key that is absent somewhere counts as None there.
  """
  keys: dict[str, Any] = {}
  for config in configs:
    keys |= config
  differing: list[str] = []
  for key in keys:
    if any(config.get(key) != configs[0].get(key) for config in configs):
      differing.append(key)
  return differing


def group_seeds(runs: Sequence[FinishedRun]) -> list[SeedGroup]:
  """Returns the runs in their order, grouped where only config.seed differs."""
  groups: list[SeedGroup] = []
  for run in runs:
    config = {key: value for key, value in run.config.items() if key != 'seed'}
    same_config = [group for group in groups if group.config == config]
    if same_config:
      same_config[0].runs.append(run)
    else:
      groups.append(SeedGroup(config, [run]))
  return groups


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
  """Returns mean and standard deviation of a sample (n - 1); 0 for a single value."""
  if len(values) < 2:
    return float(np.mean(values)), 0.0
  return float(np.mean(values)), float(np.std(values, ddof=1))
