"""Text, images and speech around a decoder of Mixtral 8x7B's shape, 48 billion parameters: 64 chips of TPU v5p.

  python -m omni_jax.train --config=configs/omni_8x7b.py --config.data.root=DATA --workdir=gs://BUCKET/omni_8x7b
  python -m omni_jax.compile --config=configs/omni_8x7b.py --topology=v5p:4x4x4

The shape is that of arXiv 2401.04088: width 4096, 32 layers, 32 heads, 8 of keys and values, 8 experts of 14336, two a
token. Data, images and sounds as in configs/omni_1b.py; what it takes on chips, measured by compiling: docs/pods.md.
`--config=configs/omni_8x7b.py:text` is the same decoder with text alone.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# By path: a config file is run as a file, wherever the command is called from.
_base = runpy.run_path(str(pathlib.Path(__file__).with_name('omni_1b.py')))


def get_config(only: str = '') -> ConfigDict:
  c = _base['get_config']()
  c.model.decoder.update(
    dict(
      width=4096,
      layers=32,
      heads=32,
      kv_heads=8,
      head_dim=128,
      experts=8,
      top_k=2,
      expert_hidden=14336,
      shared_hidden=0,
    )
  )
  c.model.audio_embed.hidden = 4096
  c.model.dit.update(dict(width=2048, layers=16, heads=16, hidden=5632))
  c.model.codec_head.update(dict(width=2048, layers=4, heads=16, hidden=5632))
  c.data.budget.rows = 256
  c.omni.optim.lr = 1e-4
  return _base['text_only'](c) if only else c
