"""Describes every reply of an evaluation as a line of predictions.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni_jax.evaluate.tasks.answers import AnsweredCase, expected_text
from omni_jax.evaluate.tasks.outcomes import Outcome
from omni_jax.modalities.contract import Part

Prediction = dict[str, Any]


def of_directions(outcomes: Sequence[Outcome]) -> list[Prediction]:
  """Returns a prediction for each prompt of the directions, with the judges' verdict."""
  predictions: list[Prediction] = []
  for outcome in outcomes:
    rows = zip(outcome.prompts, outcome.replies, outcome.verdicts, strict=True)
    for prompt, reply, verdict in rows:
      predictions.append(
        {
          'group': outcome.direction.name,
          'expected': prompt.digit,
          'reply': _parts(reply),
          'digit': verdict.digit,
          'right': verdict.digit_right,
          'language_right': verdict.language_right,
          'voice_right': verdict.voice_right,
        }
      )
  return predictions


def of_examples(answered: Mapping[str, Sequence[AnsweredCase]]) -> list[Prediction]:
  """Returns a prediction for each example that asks something."""
  predictions: list[Prediction] = []
  for group, items in answered.items():
    for item in items:
      if item.case.prompt is None:
        continue
      predictions.append(
        {
          'group': group,
          'id': str(item.case.example.get('id', '')),
          'expected': expected_text(item.case),
          'reply': _parts(item.reply),
        }
      )
  return predictions


def _parts(reply: Sequence[Part]) -> list[dict[str, Any]]:
  """Returns the parts of a reply: texts as they are, and the types of all others."""
  parts: list[dict[str, Any]] = []
  for part in reply:
    entry: dict[str, Any] = {'type': part.type}
    if part.type == 'text':
      entry['text'] = part.text
    parts.append(entry)
  return parts
