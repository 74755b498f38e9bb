"""Scores in metrics.json by their path, such as directions.text_to_image.accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni_jax.errors import UserError


def numbers_in(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers of nested metrics by their path; lists are left out."""
  numbers: dict[str, float] = {}
  for name, value in metrics.items():
    if isinstance(value, Mapping):
      for path, number in numbers_in(value).items():
        numbers[f'{name}.{path}'] = number
    elif isinstance(value, int | float) and not isinstance(value, bool):
      numbers[name] = value
  return numbers


def thresholds_of(pairs: Sequence[str]) -> dict[str, float]:
  """Returns the numbers of pairs PATH=NUMBER.

  Raises:
    UserError: if a pair has another form.
  """
  thresholds: dict[str, float] = {}
  for pair in pairs:
    path, equals, number = pair.rpartition('=')
    try:
      thresholds[path] = float(number)
    except ValueError:
      equals = ''
    if not equals:
      raise UserError(
        f'--fail_under {pair}: give PATH=NUMBER, such as '
        'directions.text_to_image.accuracy=0.9'
      )
  return thresholds


def missed(metrics: Mapping[str, Any], thresholds: Mapping[str, float]) -> list[str]:
  """Returns a line for each score that is below its threshold.

  Raises:
    UserError: if the metrics have no such score.
  """
  numbers = numbers_in(metrics)
  lines = []
  for path, threshold in thresholds.items():
    if path not in numbers:
      known = ', '.join(name for name in numbers if name.endswith('accuracy'))
      raise UserError(f'--fail_under {path}: no such score; accuracies are {known}')
    if numbers[path] < threshold:
      lines.append(f'{path} is {numbers[path]:.4g}, below {threshold:g}')
  return lines
