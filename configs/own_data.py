"""Trains on your own images and sounds as JSON lines: copy this file and change it.

  python -m omni_jax.train --config=configs/own_data.py --config.data.root=own_data \\
    --workdir=runs/own_data

It is small, for a first try. Change the values below a comment that begins with
"Change". For a larger network, take the sizes of configs/digits.py.
colab/your_own_data.ipynb creates such a data folder and runs this file;
docs/add_dataset.md describes the lines.
"""

from ml_collections import ConfigDict

from omni_jax.config import derived


def get_config() -> ConfigDict:
  c = derived(__file__, 'tiny')
  # Add 'evaluate' to score the model on data.eval_file after the training.
  c.stages = ('codec', 'omni')
  # Change: every image is resized to this height and width. Divided by `patch`, they give
  # the sides of the grid, at most `max_grid` below. channels=3 is for colour; mean and std
  # are those of your pixels in [0, 1].
  c.model.image.update(
    dict(height=8, width=8, channels=1, patch=2, mean=0.305, std=0.376, fit='stretch')
  )
  # Change: length of the longest sound; longer ones are skipped as bad records.
  c.model.audio.seconds = 0.96
  # Change: all languages and voices that your messages name.
  c.model.tokenizer.update(dict(languages=('en',), voices=('f1', 'm1'), max_grid=4))
  c.model.decoder.width = 64
  c.model.image.head.update(dict(width=64, hidden=128))
  c.data.source = 'jsonl'
  # Change: the positions of a row, and the (pieces, items) of each stream: (patches,
  # images) and (frames, sounds), with 12.5 frames a second. The run reports examples
  # that do not fit.
  c.data.budget.update(dict(rows=8, length=96))
  c.data.budget.streams.image.update(dict(seen=(32, 2), drawn=(32, 2)))
  c.data.budget.streams.audio.update(dict(heard=(24, 8), spoken=(12, 4)))
  c.codec.update(dict(steps=300, log_every=50, save_every=300))
  c.omni.update(dict(steps=600, log_every=50, save_every=600))
  c.evaluate.update(dict(n_data=100, n_codec=20))
  return c
