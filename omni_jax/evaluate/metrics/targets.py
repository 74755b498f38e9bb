"""What a run is to reach, and whether it did."""

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
ERRORS = ('cer', 'wer')  # the lower the better
CODEC_PERPLEXITY_RATIO = 0.4
CODEC_JUDGE_LOSS = 0.02  # accuracy that the judge may lose on reconstructed speech


class Check(NamedTuple):
  direction: str  # or a group of a JSON-lines file, or 'codec'
  name: str
  value: float | None
  target: float
  passed: bool


def checks(metrics: Mapping[str, Any]) -> list[Check]:
  """Every target of the directions and of the codec that metrics.json has an entry for."""
  found = []
  for direction, targets in TARGETS.items():
    if direction in metrics.get('directions', {}):
      entry = metrics['directions'][direction]
      found += [
        _at_least(direction, name, entry.get(name), target)
        for name, target in targets.items()
      ]
  data = metrics.get('data', {})
  for group, wanted in data.get(
    'targets', {}
  ).items():  # what config.evaluate.targets asks of a JSON-lines file
    found += [
      _at_least(group, name, data['groups'].get(group, {}).get(name), target)
      for name, target in wanted.items()
    ]
  codec = metrics.get('codec', {})
  if codec.get('perplexity_ratio') is not None:
    found.append(
      _at_least(
        'codec', 'perplexity_ratio', codec['perplexity_ratio'], CODEC_PERPLEXITY_RATIO
      )
    )
  if codec.get('judge_accuracy_original') is not None:
    found.append(
      _at_least(
        'codec',
        'judge_accuracy_reconstructed',
        codec['judge_accuracy_reconstructed'],
        codec['judge_accuracy_original'] - CODEC_JUDGE_LOSS,
      )
    )
  return found


def _at_least(direction: str, name: str, value: float | None, target: float) -> Check:
  reached = value is not None and (
    value <= target + 1e-9 if name in ERRORS else value >= target - 1e-9
  )
  return Check(direction, name, value, target, reached)
