"""Pictures and sounds of your own, as JSON lines: copy this file and change what is marked. Small, for a first try.

  python -m omni_jax.train --config=configs/own_data.py --config.data.root=own_data --workdir=runs/own_data

colab/your_own_data.ipynb makes such a folder and runs this file; docs/add_dataset.md describes the lines. For a larger
network take the sizes of configs/digits.py.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# By path: a config file is run as a file, wherever the command is called from.
_tiny = runpy.run_path(str(pathlib.Path(__file__).with_name('tiny.py')))['get_config']


def get_config() -> ConfigDict:
  c = _tiny()
  c.stages = (
    'codec',
    'omni',
  )  # add 'evaluate' to score data.eval_file when it has learnt
  # Change: every picture becomes this size; height and width over patch is the grid, at most max_grid below.
  # channels=3 for colour; mean and std are those of your pixels in [0, 1].
  c.model.image = ConfigDict(
    dict(height=8, width=8, channels=1, patch=2, mean=0.305, std=0.376, fit='stretch')
  )
  # Change: the longest sound; longer ones are skipped as bad records.
  c.model.audio.seconds = 0.96
  # Change: every language and voice that a message names.
  c.model.tokenizer = ConfigDict(
    dict(languages=('en',), voices=('f1', 'm1'), max_grid=4)
  )
  c.model.decoder.width = c.model.dit.width = 64
  c.model.dit.hidden = 128
  c.data = ConfigDict(
    dict(
      source='jsonl',
      seed=0,
      root='',
      train_file='train.jsonl',
      eval_file='test.jsonl',
      leave_out='',
      codes='computed',
      augment=c.data.augment,
      # Change: positions in a row, how many pictures it holds, and how much sound: 12.5 frames a second, at least those
      # of the longest that is heard or spoken. The run says so where an example does not fit.
      budget=dict(
        rows=8, length=96, seen=2, drawn=2, heard_frames=24, spoken_frames=12
      ),
    )
  )
  c.codec.update(dict(steps=300, log_every=50, save_every=300))
  c.omni.update(dict(steps=600, log_every=50, save_every=600))
  c.evaluate = ConfigDict(dict(n_data=100, n_codec=20))
  return c
