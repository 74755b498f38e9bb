"""Real recordings through JSON lines: five speakers of FSDD and the handwriting of MNIST, 28 x 28.

  python -m omni_jax.data.spoken_digits --source=../shared/data --output=data/spoken_digits
  python -m omni_jax.train --config=configs/spoken_digits.py --config.data.root=data/spoken_digits --workdir=runs/spoken
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# By path: a config file is run as a file, wherever the command is called from.
_digits = runpy.run_path(str(pathlib.Path(__file__).with_name('digits.py')))['get_config']


def get_config() -> ConfigDict:
  c = _digits()
  c.model.image = ConfigDict(dict(height=28, width=28, channels=1, patch=7, mean=0.13, std=0.31))
  c.model.audio.seconds = 1.04
  c.model.tokenizer = ConfigDict(dict(languages=('en',), voices=('george', 'jackson', 'nicolas', 'theo', 'yweweler'),
                                      max_grid=4))
  c.data = ConfigDict(dict(
      source='jsonl', seed=0, root='', train_file='train.jsonl', eval_file='test.jsonl',
      budget=dict(rows=16, length=128, seen=3, drawn=3, heard=3, spoken=2, spoken_frames=16),
  ))
  c.omni.steps = 2000
  c.generate.speech_temperature = 0.7
  c.evaluate = ConfigDict(dict(n_data=1024))
  return c
