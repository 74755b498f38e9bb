"""Text, images and speech with 1.6 billion parameters, for 16 chips of TPU v5e.

  python -m omni_jax.train --config=configs/omni_1b.py --config.data.root=DATA \\
    --workdir=gs://BUCKET/omni_1b
  python -m omni_jax.compile --config=configs/omni_1b.py --topology=v5e:4x4

Each token visits 1 billion of the parameters. DATA holds JSON lines as in
docs/add_dataset.md. Images are 256 x 256 in patches of 16; sounds are at 16 kHz.
docs/pods.md lists what the run takes on chips, measured by compiling it.
`--config=configs/omni_1b.py:text` is the same decoder with text alone.
"""

from ml_collections import ConfigDict

from omni_jax.config import config_file, derived


def get_config(only: str = '') -> ConfigDict:
  """Returns the config of the run.

  Args:
    only: 'text' for the same decoder on text without any other medium, to compare it
      with trainers of text alone; '' for all media.

  Raises:
    ValueError: if `only` has another value.
  """
  if only not in ('', 'text'):
    raise ValueError(f"config '{only}' is unknown: give 'text' or nothing")
  c = derived(__file__, 'base')
  c.stages = ('codec', 'omni')
  c.mesh.update(dict(data=1, fsdp=-1))
  c.distributed = True
  c.compilation_cache = ''
  c.model.dtype = 'bfloat16'
  c.model.tokenizer.update(dict(max_grid=16, size=32000))
  c.model.decoder.update(
    dict(
      width=2048,
      layers=16,
      heads=16,
      kv_heads=4,
      head_dim=128,
      experts=8,
      top_k=2,
      expert_hidden=1024,
      shared_hidden=2048,
      block=128,
      theta=1e6,
      remat='full',
    )
  )
  c.model.image.update(
    dict(height=256, width=256, channels=3, patch=16, mean=0.45, std=0.27, fit='keep')
  )
  c.model.image.embed.update(dict(heads=16, hidden=2048))
  c.model.image.head.update(
    dict(width=1024, layers=12, heads=16, hidden=2816, noises=1, remat='full')
  )
  c.model.audio.update(dict(rate=16000, seconds=20.0, mels=80, mel_window=512))
  c.model.audio.embed.hidden = 2048
  c.model.audio.head.update(dict(width=1024, layers=4, heads=16, hidden=2816))
  c.model.codec.update(
    dict(
      latent=256,
      codebooks=8,
      entries=1024,
      width=512,
      layers=4,
      heads=8,
      hidden=1408,
      window=32,
    )
  )
  c.data.source = 'jsonl'
  c.data.augment = ConfigDict()
  c.data.budget.update(dict(rows=32, length=4096))
  c.data.budget.streams.image.update(dict(seen=(1024, 8), drawn=(512, 4)))
  c.data.budget.streams.audio.update(dict(heard=(500, 16), spoken=(250, 8)))
  c.loader.workers = 8
  c.codec.update(dict(steps=50_000, batch=256, pieces=25, log_every=100))
  c.codec.update(dict(save_every=5000, bad_steps=10))
  c.codec.optim.update(dict(kind='adamw', lr=5e-4, warmup=1000, final=0.1, b2=0.95))
  c.codec.optim.weight_decay = 0.01
  c.omni.update(dict(steps=100_000, log_every=20, save_every=1000, bad_steps=10))
  c.omni.optim.update(dict(kind='adamw', lr=3e-4, warmup=2000, final=0.1, b2=0.95))
  c.omni.optim.weight_decay = 0.1
  c.generate.update(dict(temperature=0.7, speech_temperature=0.7, guidance=3.0))
  c.generate.update(dict(max_new=256, dit_steps=32))
  c.evaluate.update(dict(n_data=200, n_codec=50))
  return text_only(c) if only else c


def text_only(c: ConfigDict) -> ConfigDict:
  """Removes all media but text from a config, and returns it."""
  config_file(__file__, 'text')['without_media'](c)
  c.stages = ('omni',)
  return c
