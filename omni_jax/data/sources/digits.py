"""The embedded default data: handwritten digits, and digit words in four languages.

The images are scikit-learn's; the speech is synthesised. Every example is built from
its index by one of the recipes below; nothing is downloaded or stored.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

from omni_jax.data.sources.espeak import (
  Clip,
  corpus,
  DIGIT_WORDS,
  HELDOUT_VARIANTS,
  TAKES,
  TRAIN_VARIANTS,
)
from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import ANY, TASKS
from omni_jax.sequence.example import text_part

LANGUAGES = tuple(DIGIT_WORDS)
HELDOUT_TAKES = ((150, 45),)  # words per minute and pitch that training never has
TEST_SHARE = 0.25  # of the images
OWN_LANGUAGE = 0.7  # share of the speech that is transcribed in its own language
READ_ALOUD = 0.3  # share of the text that is spoken in its own language

Take = dict[tuple[str, int], Clip]  # the clips of one take, by language and digit


@dataclasses.dataclass(frozen=True)
class Digits:
  """Handwritten digits and spoken digit words.

  Attributes:
    train_images, test_images: float32 in [0, 1], shape (n, 8, 8, 1).
    train_labels, test_labels: digits of the images, shape (n,).
    train_clips: clips of training.
    take_clips: clips by voices of training, with a rate and pitch that training never
      has.
    test_clips: clips by voices that training never has.
  """

  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  train_clips: list[Clip]
  take_clips: list[Clip]
  test_clips: list[Clip]


@functools.lru_cache(maxsize=2)
def _load(voices: int, takes: int, rate: int, seconds: float) -> Digits:
  try:
    from sklearn.datasets import load_digits as load_bundled
  except ImportError as error:
    raise UserError(
      "the digits data needs scikit-learn: pip install 'omni_jax[demo]'"
    ) from error
  bundled = load_bundled()
  images = (bundled.images / 16).astype(np.float32)[..., None]
  labels = bundled.target
  order = np.random.default_rng(0).permutation(len(images))
  cut = round(len(images) * (1 - TEST_SHARE))
  train = order[:cut]
  test = order[cut:]
  speak = functools.partial(corpus, sample_rate=rate, seconds=seconds)
  train_voices = TRAIN_VARIANTS[:voices]
  return Digits(
    train_images=images[train],
    train_labels=labels[train],
    test_images=images[test],
    test_labels=labels[test],
    train_clips=speak(train_voices, TAKES[:takes]),
    take_clips=speak(train_voices, HELDOUT_TAKES),
    test_clips=speak(HELDOUT_VARIANTS, TAKES[:1] + TAKES[2:4]),
  )


def load_digits(config: Any) -> Digits:
  """Returns the images and clips of a run, which are loaded once per process.

  Args:
    config: `config.data`: `voices` is the number of speakers, `takes` the number of
      ways in which each speaks, `rate` the samples per second, `seconds` the longest
      clip.

  Raises:
    UserError: if scikit-learn or the speech synthesis is not installed.
  """
  return _load(config.voices, config.takes, config.rate, config.seconds)


def _image(pixels: np.ndarray) -> dict[str, Any]:
  return {'type': 'image', 'pixels': pixels}


def _audio(clip: Clip) -> dict[str, Any]:
  return {'type': 'audio', 'wave': clip.wave}


class DigitExamples(Sequence):
  """Examples by index, practically endless.

  Recipe, digit, languages, voice and handwriting are drawn at random by the index.
  Recipes are named `input_to_output`, with image, speech and text; `reply` answers with
  text, image and speech in one message. A voice is heard in all its takes but speaks
  only in the first `spoken_takes` of them, so that the speech to be written stays
  learnable.

  Args:
    digits: images and clips.
    recipes: relative weights of the recipes, by name.
    seed: seed of the draws.
    spoken_takes: number of takes in which a voice answers.
    length: number of examples.

  Raises:
    UserError: if there is no recipe, or an unknown one.
  """

  def __init__(
    self,
    digits: Digits,
    recipes: Mapping[str, float],
    *,
    seed: int,
    spoken_takes: int,
    length: int = 10**7,
  ):
    known = {f'{source}_to_{target}' for source in INPUTS for target in OUTPUTS}
    unknown = set(recipes) - known - {'reply'}
    if unknown or not recipes:
      problem = f'{sorted(unknown)} is unknown' if unknown else 'it is empty'
      raise UserError(
        f'config.data.recipes: {problem}; a recipe is input_to_output with image, '
        "speech and text, or 'reply'"
      )
    self._digits = digits
    self._seed = seed
    self._length = length
    self._names = tuple(recipes)
    weights = np.array(list(recipes.values()), np.float64)
    self._probabilities = weights / weights.sum()
    self._images = [np.flatnonzero(digits.train_labels == d) for d in range(10)]
    self._takes = _takes_by_voice(digits.train_clips)
    self._voices = tuple(self._takes)
    self._spoken_takes = spoken_takes

  def __len__(self) -> int:
    return self._length

  def identity(self) -> str:
    """Returns a digest of the images, the clips and the settings."""
    settings = (
      self._names,
      self._probabilities.tolist(),
      self._seed,
      self._spoken_takes,
    )
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    arrays: list[np.ndarray] = [self._digits.train_images, self._digits.train_labels]
    arrays += [clip.wave for clip in self._digits.train_clips]
    for array in arrays:
      digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

  def payloads(self, medium: str) -> list[np.ndarray]:
    """Returns all clips or images that the examples are built from."""
    if medium == 'audio':
      return [clip.wave for clip in self._digits.train_clips]
    return list(self._digits.train_images) if medium == 'image' else []

  def __getitem__(  # type: ignore[override]  # no slices
    self, index: int
  ) -> dict[str, Any]:
    rng = np.random.default_rng((self._seed, index))
    recipe = rng.choice(len(self._names), p=self._probabilities)
    name = self._names[recipe]
    scene = _Scene(self, rng)
    if name == 'reply':
      source = ('image', 'speech', 'text')[rng.integers(3)]
      question = INPUTS[source](scene)
      answer = _reply(scene)
    else:
      source, _, target = name.partition('_to_')
      question = INPUTS[source](scene)
      answer = OUTPUTS[target](scene, source)
    user = {'role': 'user', 'content': [question]}
    messages = [user, {'role': 'assistant', **answer}]
    return {'id': f'digits/{index}', 'messages': messages}


def _takes_by_voice(clips: Sequence[Clip]) -> dict[str, list[Take]]:
  """Returns the takes of each voice in the order of TAKES.

  `corpus` returns the clips ordered by voice, take, language and digit.
  """
  takes_by_voice: dict[str, list[Take]] = {}
  clips_per_take = 10 * len(LANGUAGES)
  for number, clip in enumerate(clips):
    takes = takes_by_voice.setdefault(clip.voice, [])
    if number % clips_per_take == 0:
      takes.append({})
    takes[-1][clip.language, clip.digit] = clip
  return takes_by_voice


class _Scene:
  """The random choices of one example: a digit, a speaker and two languages.

  Attributes:
    heard, spoken: the speaker's takes in the question and in the answer.
    question_language, answer_language: their languages.
  """

  def __init__(self, examples: DigitExamples, rng: np.random.Generator):
    self.rng = rng
    self.digit = int(rng.integers(10))
    self.voice = examples._voices[rng.integers(len(examples._voices))]
    takes = examples._takes[self.voice]
    self.heard = takes[rng.integers(len(takes))]
    self.spoken = takes[rng.integers(examples._spoken_takes)]
    first, second = rng.choice(len(LANGUAGES), 2, replace=False)
    self.question_language = LANGUAGES[first]
    self.answer_language = LANGUAGES[second]
    self._digits = examples._digits
    self._images = examples._images[self.digit]

  @property
  def word(self) -> str:
    return DIGIT_WORDS[self.answer_language][self.digit]

  def draw(self) -> dict[str, Any]:
    """Returns a random image of the digit."""
    number = self.rng.choice(self._images)
    return _image(self._digits.train_images[number])

  def speak(self) -> dict[str, Any]:
    """Returns the answer's clip."""
    return _audio(self.spoken[self.answer_language, self.digit])


def _write(scene: _Scene, source: str) -> dict[str, Any]:
  # Speech is mostly transcribed in its own language; text is always translated.
  if source == 'speech' and scene.rng.random() < OWN_LANGUAGE:
    scene.answer_language = scene.question_language
  content = [text_part(scene.word)]
  return {'task': TASKS['text'], 'language': scene.answer_language, 'content': content}


def _draw(scene: _Scene, source: str) -> dict[str, Any]:
  del source
  content = [scene.draw()]
  return {'task': TASKS['image'], 'language': scene.answer_language, 'content': content}


def _speak(scene: _Scene, source: str) -> dict[str, Any]:
  if source == 'text' and scene.rng.random() < READ_ALOUD:
    scene.answer_language = scene.question_language
  answer: dict[str, Any] = {'task': TASKS['audio'], 'language': scene.answer_language}
  if source != 'speech':  # the answer to speech has the voice that was heard
    answer['voice'] = scene.voice
  answer['content'] = [scene.speak()]
  return answer


def _reply(scene: _Scene) -> dict[str, Any]:
  return {
    'task': TASKS[ANY],
    'language': scene.answer_language,
    'voice': scene.voice,
    'content': [text_part(scene.word), scene.draw(), scene.speak()],
  }


def _image_input(scene: _Scene) -> dict[str, Any]:
  return scene.draw()


def _speech_input(scene: _Scene) -> dict[str, Any]:
  return _audio(scene.heard[scene.question_language, scene.digit])


def _text_input(scene: _Scene) -> dict[str, Any]:
  return text_part(DIGIT_WORDS[scene.question_language][scene.digit])


INPUTS = {'image': _image_input, 'speech': _speech_input, 'text': _text_input}
OUTPUTS = {'text': _write, 'image': _draw, 'speech': _speak}
