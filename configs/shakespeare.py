"""A sanity check of the decoder against a public figure: tiny Shakespeare by characters, in nanoGPT's CPU setting.

  python -m omni_jax.train --config=configs/shakespeare.py --config.data.root=../shared/data/tinyshakespeare \\
    --workdir=runs/shakespeare

nanoGPT's README trains 4 layers of width 128 with 12 pieces of 64 characters for 2,000 steps on a CPU and reaches a
validation loss of 1.88 nats a character. Same layers, width, pieces, steps and split (last tenth) here; the other
two heads are on, but get nothing to do.

Validation loss 1.617 (all 1,742 pieces of the last tenth, each without what stands before it); 7 min 13 s with its
evaluation on two CPU cores, seed 0, commit 162d2af. Not the same network: eight experts of which
two and a shared one work, 1.19 M parameters in the decoder, 0.60 M of them for one position (nanoGPT: 0.80 M), and
Muon in the place of AdamW.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# By path: a config file is run as a file, wherever the command is called from.
_digits = runpy.run_path(str(pathlib.Path(__file__).with_name('digits.py')))[
  'get_config'
]


def get_config() -> ConfigDict:
  c = _digits()
  c.stages = ('omni', 'evaluate')
  c.model.tokenizer = ConfigDict(dict(languages=('en',), voices=(), max_grid=4))
  c.model.dit.update(dict(width=16, layers=1, heads=1, hidden=16))
  c.model.codec_head.update(dict(width=16, layers=1, heads=1, hidden=16))
  c.model.codec.update(dict(latent=8, entries=8, width=16, layers=1, hidden=16))
  c.data = ConfigDict(
    dict(
      source='text',
      seed=0,
      root='',
      train_file='input.txt',
      piece=64,
      budget=dict(rows=12, length=65, seen=0, drawn=0, heard_frames=0, spoken_frames=0),
    )
  )
  c.omni.update(dict(steps=2000, log_every=100, save_every=1000))
  c.evaluate = ConfigDict()
  return c
