"""Trains on a mixture of all ready sets: digits, emoji, spoken orders, 20 languages.

  python -m omni_jax.train --config=configs/ready.py --workdir=runs/ready \\
    --config.data.root=../shared/data

Digits and emoji are read and written, spoken orders are heard, and text is in 20
languages. The file shows how sets are named and mixed (docs/ready_sources.md). It has
not been trained to the end yet, so there are no figures.
"""

from ml_collections import ConfigDict

from omni_jax.config import derived
from omni_jax.data.sources.ready.fsdd import SPEAKERS
from omni_jax.data.sources.ready.ready_set import LANGUAGES


def get_config() -> ConfigDict:
  c = derived(__file__, 'digits')
  # Mean and deviation are those of the images that are written, half of them from MNIST
  # and half of them emoji on white.
  c.model.image.update(
    dict(height=32, width=32, channels=3, patch=8, mean=0.444, std=0.435)
  )
  c.model.audio.seconds = 15.04  # the longest order lasts 14.87 s
  c.model.tokenizer.languages = LANGUAGES
  c.model.tokenizer.voices = SPEAKERS
  c.data.source = 'mixture'
  c.data.eval_file = ''
  c.data.augment = ConfigDict()
  # Sixteen rows share their pools, because sounds last from half a second to fifteen
  # seconds. A row has room for the longest.
  c.data.budget.update(dict(rows=32, length=384, group=16))
  c.data.budget.streams.image.update(dict(seen=(208, 14), drawn=(208, 14)))
  c.data.budget.streams.audio.update(dict(heard=(736, 32), spoken=(38, 12)))
  # `longest` is in bytes: prompt and answer share the 384 positions of a row.
  text = dict(source='text20', longest=160)
  shakespeare = dict(source='text', train_file='tinyshakespeare/input.txt', piece=256)
  sources = {
    'fsdd': dict(source='fsdd'),
    'fsdd_spoken': dict(source='fsdd', write='audio'),
    'mnist': dict(source='mnist'),
    'mnist_drawn': dict(source='mnist', write='image'),
    'emoji': dict(source='emoji'),
    'emoji_drawn': dict(source='emoji', write='image'),
    'barista': dict(source='barista'),
    'text20': text,
    'translated': dict(read='en', **text),
    'shakespeare': shakespeare,
  }
  for name, values in sources.items():
    c.data.sources[name] = ConfigDict(dict(weight=1.0, **values))
  c.evaluate.update(dict(n_data=200, n_codec=100))
  return c
