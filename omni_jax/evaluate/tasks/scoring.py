"""Scores the replies of one direction: what they name, draw or say, against what was asked."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.evaluate.judges import Judges
from omni_jax.evaluate.metrics import image_metrics, text_metrics
from omni_jax.evaluate.metrics.scores import accuracy, confusion, share
from omni_jax.evaluate.tasks.prompts import DIGITS, Direction, Prompt, WANT


class Real(NamedTuple):
  """The real data that replies are measured against."""

  words: Mapping[str, Sequence[str]]
  train_images: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  rate: int


class Verdict(NamedTuple):
  """What one reply was taken for. None: the question does not arise."""

  digit: int  # -1: no digit, or a reply without the part asked for
  language_right: bool | None
  voice_right: bool | None


def part_of(reply: Sequence[Any], kind: str) -> Any | None:
  """The first part of a type ('text', 'image', 'audio') in a reply."""
  return next((part for part in reply if part.type == kind), None)


def wave_of(part: Any, rate: int) -> np.ndarray:
  """The part's samples at the judges' rate."""
  wave = np.asarray(part.wave, np.float32)
  if part.rate in (None, rate):
    return wave
  import soxr

  return soxr.resample(wave, part.rate, rate)


def judge(
  direction: Direction,
  prompts: Sequence[Prompt],
  replies: Sequence[Sequence[Any]],
  judges: Judges,
  real: Real,
) -> list[Verdict]:
  """One verdict a prompt, in order."""
  parts = [part_of(reply, WANT[direction.target]) for reply in replies]
  present = [k for k, part in enumerate(parts) if part is not None]
  verdicts = [
    Verdict(
      -1,
      None if direction.target == 'image' else False,
      False if prompt.voice else None,
    )
    for prompt in prompts
  ]
  judged = JUDGE[direction.target](
    [parts[k] for k in present], [prompts[k] for k in present], judges, real
  )
  for k, verdict in zip(present, judged, strict=True):
    verdicts[k] = verdict
  return verdicts


def _judge_text(parts, prompts, judges, real) -> list[Verdict]:
  named = [text_metrics.name_of(part.text, real.words) for part in parts]
  return [
    Verdict(name.digit, prompt.language in name.languages, None)
    for name, prompt in zip(named, prompts, strict=True)
  ]


def _judge_images(parts, prompts, judges, real) -> list[Verdict]:
  return [
    Verdict(digit, None, None)
    for digit in judges.image([part.pixels for part in parts])
  ]


def _judge_speech(parts, prompts, judges, real) -> list[Verdict]:
  heard = judges.speech([wave_of(part, real.rate) for part in parts])
  return [
    Verdict(
      digit,
      language == prompt.language,
      voice == prompt.voice if prompt.voice else None,
    )
    for digit, language, voice, prompt in zip(*heard, prompts, strict=True)
  ]


JUDGE = {'text': _judge_text, 'image': _judge_images, 'speech': _judge_speech}


def score(
  direction: Direction,
  prompts: Sequence[Prompt],
  verdicts: Sequence[Verdict],
  judges: Judges,
) -> dict:
  """Accuracies of a group of prompts, keys of metrics.json."""
  right = [
    verdict.digit == prompt.digit
    for prompt, verdict in zip(prompts, verdicts, strict=True)
  ]
  scores = accuracy(right)
  languages = [v.language_right for v in verdicts if v.language_right is not None]
  voices = [v.voice_right for v in verdicts if v.voice_right is not None]
  if languages:
    scores['language_accuracy'] = share(languages)
  if voices:
    scores['voice_accuracy'] = share(voices)
  if direction.target == 'text':
    return scores
  scores['judge_accuracy_real'] = judges.real[
    'image' if direction.target == 'image' else 'digit'
  ]
  if languages:
    scores['language_judge_accuracy_real'] = judges.real['language']
  if voices:
    scores['voice_judge_accuracy_real'] = judges.real['voice']
  return scores


def score_novelty(
  prompts: Sequence[Prompt],
  replies: Sequence[Sequence[Any]],
  verdicts: Sequence[Verdict],
  real: Real,
) -> dict:
  """Spread and copying of drawn images: those judged right, so that wrong digits do not pass for variety."""
  drawn = [
    (np.asarray(part_of(reply, 'image').pixels), prompt)
    for prompt, reply, verdict in zip(prompts, replies, verdicts, strict=True)
    if verdict.digit == prompt.digit
  ]
  images = (
    np.stack([pixels for pixels, _ in drawn])
    if drawn
    else np.zeros((0, *real.test_images.shape[1:]))
  )
  labels = np.array([prompt.digit for _, prompt in drawn])
  scores = {
    'diversity': image_metrics.spread(
      images, labels, real=real.test_images, real_labels=real.test_labels
    ),
    'copying_ratio': image_metrics.copying_ratio(
      images, train=real.train_images, real=real.test_images
    ),
  }
  if drawn and drawn[0][1].source['type'] == 'image':
    sources = np.stack([prompt.source['pixels'] for _, prompt in drawn])
    scores['prompt_copying_ratio'] = image_metrics.prompt_copying_ratio(
      images, sources, real=real.test_images, real_labels=real.test_labels
    )
  return scores


def table(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> list[list[int]]:
  """Confusion of digits, [asked][judged]."""
  return confusion(
    [prompt.digit for prompt in prompts],
    [verdict.digit for verdict in verdicts],
    DIGITS,
  )
