"""Text, images and speech with a decoder of the shape of Qwen3-30B-A3B, for TPU pods.

  python -m omni_jax.train --config=configs/omni_30b_a3b.py --config.data.root=DATA \\
    --workdir=gs://BUCKET/omni_30b_a3b
  python -m omni_jax.compile --config=configs/omni_30b_a3b.py --topology=v5p:4x4x2
  python -m omni_jax.compile --config=configs/omni_30b_a3b.py --topology=v6e:8x8 \\
    --config.data.budget.rows=64

It needs 32 chips of TPU v5p or 64 of v6e. The shape is that of arXiv 2505.09388: width
2048, 48 layers, 32 heads, 4 key and value heads, and 128 experts of width 768, of which
a token visits eight; there is no shared expert. Data, images and sounds are as in
configs/omni_1b.py. docs/pods.md lists what the run takes on chips, measured by compiling
it. `--config=configs/omni_30b_a3b.py:text` is the same decoder with text alone.
"""

from ml_collections import ConfigDict

from omni_jax.config import config_file, derived


def get_config(only: str = '') -> ConfigDict:
  """Returns the config of the run; `only` is as in configs/omni_1b.py."""
  c = derived(__file__, 'omni_1b')
  c.mesh.expert = 4
  c.model.decoder.update(
    dict(
      layers=48,
      heads=32,
      experts=128,
      top_k=8,
      expert_hidden=768,
      shared_hidden=0,
      exchange='all_to_all',
      capacity=1.25,
    )
  )
  c.model.tokenizer.size = 151936
  c.model.image.head.update(dict(width=1536, layers=16, heads=12, hidden=4096))
  c.data.budget.rows = 128
  c.omni.optim.lr = 1e-4
  return config_file(__file__, 'omni_1b')['text_only'](c) if only else c
