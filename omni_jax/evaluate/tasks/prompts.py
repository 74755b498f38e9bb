"""Builds balanced prompts of the nine directions on the digits data.

A prompt holds what is shown, what is requested, and what would be right.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.sources.digits import Digits
from omni_jax.data.sources.espeak import Clip, DIGIT_WORDS
from omni_jax.data.sources.pairs import WORD_OF_MEDIUM
from omni_jax.generate.prompt import chat
from omni_jax.modalities.text.tokenizer import ANY
from omni_jax.sequence.example import text_part

# The medium that a reply holds, by the word for its modality in names of directions.
WANT = {word: medium for medium, word in WORD_OF_MEDIUM.items()}
DIGITS = 10
MAIN = 'main'  # the group of prompts that gives a direction its scores
KNOWN_VOICES = 'known_voices'
UNSEEN_VOICES = 'unseen_voices'


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt of a direction, and what its reply should be.

  Attributes:
    example: chat example in which the assistant's content is empty.
    source: part of the user's message: {'type': …, 'text' or 'pixels' or 'wave': …}.
    digit: digit that the reply must name, draw or say.
    language: language requested of the reply; '' for drawings.
    voice: voice that the reply should have; '' where none is known.
    group: MAIN, or the name of another group, which is reported separately.
  """

  example: dict[str, Any]
  source: dict[str, Any]
  digit: int
  language: str = ''
  voice: str = ''
  group: str = MAIN


class Direction(NamedTuple):
  """The modality that is read and the one that is written, both keys of WANT."""

  source: str
  target: str

  @property
  def name(self) -> str:
    return f'{self.source}_to_{self.target}'


DIRECTIONS = tuple(itertools.starmap(Direction, itertools.product(WANT, repeat=2)))


@dataclasses.dataclass(frozen=True)
class Material:
  """The real test data that prompts are built from.

  Attributes:
    words: language -> the ten digit words.
    images: float32 in [0, 1], (n, height, width, channels).
    labels: digits of the images, (n,).
    unseen_voices: clips of voices that training never had.
    known_voices: clips of known voices, in takes that training never had.
  """

  words: Mapping[str, Sequence[str]]
  images: np.ndarray
  labels: np.ndarray
  unseen_voices: Sequence[Clip]
  known_voices: Sequence[Clip]

  @property
  def languages(self) -> tuple[str, ...]:
    return tuple(self.words)

  @property
  def voices(self) -> tuple[str, ...]:
    return tuple(sorted({clip.voice for clip in self.known_voices}))


def material_of(digits: Digits) -> Material:
  """Returns the test parts of the digits data as material of prompts."""
  return Material(
    words=DIGIT_WORDS,
    images=digits.test_images,
    labels=digits.test_labels,
    unseen_voices=digits.test_clips,
    known_voices=digits.take_clips,
  )


class Question(NamedTuple):
  """The part that a prompt shows, its digit, and its language and voice if any."""

  source: dict[str, Any]
  digit: int
  language: str = ''
  voice: str = ''


def build(
  direction: Direction, material: Material, *, n: int, seed: int
) -> list[Prompt]:
  """Returns n prompts of a direction; for speech, a second group of n // 2 follows.

  One of the two groups has voices that training never had, the other known ones. The
  main group is the harder one (unseen voices), except for speech to speech: only a
  known voice can be recognised in the reply.
  """
  if direction.source == 'text':
    return _prompts(direction, material, _shown_texts(material, n, seed))
  if direction.source == 'image':
    return _prompts(direction, material, _shown_images(material, n, seed))
  main_clips = material.unseen_voices
  other_clips = material.known_voices
  other_group = KNOWN_VOICES
  if direction.target == 'speech':
    main_clips = material.known_voices
    other_clips = material.unseen_voices
    other_group = UNSEEN_VOICES
  prompts = _prompts(direction, material, _shown_clips(main_clips, n, seed))
  others = _prompts(direction, material, _shown_clips(other_clips, n // 2, seed))
  for prompt in others:
    prompts.append(dataclasses.replace(prompt, group=other_group))
  return prompts


def replies(material: Material, *, n: int, seed: int) -> list[Prompt]:
  """Returns n prompts of the task `reply`, which lets the model choose its modalities.

  They show images and words in turn.
  """
  images = _shown_images(material, n, seed)
  texts = _shown_texts(material, n, seed)
  prompts: list[Prompt] = []
  for k in range(n):
    shown = texts if k % 2 else images
    question = shown[k // 2]
    language = _other_language(question.language, material.languages, k // 2)
    voice = material.voices[k % len(material.voices)]
    example = chat([question.source], ANY, language=language, voice=voice)
    prompts.append(Prompt(example, question.source, question.digit, language, voice))
  return prompts


def _shown_texts(material: Material, n: int, seed: int) -> list[Question]:
  """Returns every word of every language in turn."""
  words = list(itertools.product(material.languages, range(DIGITS)))
  questions: list[Question] = []
  for index in _balanced(range(len(words)), n, seed):
    language, digit = words[index]
    source = text_part(material.words[language][digit])
    questions.append(Question(source, digit, language))
  return questions


def _shown_images(material: Material, n: int, seed: int) -> list[Question]:
  labels = [int(label) for label in material.labels]
  questions: list[Question] = []
  for index in _balanced(labels, n, seed):
    source = {'type': 'image', 'pixels': material.images[index]}
    questions.append(Question(source, labels[index]))
  return questions


def _shown_clips(clips: Sequence[Clip], n: int, seed: int) -> list[Question]:
  words = [(clip.language, clip.digit) for clip in clips]
  questions: list[Question] = []
  for index in _balanced(words, n, seed):
    clip = clips[index]
    source = {'type': 'audio', 'wave': clip.wave}
    questions.append(Question(source, int(clip.digit), clip.language, clip.voice))
  return questions


def _prompts(
  direction: Direction, material: Material, questions: Sequence[Question]
) -> list[Prompt]:
  return [
    _prompt(direction, material, k, question) for k, question in enumerate(questions)
  ]


def _prompt(
  direction: Direction, material: Material, k: int, question: Question
) -> Prompt:
  """Returns prompt k of a direction.

  A spoken reply to speech keeps the voice that is heard; to anything else it has the
  voice that the prompt names.
  """
  language = _requested_language(direction, material.languages, k, question.language)
  named = ''
  expected = ''
  if direction.target == 'speech' and not question.voice:
    named = material.voices[k % len(material.voices)]
    expected = named
  elif direction.target == 'speech' and question.voice in material.voices:
    expected = question.voice
  want = WANT[direction.target]
  example = chat([question.source], want, language=language, voice=named)
  if direction.target == 'image':
    language = ''
  return Prompt(example, question.source, question.digit, language, expected)


def _requested_language(
  direction: Direction, languages: Sequence[str], k: int, shown: str
) -> str:
  """Returns the language that prompt k requests.

  Text is translated, and so is speech unless it is transcribed; only reading aloud may
  keep the language.

  Args:
    direction: the direction.
    languages: all languages.
    k: number of the prompt.
    shown: language of what the prompt shows; '' for an image.
  """
  # Every digit meets every language: k alone would step through both in parallel.
  turn = k // DIGITS + k
  # Half of the prompts request a transcript, half any language.
  if direction.name == 'speech_to_text' and turn // len(languages) % 2:
    return shown
  if direction.name in ('text_to_speech', 'speech_to_text'):
    return languages[turn % len(languages)]
  return _other_language(shown, languages, turn)


def _other_language(shown: str, languages: Sequence[str], turn: int) -> str:
  """Returns a language other than the one shown, each in its turn."""
  others = [language for language in languages if language != shown]
  others = others or list(languages)
  return others[turn % len(others)]


def _balanced(classes: Sequence[Any], n: int, seed: int) -> list[int]:
  """Returns indices of n items, each class in turn.

  The items of a class are shuffled, and repeat when all have had their turn.

  Args:
    classes: the class of each item.
    n: number of indices.
    seed: seed of the shuffle.
  """
  rng = np.random.default_rng(seed)
  members: dict[Any, list[int]] = {}
  for k in rng.permutation(len(classes)):
    members.setdefault(classes[k], []).append(int(k))
  cycles = [itertools.cycle(members[key]) for key in sorted(members)]
  return [next(cycles[k % len(cycles)]) for k in range(n)]
