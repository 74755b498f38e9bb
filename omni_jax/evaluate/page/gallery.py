"""Chooses what the report shows: the first replies of every kind, right or wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.evaluate.page.page_media import page_part, PagePart
from omni_jax.evaluate.tasks.answers import AnsweredCase, expected_text
from omni_jax.evaluate.tasks.outcomes import FreeReply, Outcome
from omni_jax.evaluate.tasks.prompts import DIGITS, Material, Prompt
from omni_jax.evaluate.tasks.scoring import part_of
from omni_jax.modalities.contract import Part

ROWS = 6  # rows of drawings
WORDS = 8  # spoken words
EXAMPLES = 2  # examples of each direction
DATA_EXAMPLES = 4  # examples of each group of a JSON-lines file
# Prompts are shown in steps of this size, so that digits and languages vary.
STRIDE = 13
BLANK = 0.35  # gray level in the place of a missing drawing

Rows = Sequence[Sequence[np.ndarray]]


class Example(NamedTuple):
  """A prompt and its reply.

  Attributes:
    title: name of the direction or group.
    note: what is expected of the reply.
    prompt: the parts of the prompt.
    reply: the parts of the reply.
    right: whether the reply is right; None where that is not known.
  """

  title: str
  note: str
  prompt: list[PagePart]
  reply: list[PagePart]
  right: bool | None


class SpokenWord(NamedTuple):
  """A word as the model speaks it (None if it speaks nothing), and as a real clip."""

  title: str
  generated: PagePart | None
  real: PagePart


class Gallery(NamedTuple):
  """The prompts and replies that the report shows.

  Attributes:
    examples: replies of the directions or groups.
    free: replies whose modalities the model chose.
    drawn: rows of ten drawings, one of each digit.
    real: rows of ten real images.
    spoken: spoken words.
  """

  examples: Sequence[Example] = ()
  free: Sequence[Example] = ()
  drawn: Rows = ()
  real: Rows = ()
  spoken: Sequence[SpokenWord] = ()


def digits_gallery(
  outcomes: Sequence[Outcome], free: Sequence[FreeReply], material: Material, rate: int
) -> Gallery:
  """Returns the gallery of the nine directions; `rate` is that of the prompts, in Hz."""
  examples: list[Example] = []
  for outcome in outcomes:
    for _ in range(EXAMPLES):
      index = (STRIDE * len(examples) + 3) % len(outcome.prompts)
      examples.append(_example(outcome, index, rate))
  complete_first = sorted(free, key=lambda item: not item.complete)
  free_examples = [_free_example(item, rate) for item in complete_first]
  by_name = {outcome.direction.name: outcome for outcome in outcomes}
  to_image = by_name.get('text_to_image')
  drawn: Rows = []
  real: Rows = []
  if to_image is not None:
    drawn, real = _drawings(to_image, material)
  to_speech = by_name.get('text_to_speech')
  spoken = _spoken(to_speech, material, rate) if to_speech is not None else []
  return Gallery(examples, free_examples, drawn, real, spoken)


def data_gallery(answered: Mapping[str, Sequence[AnsweredCase]], rate: int) -> Gallery:
  """Returns prompts and replies of a JSON-lines file, with the expected text."""
  examples: list[Example] = []
  for group, items in answered.items():
    prompted = [item for item in items if item.case.prompt]
    for item in prompted[:DATA_EXAMPLES]:
      examples.append(_data_example(group, item, rate))
  return Gallery(examples)


def _data_example(group: str, item: AnsweredCase, rate: int) -> Example:
  expected = expected_text(item.case)
  note = f'expected: {expected}' if expected else ''
  prompt: list[PagePart] = []
  assert item.case.prompt is not None
  for message in item.case.prompt['messages']:
    prompt += _shown_parts(message['content'], rate)
  reply = _shown_parts(item.reply, rate)
  return Example(group, note, prompt, reply, None)


def _shown_parts(
  parts: Sequence[Mapping[str, Any] | Part], rate: int
) -> list[PagePart]:
  return [page_part(part, rate) for part in parts]


def _free_example(item: FreeReply, rate: int) -> Example:
  note = f'reply in {item.prompt.language}'
  prompt = [page_part(item.prompt.source, rate)]
  reply = _shown_parts(item.reply, rate)
  return Example('any', note, prompt, reply, item.right)


def _example(outcome: Outcome, index: int, rate: int) -> Example:
  prompt = outcome.prompts[index]
  requested = [f'digit {prompt.digit}', prompt.language, prompt.voice]
  note = ', '.join(value for value in requested if value)
  reply = _shown_parts(outcome.replies[index], rate)
  right = outcome.verdicts[index].digit_right
  source = [page_part(prompt.source, rate)]
  return Example(outcome.direction.name, note, source, reply, right)


def _drawings(outcome: Outcome, material: Material) -> tuple[Rows, Rows]:
  """Returns the first drawings of every digit, and as many real test images."""
  shape = material.images.shape[1:]
  drawn: list[list[np.ndarray]] = [[] for _ in range(DIGITS)]
  for prompt, reply in zip(outcome.prompts, outcome.replies, strict=True):
    part = part_of(reply, 'image')
    drawing = np.full(shape, BLANK)
    if part is not None and np.shape(part.pixels) == shape:
      drawing = np.nan_to_num(part.pixels)
    drawn[prompt.digit].append(drawing)
  real = [list(material.images[material.labels == digit]) for digit in range(DIGITS)]
  # Columns of digits become rows, as many as the shortest column has.
  drawn_rows = list(zip(*drawn, strict=False))
  real_rows = list(zip(*real, strict=False))
  rows = min(ROWS, len(drawn_rows), len(real_rows))
  return drawn_rows[:rows], real_rows[:rows]


def _spoken(outcome: Outcome, material: Material, rate: int) -> list[SpokenWord]:
  """Returns the first replies of different words, each beside a real clip."""
  spoken: dict[str, SpokenWord] = {}
  for prompt, reply in zip(outcome.prompts, outcome.replies, strict=True):
    if len(spoken) == WORDS:
      break
    word = material.words[prompt.language][prompt.digit]
    if word in spoken:
      continue
    real = _real_wave(prompt, material)
    if real is None:
      continue
    title = f'{word} ({prompt.language}, voice {prompt.voice or "any"})'
    part = part_of(reply, 'audio')
    generated = page_part(part, rate) if part else None
    clip = page_part({'type': 'audio', 'wave': real}, rate)
    spoken[word] = SpokenWord(title, generated, clip)
  return list(spoken.values())


def _real_wave(prompt: Prompt, material: Material) -> np.ndarray | None:
  """Returns a real clip of the requested word, if possible in the requested voice."""
  wave: np.ndarray | None = None
  for clip in [*material.known_voices, *material.unseen_voices]:
    if clip.digit != prompt.digit or clip.language != prompt.language:
      continue
    if clip.voice == prompt.voice:
      return clip.wave
    if wave is None:
      wave = clip.wave
  return wave
