"""Balanced prompts of the nine directions on the digits data: what is shown, what is asked, what would be right."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

MODALITIES = ('text', 'image', 'speech')
DIGITS = 10


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One question to the model.

  Attributes:
    example: the chat example, the assistant's content empty.
    source: the part that the user shows: {'type': …, 'text' or 'pixels' or 'wave': …}.
    digit: the digit that the reply must name, draw or say.
    language: the language asked for; '' for drawings.
    voice: the voice the reply should have; '' where none is known.
    group: 'main', or the name of a set that is reported beside it.
  """

  example: dict[str, Any]
  source: dict[str, Any]
  digit: int
  language: str = ''
  voice: str = ''
  group: str = 'main'


class Direction(NamedTuple):
  source: str  # of MODALITIES
  target: str

  @property
  def name(self) -> str:
    return f'{self.source}_to_{self.target}'


DIRECTIONS = tuple(
  Direction(source, target)
  for source, target in itertools.product(MODALITIES, MODALITIES)
)
TASK = {'text': 'write', 'image': 'draw', 'speech': 'speak'}
WANT = {'text': 'text', 'image': 'image', 'speech': 'audio'}


@dataclasses.dataclass(frozen=True)
class Material:
  """What prompts are made of: real test images, clips of held-out voices, held-out takes of known voices.

  Attributes:
    words: language -> the ten digit words.
    images: (n, height, width, channels) float32 in [0, 1]; `labels`: their digits.
    unseen_voices, known_voices: clips (see `omni_jax.data.sources.espeak.Clip`).
  """

  words: Mapping[str, Sequence[str]]
  images: np.ndarray
  labels: np.ndarray
  unseen_voices: Sequence[Any]
  known_voices: Sequence[Any]

  @property
  def languages(self) -> tuple[str, ...]:
    return tuple(self.words)

  @property
  def voices(self) -> tuple[str, ...]:
    return tuple(sorted({clip.voice for clip in self.known_voices}))


class Question(NamedTuple):
  """What a prompt shows, and what is known of it."""

  source: dict[str, Any]
  digit: int
  language: str = ''
  voice: str = ''


def build(
  direction: Direction, material: Material, *, n: int, seed: int
) -> list[Prompt]:
  """The prompts of a direction; those from speech come twice, for voices never heard and for known ones.

  The main group is the harder one (voices never heard), except speech to speech: only a known voice can be recognised
  in the reply, so there the known ones are the main group.
  """
  if direction.source != 'speech':
    shown = _shown_texts if direction.source == 'text' else _shown_images
    return [
      _ask(direction, material, k, item)
      for k, item in enumerate(shown(material, n, seed))
    ]
  groups = [
    ('unseen_voices', material.unseen_voices),
    ('known_voices', material.known_voices),
  ]
  if direction.target == 'speech':
    groups.reverse()
  (_, main), (name, other) = groups
  prompts = [
    _ask(direction, material, k, item)
    for k, item in enumerate(_shown_clips(main, n, seed))
  ]
  others = [
    _ask(direction, material, k, item)
    for k, item in enumerate(_shown_clips(other, n // 2, seed))
  ]
  return prompts + [dataclasses.replace(prompt, group=name) for prompt in others]


def replies(material: Material, *, n: int, seed: int) -> list[Prompt]:
  """Prompts that let the model choose what to reply with: task `reply`, to pictures and words in turn."""
  shown = itertools.chain.from_iterable(
    zip(_shown_images(material, n, seed), _shown_texts(material, n, seed), strict=True)
  )
  prompts = []
  for k, item in enumerate(itertools.islice(shown, n)):
    asked = _other_language(item.language, material.languages, k // 2)
    voice = material.voices[k % len(material.voices)]
    prompts.append(
      Prompt(
        _chat(item.source, asked, 'reply', voice), item.source, item.digit, asked, voice
      )
    )
  return prompts


def _shown_texts(material: Material, n: int, seed: int) -> list[Question]:
  """Every word of every language in turn."""
  words = [
    (language, digit) for language in material.languages for digit in range(DIGITS)
  ]
  return [
    Question({'type': 'text', 'text': material.words[language][digit]}, digit, language)
    for language, digit in (words[k] for k in _balanced(range(len(words)), n, seed))
  ]


def _shown_images(material: Material, n: int, seed: int) -> list[Question]:
  return [
    Question({'type': 'image', 'pixels': material.images[k]}, int(material.labels[k]))
    for k in _balanced([int(label) for label in material.labels], n, seed)
  ]


def _shown_clips(clips: Sequence[Any], n: int, seed: int) -> list[Question]:
  chosen = [
    clips[k]
    for k in _balanced([(clip.language, clip.digit) for clip in clips], n, seed)
  ]
  return [
    Question(
      {'type': 'audio', 'wave': clip.wave}, int(clip.digit), clip.language, clip.voice
    )
    for clip in chosen
  ]


def _ask(direction: Direction, material: Material, k: int, item: Question) -> Prompt:
  """Question k of a direction. The reply to speech has the voice heard; any other speech the voice that is named."""
  asked = _asked_language(direction, material.languages, k, item.language)
  named = expected = ''
  if direction.target == 'speech':
    named = '' if item.voice else material.voices[k % len(material.voices)]
    expected = named or (item.voice if item.voice in material.voices else '')
  example = _chat(item.source, asked, TASK[direction.target], named)
  return Prompt(
    example,
    item.source,
    item.digit,
    '' if direction.target == 'image' else asked,
    expected,
  )


def _asked_language(
  direction: Direction, languages: Sequence[str], k: int, shown: str
) -> str:
  turn = (
    k // DIGITS + k
  )  # every digit meets every language: k alone walks through digits and languages in step
  # Text is translated, speech too unless it is transcribed; only reading aloud may keep the language.
  if direction.name == 'speech_to_text' and turn // len(languages) % 2:
    return shown  # half of the prompts ask for a transcript, half for any language
  if direction.name in ('text_to_speech', 'speech_to_text'):
    return languages[turn % len(languages)]
  return _other_language(shown, languages, turn)


def _other_language(shown: str, languages: Sequence[str], turn: int) -> str:
  """A language that is not the one shown ('': none is)."""
  others = [language for language in languages if language != shown] or list(languages)
  return others[turn % len(others)]


def _chat(source: dict, language: str, task: str, voice: str = '') -> dict[str, Any]:
  assistant = {'role': 'assistant', 'language': language, 'task': task, 'content': []}
  if voice:
    assistant['voice'] = voice
  return {'messages': [{'role': 'user', 'content': [source]}, assistant]}


def _balanced(classes: Sequence[Any], n: int, seed: int) -> list[int]:
  """Indices of n items, each class in turn; items of a class are shuffled, and come again when all had their turn."""
  rng = np.random.default_rng(seed)
  members: dict[Any, list[int]] = {}
  for k in rng.permutation(len(classes)):
    members.setdefault(classes[k], []).append(int(k))
  cycles = [itertools.cycle(members[key]) for key in sorted(members)]
  return [next(cycles[k % len(cycles)]) for k in range(n)]
