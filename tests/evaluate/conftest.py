"""A stand-in for a trained model that answers from real data: right, wrong, or not at all."""

from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest
from samples import data_config

from omni_jax.data.sources.digits import load_digits
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.evaluate.metrics.text_metrics import name_of
from omni_jax.model import ModelConfig

RATE = 8000
ENTRIES = 16


def config(source='digits', **data):
  return ml_collections.ConfigDict(
    {
      'data': data_config(
        **(dict(source=source, voices=2, takes=2, rate=RATE, seconds=0.96) | data)
      ),
      'model': {
        'dtype': 'float32',
        'image': {},
        'audio': {},
        'codec': {'entries': ENTRIES},
      },
    }
  )


class FakeModel:
  """Answers every prompt with real training data of digit + `shift`; `silent` replies hold nothing."""

  step = 7

  def __init__(self, digits, *, shift=0, silent=False, source='digits', **data):
    self.config = config(source, **data)
    self.restored()
    self._digits, self._shift, self._silent = digits, shift, silent
    self._known = {}  # the fake looks up the digit of what it is shown
    for images, labels in (
      (digits.train_images, digits.train_labels),
      (digits.test_images, digits.test_labels),
    ):
      self._known |= {
        image.tobytes(): (int(label), '')
        for image, label in zip(images, labels, strict=True)
      }
    for clip in [*digits.train_clips, *digits.take_clips, *digits.test_clips]:
      self._known[clip.wave.tobytes()] = (clip.digit, clip.voice)
    self._rng = np.random.default_rng(0)

  def restored(self):
    """Takes its media from its config."""
    self.model_config = ModelConfig.from_config(self.config.model)
    self.hosts = self.model_config.hosts()
    self.tokenizer = self.hosts.tokenizer

  def generate_batch(self, prompts, *, want, seed=0, **sampling):
    return [[] if self._silent else self._reply(prompt, want) for prompt in prompts]

  def _reply(self, prompt, want):
    shown, asked = prompt['messages'][0]['content'][0], prompt['messages'][-1]
    if shown['type'] == 'text':
      digit, voice = name_of(shown['text'], DIGIT_WORDS).digit, ''
    else:
      digit, voice = self._known[
        (shown['pixels'] if shown['type'] == 'image' else shown['wave']).tobytes()
      ]
    digit = (digit + self._shift) % 10
    make = {'text': self._write, 'image': self._draw, 'audio': self._speak}
    kinds = make if want == 'any' else [want]
    return [
      make[kind](digit, asked['language'], asked.get('voice') or voice)
      for kind in kinds
    ]

  def _write(self, digit, language, voice):
    return SimpleNamespace(
      type='text', text=DIGIT_WORDS[language][digit], pixels=None, wave=None, rate=None
    )

  def _draw(self, digit, language, voice):
    images = self._digits.test_images[self._digits.test_labels == digit]
    chosen = images[self._rng.integers(len(images))]
    return SimpleNamespace(type='image', text=None, pixels=chosen, wave=None, rate=None)

  def _speak(self, digit, language, voice):
    clips = [
      c for c in self._digits.train_clips if (c.digit, c.language) == (digit, language)
    ]
    clips = [c for c in clips if c.voice == voice] or clips
    return SimpleNamespace(
      type='audio', text=None, pixels=None, wave=clips[0].wave, rate=RATE
    )

  def encode_payloads(self, name, waves):
    assert name == 'codec'
    return [self._rng.integers(0, ENTRIES, (len(wave) // 640 + 1, 2)) for wave in waves]

  def decode_payloads(self, name, codes):
    assert name == 'codec'
    return [
      np.zeros(len(c) * 640, np.float32) + self._rng.normal(0, 0.01, len(c) * 640)
      for c in codes
    ]

  def loss(self, examples):
    return {'text': 0.5, 'total': 1.25}


@pytest.fixture(scope='session')
def digits():
  return load_digits(config().data)


@pytest.fixture(scope='session')
def fake(digits):
  return lambda **kwargs: FakeModel(digits, **kwargs)
