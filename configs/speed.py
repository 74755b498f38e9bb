"""The decoder on which the train step is compared with other trainers, text alone.

  python -m omni_jax.bench step --config=configs/speed.py --torch=PYTHON

4 layers of width 256, 4 heads and 2 key heads of 64, 8 experts of 1,024 of which a
token visits two, no shared expert, a vocabulary of 8,192, AdamW, fp32, 4 rows of 512
positions. It is not a run: there are no data.
"""

from ml_collections import ConfigDict

from omni_jax.config import derived


def get_config() -> ConfigDict:
  c = derived(__file__, 'text')
  c.cpu_devices = 1
  c.stages = ('omni',)
  c.data.budget.update(dict(rows=4, length=512))
  c.model.tokenizer.size = 8192
  c.model.decoder.update(
    dict(
      width=256,
      layers=4,
      heads=4,
      kv_heads=2,
      head_dim=64,
      experts=8,
      top_k=2,
      expert_hidden=1024,
      shared_hidden=0,
      block=128,
      theta=1e4,
    )
  )
  c.omni.optim.update(dict(kind='adamw', lr=3e-4, weight_decay=0.01))
  return c
