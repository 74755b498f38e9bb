"""The default run in miniature, to check that every stage works.

  python -m omni_jax.train --config=configs/tiny.py --workdir=runs/tiny

It has the same stages and the same data, and learns next to nothing.
"""

from ml_collections import ConfigDict

from omni_jax.config import derived


def get_config() -> ConfigDict:
  c = derived(__file__, 'digits')
  c.model.decoder.update(
    dict(
      width=32,
      layers=2,
      heads=2,
      kv_heads=1,
      head_dim=16,
      experts=4,
      expert_hidden=16,
      shared_hidden=32,
      block=16,
    )
  )
  c.model.audio.embed.hidden = 32
  c.model.image.head.update(dict(width=32, layers=2, heads=2, hidden=32))
  c.model.audio.head.update(dict(width=32, layers=1, heads=2, hidden=32))
  c.model.codec.update(
    dict(latent=16, codebooks=3, entries=32, width=32, layers=1, heads=2, hidden=32)
  )
  c.model.tokenizer.voices = c.model.tokenizer.voices[:2]
  c.data.update(dict(voices=2, takes=2))
  c.data.budget.update(dict(rows=4, length=96))
  c.data.budget.streams.image.seen = (32, 2)
  c.data.budget.streams.audio.heard = (24, 8)
  c.codec.update(dict(steps=30, batch=8, log_every=10, save_every=20))
  # Muon would take longer to compile than the stage takes to run.
  c.codec.optim.kind = 'adamw'
  c.omni.optim.kind = 'adamw'
  c.omni.update(dict(steps=30, log_every=10, save_every=20))
  c.evaluate.update(dict(n=4, n_images=8, n_any=2, n_codec=16))
  return c
