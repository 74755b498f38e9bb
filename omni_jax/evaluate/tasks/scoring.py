"""Scores the replies of one direction: what they name, draw or say."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.sources.digits import Digits
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.evaluate.judges import Judges
from omni_jax.evaluate.metrics import image_metrics, text_metrics
from omni_jax.evaluate.metrics.scores import accuracy, confusion, share
from omni_jax.evaluate.tasks.prompts import DIGITS, Direction, Prompt, WANT
from omni_jax.modalities.contract import Part

NO_DIGIT = -1


class RealData(NamedTuple):
  """The real data that replies are measured against.

  Attributes:
    words: language -> the ten digit words.
    train_images: float32 in [0, 1], (n, height, width, channels).
    test_images: the same form, other images.
    test_labels: digits of the test images.
    rate: samples per second that the speech judge expects.
  """

  words: Mapping[str, Sequence[str]]
  train_images: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  rate: int


def real_data(digits: Digits, rate: int) -> RealData:
  """Returns the parts of the digits data that replies are measured against."""
  return RealData(
    words=DIGIT_WORDS,
    train_images=digits.train_images,
    test_images=digits.test_images,
    test_labels=digits.test_labels,
    rate=rate,
  )


class Verdict(NamedTuple):
  """The judges' verdict on one reply.

  Attributes:
    requested: digit that the prompt requested.
    digit: digit recognised in the reply, or NO_DIGIT.
    language_right: whether the language is the requested one; None for drawings.
    voice_right: whether the voice is the expected one; None where none is expected.
  """

  requested: int
  digit: int
  language_right: bool | None
  voice_right: bool | None

  @property
  def digit_right(self) -> bool:
    return self.digit == self.requested


def part_of(reply: Sequence[Part], kind: str) -> Part | None:
  """Returns the first part of a type ('text', 'image', 'audio') in a reply."""
  return next((part for part in reply if part.type == kind), None)


def text_of(reply: Sequence[Part]) -> str:
  """Returns the texts of a reply, joined by spaces."""
  return ' '.join(part.text for part in reply if part.type == 'text')


def wave_of(part: Part, rate: int) -> np.ndarray:
  """Returns the samples of a sound, float32, at `rate` samples per second."""
  wave = np.asarray(part.wave, np.float32)
  if part.rate in (None, rate):
    return wave
  import soxr

  return soxr.resample(wave, part.rate, rate)


def judge(
  direction: Direction,
  prompts: Sequence[Prompt],
  replies: Sequence[Sequence[Part]],
  judges: Judges,
  real: RealData,
) -> list[Verdict]:
  """Returns one verdict per prompt, in order.

  A reply without the requested part counts as wrong in everything.
  """
  verdicts = [_missing(direction, prompt) for prompt in prompts]
  parts: dict[int, Part] = {}
  for index, reply in enumerate(replies):
    part = part_of(reply, WANT[direction.target])
    if part is not None:
      parts[index] = part
  answered = [prompts[index] for index in parts]
  judged = JUDGE[direction.target](list(parts.values()), answered, judges, real)
  for index, verdict in zip(parts, judged, strict=True):
    verdicts[index] = verdict
  return verdicts


def _missing(direction: Direction, prompt: Prompt) -> Verdict:
  """Returns the verdict of a reply without the requested part."""
  language_right = None if direction.target == 'image' else False
  voice_right = False if prompt.voice else None
  return Verdict(prompt.digit, NO_DIGIT, language_right, voice_right)


def _judge_text(
  parts: Sequence[Part], prompts: Sequence[Prompt], judges: Judges, real: RealData
) -> list[Verdict]:
  verdicts: list[Verdict] = []
  for part, prompt in zip(parts, prompts, strict=True):
    named = text_metrics.named_digit(part.text, real.words)
    language_right = prompt.language in named.languages
    verdicts.append(Verdict(prompt.digit, named.digit, language_right, None))
  return verdicts


def _judge_images(
  parts: Sequence[Part], prompts: Sequence[Prompt], judges: Judges, real: RealData
) -> list[Verdict]:
  digits = judges.image([part.pixels for part in parts])
  verdicts: list[Verdict] = []
  for digit, prompt in zip(digits, prompts, strict=True):
    verdicts.append(Verdict(prompt.digit, digit, None, None))
  return verdicts


def _judge_speech(
  parts: Sequence[Part], prompts: Sequence[Prompt], judges: Judges, real: RealData
) -> list[Verdict]:
  heard = judges.speech([wave_of(part, real.rate) for part in parts])
  verdicts: list[Verdict] = []
  for digit, language, voice, prompt in zip(*heard, prompts, strict=True):
    language_right = language == prompt.language
    voice_right = voice == prompt.voice if prompt.voice else None
    verdicts.append(Verdict(prompt.digit, digit, language_right, voice_right))
  return verdicts


JUDGE = {'text': _judge_text, 'image': _judge_images, 'speech': _judge_speech}


def score(
  direction: Direction, verdicts: Sequence[Verdict], judges: Judges
) -> dict[str, Any]:
  """Returns the accuracies of a group of prompts, as in metrics.json."""
  scores = accuracy([verdict.digit_right for verdict in verdicts])
  languages: list[bool] = []
  voices: list[bool] = []
  for verdict in verdicts:
    if verdict.language_right is not None:
      languages.append(verdict.language_right)
    if verdict.voice_right is not None:
      voices.append(verdict.voice_right)
  if languages:
    scores['language_accuracy'] = share(languages)
  if voices:
    scores['voice_accuracy'] = share(voices)
  if direction.target == 'text':
    return scores
  kind = 'image' if direction.target == 'image' else 'digit'
  scores['judge_accuracy_real'] = judges.real[kind]
  if languages:
    scores['language_judge_accuracy_real'] = judges.real['language']
  if voices:
    scores['voice_judge_accuracy_real'] = judges.real['voice']
  return scores


def score_novelty(
  prompts: Sequence[Prompt],
  replies: Sequence[Sequence[Part]],
  verdicts: Sequence[Verdict],
  real: RealData,
) -> dict[str, float | None]:
  """Returns the diversity and novelty of drawings, as in metrics.json.

  Only drawings of the right digit count, so that wrong digits do not pass for variety.
  """
  drawn: list[np.ndarray] = []
  answered: list[Prompt] = []
  for prompt, reply, verdict in zip(prompts, replies, verdicts, strict=True):
    if verdict.digit_right:
      part = part_of(reply, 'image')
      assert part is not None
      drawn.append(np.asarray(part.pixels))
      answered.append(prompt)
  labels = np.array([prompt.digit for prompt in answered])
  images = np.zeros((0, *real.test_images.shape[1:]))
  if drawn:
    images = np.stack(drawn)
  scores = {
    'diversity': image_metrics.spread(
      images, labels, real=real.test_images, real_labels=real.test_labels
    ),
    'copying_ratio': image_metrics.copying_ratio(
      images, train=real.train_images, real=real.test_images
    ),
  }
  if answered and answered[0].source['type'] == 'image':
    sources = np.stack([prompt.source['pixels'] for prompt in answered])
    scores['prompt_copying_ratio'] = image_metrics.prompt_copying_ratio(
      images, sources, real=real.test_images, real_labels=real.test_labels
    )
  return scores


def digit_confusion(verdicts: Sequence[Verdict]) -> list[list[int]]:
  """Returns counts of digits, [requested][recognised]; the last column is no digit."""
  requested = [verdict.requested for verdict in verdicts]
  recognised = [verdict.digit for verdict in verdicts]
  return confusion(requested, recognised, DIGITS)
