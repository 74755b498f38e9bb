"""The default run in miniature: every stage, on the same data, to see that all of it works. It learns next to nothing.

python -m omni_jax.train --config=configs/tiny.py --workdir=runs/tiny
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
  c.model.audio_embed.hidden = 32
  c.model.dit.update(dict(width=32, layers=2, heads=2, hidden=32))
  c.model.codec_head.update(dict(width=32, layers=1, heads=2, hidden=32))
  c.model.codec = ConfigDict(
    dict(latent=16, codebooks=3, entries=32, width=32, layers=1, heads=2, hidden=32)
  )
  c.model.tokenizer.voices = c.model.tokenizer.voices[:2]
  c.data.update(dict(voices=2, takes=2))
  c.data.budget.update(
    dict(rows=4, length=96, seen=2, drawn=2, heard_frames=24, spoken_frames=12)
  )
  c.codec.update(dict(steps=30, batch=8, log_every=10, save_every=20))
  c.codec.optim.kind = c.omni.optim.kind = (
    'adamw'  # Muon takes longer to compile than the stage to run
  )
  c.omni.update(dict(steps=30, log_every=10, save_every=20))
  c.evaluate.update(dict(n=4, n_images=8, n_any=2, n_codec=16))
  return c
