"""Chooses what the report shows: the first replies of every kind, right or wrong, never the best."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from omni_jax.evaluate.page.shown import Shown, shown
from omni_jax.evaluate.tasks.answers import Answered
from omni_jax.evaluate.tasks.outcomes import FreeReply, Outcome
from omni_jax.evaluate.tasks.prompts import DIGITS, Material
from omni_jax.evaluate.tasks.scoring import part_of

ROWS = 6  # of drawings
WORDS = 8  # spoken
EXAMPLES = 2  # of a direction
STRIDE = 13  # between the prompts shown, so that digits and languages vary
BLANK = 0.35  # gray where the model drew nothing


class Example(NamedTuple):
  title: str
  asked: str
  prompt: list[Shown]
  reply: list[Shown]
  right: bool | None


class Spoken(NamedTuple):
  title: str
  generated: Shown | None
  real: Shown


class Gallery(NamedTuple):
  examples: Sequence[Example] = ()
  free: Sequence[Example] = ()
  drawn: Sequence[Sequence[np.ndarray]] = ()  # rows of ten, one a digit
  real: Sequence[Sequence[np.ndarray]] = ()
  spoken: Sequence[Spoken] = ()


def of_digits(
  outcomes: Sequence[Outcome], free: Sequence[FreeReply], material: Material, rate: int
) -> Gallery:
  """The gallery of the nine directions."""
  by_name = {outcome.direction.name: outcome for outcome in outcomes}
  examples = [
    _example(outcome, (STRIDE * (i * EXAMPLES + j) + 3) % len(outcome.prompts), rate)
    for i, outcome in enumerate(outcomes)
    for j in range(EXAMPLES)
  ]
  free_examples = [
    Example(
      'any',
      f'reply in {item.prompt.language}',
      [shown(item.prompt.source, rate)],
      [shown(part, rate) for part in item.reply],
      item.agreed,
    )
    for item in sorted(free, key=lambda item: not item.complete)
  ]
  drawn, real = _drawings(by_name.get('text_to_image'), material)
  return Gallery(
    examples,
    free_examples,
    drawn,
    real,
    _spoken(by_name.get('text_to_speech'), material, rate),
  )


def of_data(answered: dict[str, list[Answered]], rate: int) -> Gallery:
  """Prompts and replies of a JSON-lines file; the expected answer stands in the title's place where it is text."""
  examples = []
  for group, items in answered.items():
    for item in [item for item in items if item.case.prompt][: 2 * EXAMPLES]:
      expected = ' '.join(
        part['text'] for part in item.case.answer if part['type'] == 'text'
      )
      prompt = [
        shown(part, rate)
        for message in item.case.prompt['messages']
        for part in message['content']
      ]
      examples.append(
        Example(
          group,
          f'expected: {expected}' if expected else '',
          prompt,
          [shown(part, rate) for part in item.reply],
          None,
        )
      )
  return Gallery(examples)


def _example(outcome: Outcome, k: int, rate: int) -> Example:
  prompt = outcome.prompts[k]
  asked = ', '.join(
    filter(None, (f'digit {prompt.digit}', prompt.language, prompt.voice))
  )
  return Example(
    outcome.direction.name,
    asked,
    [shown(prompt.source, rate)],
    [shown(part, rate) for part in outcome.replies[k]],
    outcome.verdicts[k].digit == prompt.digit,
  )


def _drawings(outcome: Outcome | None, material: Material) -> tuple[list, list]:
  """The first drawings of every digit, and as many real test images."""
  if outcome is None:
    return [], []
  shape = material.images.shape[1:]
  drawn = [[] for _ in range(DIGITS)]
  for prompt, reply in zip(outcome.prompts, outcome.replies, strict=True):
    part = part_of(reply, 'image')
    fits = part is not None and np.shape(part.pixels) == shape
    drawn[prompt.digit].append(
      np.nan_to_num(part.pixels) if fits else np.full(shape, BLANK)
    )
  real = [list(material.images[material.labels == digit]) for digit in range(DIGITS)]
  rows = min([ROWS, *map(len, drawn), *map(len, real)])
  return (
    [[column[k] for column in drawn] for k in range(rows)],
    [[column[k] for column in real] for k in range(rows)],
  )


def _spoken(outcome: Outcome | None, material: Material, rate: int) -> list[Spoken]:
  """Spoken words beside a real clip of the same word, in the voice that was asked for where there is one."""
  found, seen = [], set()
  for prompt, reply in zip(*outcome[1:3], strict=True) if outcome else ():
    word = material.words[prompt.language][prompt.digit]
    if word in seen or len(found) == WORDS:
      continue
    same = [
      clip
      for clip in [*material.known_voices, *material.unseen_voices]
      if (clip.digit, clip.language) == (prompt.digit, prompt.language)
    ]
    same.sort(key=lambda clip: clip.voice != prompt.voice)
    if not same:
      continue
    seen.add(word)
    part = part_of(reply, 'audio')
    found.append(
      Spoken(
        f'{word} ({prompt.language}, voice {prompt.voice or "any"})',
        shown(part, rate) if part else None,
        shown({'type': 'audio', 'wave': same[0].wave}, rate),
      )
    )
  return found
