"""Provides a stand-in for a trained model, which answers from real data."""

import numpy as np
import pytest
import samples

from omni_jax.data.sources.digits import load_digits
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.evaluate.metrics.text_metrics import named_digit
from omni_jax.generate.api import TrainedModel
from omni_jax.modalities.audio.host import AudioPart
from omni_jax.modalities.image.host import ImagePart
from omni_jax.modalities.text.host import TextPart
from omni_jax.model import ModelConfig

RATE = 8000
ENTRIES = 16
FRAME = 640  # samples of a code of the stand-in's codec
DATA = dict(voices=2, takes=2, rate=RATE, seconds=0.96)


def config(source='digits', **data):
  run = samples.config('base')
  run.model.codec.entries = ENTRIES
  run.data = samples.data_config(source=source, **{**DATA, **data})
  return run


class FakeModel(TrainedModel):
  """Answers prompts with real data of their digit.

  Args:
    shift: what is added to the digit, modulo ten.
    silent: whether replies are empty.
    source, data: values of `config.data`.
  """

  def __init__(self, digits, *, shift=0, silent=False, source='digits', **data):
    self.step = 7
    self.config = config(source, **data)
    self.set_media()
    self._digits = digits
    self._shift = shift
    self._silent = silent
    self._rng = np.random.default_rng(0)
    # The digit and voice of everything that a prompt may show.
    self._known = {}
    self._learn(digits.train_images, digits.train_labels)
    self._learn(digits.test_images, digits.test_labels)
    for clip in [*digits.train_clips, *digits.take_clips, *digits.test_clips]:
      self._known[clip.wave.tobytes()] = (clip.digit, clip.voice)

  def _learn(self, images, labels):
    for image, label in zip(images, labels, strict=True):
      self._known[image.tobytes()] = (int(label), '')

  def set_media(self):
    """Takes the media from the config."""
    self.model_config = ModelConfig.from_config(self.config.model)
    self.hosts = self.model_config.hosts()
    self.tokenizer = self.hosts.tokenizer

  def generate_batch(self, prompts, *, want, seed=0, **sampling):
    if self._silent:
      return [[] for _ in prompts]
    return [self._reply(prompt, want) for prompt in prompts]

  def _reply(self, prompt, want):
    shown = prompt['messages'][0]['content'][0]
    requested = prompt['messages'][-1]
    digit, voice = self._digit_and_voice(shown)
    digit = (digit + self._shift) % 10
    voice = requested.get('voice') or voice
    answers = {'text': self._write, 'image': self._draw, 'audio': self._speak}
    kinds = answers if want == 'any' else [want]
    return [answers[kind](digit, requested['language'], voice) for kind in kinds]

  def _digit_and_voice(self, shown):
    if shown['type'] == 'text':
      return named_digit(shown['text'], DIGIT_WORDS).digit, ''
    payload = shown['pixels'] if shown['type'] == 'image' else shown['wave']
    return self._known[payload.tobytes()]

  def _write(self, digit, language, voice):
    return TextPart(DIGIT_WORDS[language][digit])

  def _draw(self, digit, language, voice):
    images = self._digits.test_images[self._digits.test_labels == digit]
    return ImagePart(images[self._rng.integers(len(images))])

  def _speak(self, digit, language, voice):
    clips = []
    for clip in self._digits.train_clips:
      if clip.digit == digit and clip.language == language:
        clips.append(clip)
    in_voice = [clip for clip in clips if clip.voice == voice]
    clips = in_voice or clips
    return AudioPart(clips[0].wave, RATE)

  def encode_payloads(self, name, waves):
    assert name == 'codec'
    codes = []
    for wave in waves:
      frames = len(wave) // FRAME + 1
      codes.append(self._rng.integers(0, ENTRIES, (frames, 2)))
    return codes

  def decode_payloads(self, name, codes):
    """Returns noise."""
    assert name == 'codec'
    waves = []
    for code in codes:
      samples = len(code) * FRAME
      noise = self._rng.normal(0, 0.01, samples)
      waves.append(np.zeros(samples, np.float32) + noise)
    return waves

  def loss(self, examples):
    return {'text': 0.5, 'total': 1.25}


@pytest.fixture(scope='session')
def digits():
  return load_digits(config().data)


@pytest.fixture(scope='session')
def make_fake(digits):
  """Returns a function that builds a stand-in."""
  return lambda **options: FakeModel(digits, **options)
