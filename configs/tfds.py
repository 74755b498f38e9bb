"""Learns to label the images or sounds of a data set in TensorFlow Datasets.

  python -m omni_jax.train --config=configs/tfds.py --workdir=runs/mnist
  python -m omni_jax.train --config=configs/tfds.py --workdir=runs/heard \\
    --config.data.name=spoken_digit --config.data.train_split='train[:90%]' \\
    --config.data.eval_split='train[90%:]'

The first start downloads the set and prepares its files, which needs a network and the
extra [tf]. It has not been run on whole sets yet, because this project has been
developed without a network. The tests read small sets of the same format.
"""

from ml_collections import ConfigDict

from omni_jax.config import derived


def get_config() -> ConfigDict:
  c = derived(__file__, 'spoken_digits')
  c.stages = ('omni', 'evaluate')  # no codec: labels are written, nothing is spoken
  c.data.update(dict(source='tfds', name='mnist', language='en'))
  # The rate is not that of model.audio: a set has a rate of its own, and this one is
  # for sounds that do not state theirs.
  del c.data.rate
  c.data.rate = 0
  c.data.budget.streams.image.update(dict(seen=(64, 4), drawn=(0, 0)))
  c.data.budget.streams.audio.update(dict(heard=(40, 8), spoken=(0, 0)))
  c.omni.steps = 2000
  c.evaluate.targets = ConfigDict()
  c.evaluate.n_data = 10_000
  return c
