"""Defines the targets of a run, and checks whether its metrics reach them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

TARGETS = {
  'text_to_text': {'accuracy': 0.90, 'language_accuracy': 0.95},
  'text_to_image': {'accuracy': 0.95, 'diversity': 0.70, 'copying_ratio': 0.80},
  'text_to_speech': {'accuracy': 0.90, 'language_accuracy': 0.95},
  'image_to_text': {'accuracy': 0.96, 'language_accuracy': 0.95},
  'image_to_image': {'accuracy': 0.90},
  'image_to_speech': {'accuracy': 0.90, 'language_accuracy': 0.95},
  'speech_to_text': {'accuracy': 0.95, 'language_accuracy': 0.95},
  'speech_to_image': {'accuracy': 0.90},
  'speech_to_speech': {'accuracy': 0.90, 'language_accuracy': 0.95},
}
ERRORS = ('cer', 'wer')  # metrics that are better the lower they are
CODEC_PERPLEXITY_RATIO = 0.4
CODEC_JUDGE_LOSS = 0.02  # accuracy that the judge may lose on reconstructed speech
TOLERANCE = 1e-9  # for the rounding of shares


class Check(NamedTuple):
  """One metric against its target.

  Attributes:
    direction: name of a direction, of a group of a JSON-lines file, or 'codec'.
    name: name of the metric.
    value: its value, None where it could not be measured.
    target: the value that it must reach.
    passed: whether it does.
  """

  direction: str
  name: str
  value: float | None
  target: float
  passed: bool


def checks(metrics: Mapping[str, Any]) -> list[Check]:
  """Returns a check of every target whose direction, group or codec is in `metrics`.

  Args:
    metrics: contents of metrics.json, or a part of them.
  """
  results: list[Check] = []
  directions = metrics.get('directions', {})
  for direction, targets in TARGETS.items():
    if direction in directions:
      results += _entry_checks(direction, directions[direction], targets)
  data = metrics.get('data', {})
  # What config.evaluate.targets requires of a JSON-lines file.
  for group, targets in data.get('targets', {}).items():
    results += _entry_checks(group, data['groups'].get(group, {}), targets)
  return results + _codec_checks(metrics.get('codec', {}))


def _entry_checks(
  direction: str, entry: Mapping[str, Any], targets: Mapping[str, float]
) -> list[Check]:
  results: list[Check] = []
  for name, target in targets.items():
    results.append(_check(direction, name, entry.get(name), target))
  return results


def _codec_checks(codec: Mapping[str, Any]) -> list[Check]:
  results: list[Check] = []
  ratio = codec.get('perplexity_ratio')
  if ratio is not None:
    results.append(_check('codec', 'perplexity_ratio', ratio, CODEC_PERPLEXITY_RATIO))
  original = codec.get('judge_accuracy_original')
  if original is not None:
    name = 'judge_accuracy_reconstructed'
    results.append(_check('codec', name, codec[name], original - CODEC_JUDGE_LOSS))
  return results


def _check(direction: str, name: str, value: float | None, target: float) -> Check:
  passed = value is not None and _reaches(name, value, target)
  return Check(direction, name, value, target, passed)


def _reaches(name: str, value: float, target: float) -> bool:
  if name in ERRORS:
    return value <= target + TOLERANCE
  return value >= target - TOLERANCE
