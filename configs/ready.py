"""All ready sets in one run: digits, emoji and spoken orders, read and written, and text in 20 languages.

  python -m omni_jax.train --config=configs/ready.py --config.data.root=../shared/data --workdir=runs/ready

To show how sets are named and mixed (docs/ready_sources.md); not yet trained to its end, so there are no figures.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from omni_jax.data.sources.ready.ready_set import LANGUAGES

# By path: a config file is run as a file, wherever the command is called from.
_digits = runpy.run_path(str(pathlib.Path(__file__).with_name('digits.py')))[
  'get_config'
]


def get_config() -> ConfigDict:
  c = _digits()
  # Mean and deviation are those of the images that are drawn, half of them MNIST's and half emoji on white.
  c.model.image = ConfigDict(
    dict(height=32, width=32, channels=3, patch=8, mean=0.444, std=0.435, fit='stretch')
  )
  c.model.audio.seconds = 15.04  # the longest order lasts 14.87 s
  c.model.tokenizer = ConfigDict(
    dict(
      languages=LANGUAGES,
      max_grid=4,
      voices=('george', 'jackson', 'nicolas', 'theo', 'yweweler'),
    )
  )
  c.data = ConfigDict(
    dict(
      source='mixture',
      seed=0,
      root='',
      temperature=1.0,
      codes='computed',
      budget=dict(
        rows=8, length=384, seen=4, drawn=2, heard_frames=188, spoken_frames=30
      ),
    )
  )
  text = dict(
    source='text20', longest=160
  )  # bytes of a line: prompt and answer share the 384 positions of a row
  c.data.sources = ConfigDict(
    {
      'fsdd': _of(c, 'fsdd', weight=1.0),
      'fsdd_said': _of(c, 'fsdd', weight=1.0, write='audio'),
      'mnist': _of(c, 'mnist', weight=1.0),
      'mnist_drawn': _of(c, 'mnist', weight=1.0, write='image'),
      'emoji': _of(c, 'emoji', weight=1.0),
      'emoji_drawn': _of(c, 'emoji', weight=1.0, write='image'),
      'barista': _of(c, 'barista', weight=1.0),
      'text20': _of(c, weight=1.0, **text),
      'translated': _of(c, weight=1.0, read='en', **text),
      'shakespeare': _of(
        c, 'text', weight=1.0, train_file='tinyshakespeare/input.txt', piece=256
      ),
    }
  )
  c.evaluate = ConfigDict(dict(n_data=200, n_codec=100))
  return c


def _of(c: ConfigDict, source: str = 'text20', **values: object) -> dict:
  """A source in the folder of the run."""
  return (
    dict(
      source=source, root=c.data.get_ref('root'), train_split='train', eval_split='test'
    )
    | values
  )
