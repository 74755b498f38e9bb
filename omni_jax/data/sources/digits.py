"""The embedded default data: handwritten digits (scikit-learn's, real hands) and digit words spoken in four languages.

Every example is drawn by its index, from one of the recipes below; nothing is downloaded or stored.
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

LANGUAGES = tuple(DIGIT_WORDS)
HELDOUT_TAKES = ((150, 45),)  # words per minute, pitch: never trained on
TEST_SHARE = 0.25  # of the images


@dataclasses.dataclass(frozen=True)
class Digits:
  """Images float32 in [0, 1], shape (n, 8, 8, 1), with labels; spoken digit words as clips."""

  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  train_clips: list[Clip]
  take_clips: list[Clip]  # voices of training, a rate and pitch that training never had
  test_clips: list[Clip]  # voices that training never had


@functools.lru_cache(maxsize=2)
def _load(voices: int, takes: int, rate: int, seconds: float) -> Digits:
  try:
    from sklearn.datasets import load_digits as bundled
  except ImportError as error:
    raise UserError(
      "the digits data needs scikit-learn: pip install 'omni_jax[demo]'"
    ) from error
  data = bundled()
  images = (data.images / 16).astype(np.float32)[..., None]
  order = np.random.default_rng(0).permutation(len(images))
  cut = round(len(images) * (1 - TEST_SHARE))
  train, test = order[:cut], order[cut:]
  speak = functools.partial(corpus, sample_rate=rate, seconds=seconds)
  known = TRAIN_VARIANTS[:voices]
  clips = (
    speak(known, TAKES[:takes]),
    speak(known, HELDOUT_TAKES),
    speak(HELDOUT_VARIANTS, TAKES[:1] + TAKES[2:4]),
  )
  return Digits(
    images[train], data.target[train], images[test], data.target[test], *clips
  )


def load_digits(config: Any) -> Digits:
  """The data of a run: `config.voices` speakers, `config.takes` ways of speaking, audio at `config.rate`."""
  return _load(config.voices, config.takes, config.rate, config.seconds)


def _text(word: str) -> dict[str, Any]:
  return {'type': 'text', 'text': word}


def _image(pixels: np.ndarray) -> dict[str, Any]:
  return {'type': 'image', 'pixels': pixels}


def _audio(clip: Clip) -> dict[str, Any]:
  return {'type': 'audio', 'wave': clip.wave}


class DigitExamples(Sequence):
  """Examples by index, endless in effect: recipe, digit, language, voice and handwriting are drawn from the index.

  Recipes are named `input_to_output` with image, speech and text; `reply` answers with text, image and speech in one.
  A voice is heard in all its takes and speaks in the first `spoken_takes` of them: what is to be said stays learnable.
  """

  def __init__(
    self,
    digits: Digits,
    recipes: Mapping[str, float],
    *,
    seed: int,
    spoken_takes: int = 1,
    length: int = 10**7,
  ):
    unknown = (
      set(recipes) - {f'{a}_to_{b}' for a in INPUTS for b in OUTPUTS} - {'reply'}
    )
    if unknown or not recipes:
      raise UserError(
        f'config.data.recipes: {sorted(unknown)} is unknown; a recipe is input_to_output of image, '
        f"speech and text, or 'reply'"
      )
    self._digits, self._seed, self._length = digits, seed, length
    self._names = tuple(recipes)
    self._p = np.array([recipes[name] for name in self._names], np.float64)
    self._p /= self._p.sum()
    self._images = [np.flatnonzero(digits.train_labels == d) for d in range(10)]
    self._takes: dict[
      str, list[dict[tuple[str, int], Clip]]
    ] = {}  # by voice, in the order of TAKES
    for i, clip in enumerate(digits.train_clips):
      # corpus() walks voices, takes, languages, digits.
      takes = self._takes.setdefault(clip.voice, [])
      if i % (10 * len(LANGUAGES)) == 0:
        takes.append({})
      takes[-1][clip.language, clip.digit] = clip
    self._voices, self._spoken_takes = tuple(self._takes), spoken_takes

  def __len__(self) -> int:
    return self._length

  def identity(self) -> str:
    """Digest of what examples are made of, and how."""
    asked, digits = (
      (self._names, self._p.tolist(), self._seed, self._spoken_takes),
      self._digits,
    )
    digest = hashlib.blake2b(repr(asked).encode(), digest_size=8)
    for array in (
      digits.train_images,
      digits.train_labels,
      *(clip.wave for clip in digits.train_clips),
    ):
      digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()

  def payloads(self, medium: str) -> list[np.ndarray]:
    """Returns all clips or images that the examples are made of."""
    if medium == 'audio':
      return [clip.wave for clip in self._digits.train_clips]
    return list(self._digits.train_images) if medium == 'image' else []

  def __getitem__(self, index: int) -> dict[str, Any]:
    rng = np.random.default_rng((self._seed, index))
    name = self._names[rng.choice(len(self._names), p=self._p)]
    scene = _Scene(self, rng)
    if name == 'reply':
      source = INPUTS[('image', 'speech', 'text')[rng.integers(3)]](scene)
      content = [
        _text(scene.word),
        scene.draw(),
        _audio(scene.spoken[scene.other, scene.digit]),
      ]
      reply = {
        'task': 'reply',
        'language': scene.other,
        'voice': scene.voice,
        'content': content,
      }
    else:
      given, _, wanted = name.partition('_to_')
      source, reply = INPUTS[given](scene), OUTPUTS[wanted](scene, given)
    messages = [{'role': 'user', 'content': [source]}, {'role': 'assistant', **reply}]
    return {'id': f'digits/{index}', 'messages': messages}


class _Scene:
  """What one example is about: a digit, a speaker in one take, a language to read and one to answer in."""

  def __init__(self, examples: DigitExamples, rng: np.random.Generator):
    self.rng, self.digit = rng, int(rng.integers(10))
    self.voice = examples._voices[rng.integers(len(examples._voices))]
    takes = examples._takes[self.voice]
    self.heard, self.spoken = (
      takes[rng.integers(n)] for n in (len(takes), examples._spoken_takes)
    )
    self.language, self.other = (
      LANGUAGES[i] for i in rng.choice(len(LANGUAGES), 2, replace=False)
    )
    self._digits, self._images = examples._digits, examples._images[self.digit]

  @property
  def word(self) -> str:
    return DIGIT_WORDS[self.other][self.digit]

  def pixels(self) -> np.ndarray:
    return self._digits.train_images[self.rng.choice(self._images)]

  def draw(self) -> dict[str, Any]:
    return _image(self.pixels())


def _write(scene: _Scene, given: str) -> dict[str, Any]:
  # Speech is mostly transcribed in its own language; text is always put into another one.
  if given == 'speech' and scene.rng.random() < 0.7:
    scene.other = scene.language
  return {'task': 'write', 'language': scene.other, 'content': [_text(scene.word)]}


def _draw(scene: _Scene, given: str) -> dict[str, Any]:
  del given
  return {'task': 'draw', 'language': scene.other, 'content': [scene.draw()]}


def _speak(scene: _Scene, given: str) -> dict[str, Any]:
  if given == 'text' and scene.rng.random() < 0.3:  # reading aloud
    scene.other = scene.language
  content = [_audio(scene.spoken[scene.other, scene.digit])]
  voice = (
    {} if given == 'speech' else {'voice': scene.voice}
  )  # the answer to speech has the voice that was heard
  return {'task': 'speak', 'language': scene.other, **voice, 'content': content}


INPUTS = {
  'image': lambda scene: scene.draw(),
  'speech': lambda scene: _audio(scene.heard[scene.language, scene.digit]),
  'text': lambda scene: _text(DIGIT_WORDS[scene.language][scene.digit]),
}
OUTPUTS = {'text': _write, 'image': _draw, 'speech': _speak}
