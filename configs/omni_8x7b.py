"""Text, images and speech with a decoder of the shape of Mixtral 8x7B, for TPU pods.

  python -m omni_jax.train --config=configs/omni_8x7b.py --config.data.root=DATA \\
    --workdir=gs://BUCKET/omni_8x7b
  python -m omni_jax.compile --config=configs/omni_8x7b.py --topology=v5p:4x4x4

It has 48 billion parameters and needs 64 chips of TPU v5p. The shape is that of arXiv
2401.04088: width 4096, 32 layers, 32 heads, 8 key and value heads, and 8 experts of
width 14336, of which a token visits two. Data, images and sounds are as in
configs/omni_1b.py. docs/pods.md lists what the run takes on chips, measured by compiling
it. `--config=configs/omni_8x7b.py:text` is the same decoder with text alone.
"""

from ml_collections import ConfigDict

from omni_jax.config import config_file, derived


def get_config(only: str = '') -> ConfigDict:
  """Returns the config of the run; `only` is as in configs/omni_1b.py."""
  c = derived(__file__, 'omni_1b')
  c.model.decoder.update(
    dict(
      width=4096, layers=32, heads=32, kv_heads=8, expert_hidden=14336, shared_hidden=0
    )
  )
  c.model.audio.embed.hidden = 4096
  c.model.image.head.update(dict(width=2048, layers=16, heads=16, hidden=5632))
  c.model.audio.head.update(dict(width=2048, layers=4, heads=16, hidden=5632))
  c.data.budget.rows = 256
  c.omni.optim.lr = 1e-4
  return config_file(__file__, 'omni_1b')['text_only'](c) if only else c
