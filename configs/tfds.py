"""A labelled set of TensorFlow Datasets by name: reads an image and writes its label, or hears a word and writes it.

  python -m omni_jax.train --config=configs/tfds.py --workdir=runs/mnist
  python -m omni_jax.train --config=configs/tfds.py --config.data.name=spoken_digit --workdir=runs/heard \\
    --config.data.train_split='train[:90%]' --config.data.eval_split='train[90%:]'

The first start downloads the set and makes its files, which needs a network and the extra [tf]. Not run on whole sets
yet: this project has been developed without a network. The tests read small sets of the same format.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# By path: a config file is run as a file, wherever the command is called from.
_spoken = runpy.run_path(str(pathlib.Path(__file__).with_name('spoken_digits.py')))[
  'get_config'
]


def get_config() -> ConfigDict:
  c = _spoken()
  c.stages = ('omni', 'evaluate')  # no codec: labels are written, nothing is spoken
  c.data = ConfigDict(
    dict(
      source='tfds',
      seed=0,
      name='mnist',
      root='',
      train_split='train',
      eval_split='test',
      read='',
      write='',
      language='en',
      rate=0,
      augment=c.data.augment,
      budget=dict(
        rows=16, length=128, seen=4, drawn=0, heard_frames=40, spoken_frames=0
      ),
    )
  )
  c.omni.steps = 2000
  c.evaluate = ConfigDict(dict(n_data=10_000))
  return c
