"""Real recordings through JSON lines: five speakers of FSDD and the handwriting of MNIST, 28 x 28.

  python -m omni_jax.data.spoken_digits --source=../shared/data --output=data/spoken_digits
  python -m omni_jax.train --config=configs/spoken_digits.py --config.data.root=data/spoken_digits --workdir=runs/spoken

Not yet run to its end. On two busy CPU cores, `--config.codec.steps=150 --config.omni.steps=40`: codec loss 0.60;
from step 10 to step 40 text 2.86 -> 0.40 nats, image 1.91 -> 1.28, audio 5.66 -> 4.57 nats a code.
"""

from ml_collections import ConfigDict


def _optim(**changes) -> dict:
  return dict(kind='adamw', lr=2e-3, warmup=100, final=0.02, b1=0.9, b2=0.98, weight_decay=0.01, clip=1.0,
              multipliers=dict()) | changes


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.stages = ('codec', 'omni', 'evaluate')
  c.cpu_devices = 2
  c.mesh = ConfigDict(dict(data=-1, fsdp=1, expert=1, tensor=1, context=1))
  c.distributed = False
  c.profile = ''
  c.compilation_cache = '~/.cache/omni_jax/xla'

  c.model = ConfigDict(dict(
      dtype='float32',
      image=dict(height=28, width=28, channels=1, patch=7, mean=0.13, std=0.31),
      audio=dict(rate=8000, seconds=1.04, mels=32, mel_hops=8, mel_window=256),
      tokenizer=dict(languages=('en',), voices=('george', 'jackson', 'nicolas', 'theo', 'yweweler'), max_grid=4),
      decoder=dict(width=128, layers=4, heads=4, kv_heads=2, head_dim=32, experts=8, top_k=2, expert_hidden=64,
                   shared_hidden=128, block=64, theta=1000.0, remat='none', unroll=1),
      audio_embed=dict(hidden=256),
      dit=dict(width=128, layers=3, heads=4, hidden=256, noises=2, null=0.1, shift=1.0),
      codec_head=dict(width=128, layers=2, heads=4, hidden=256, first_weight=3.0),
      codec=dict(latent=64, codebooks=4, entries=256, width=128, layers=2, hidden=256, window=16),
  ))
  c.data = ConfigDict(dict(
      source='jsonl', seed=0, root='', train_file='train.jsonl', eval_file='test.jsonl',
      budget=dict(rows=16, length=128, seen=3, drawn=3, heard=3, spoken=2, spoken_frames=16),
  ))
  c.codec = ConfigDict(dict(steps=1000, batch=32, frames=6, log_every=50, save_every=500,
                            optim=_optim(kind='muon', lr=4e-3, warmup=50, b2=0.95)))
  c.omni = ConfigDict(dict(steps=2000, log_every=50, save_every=500, bias_step=1e-3,
                           losses=dict(text=1.0, image=1.0, audio=1.0, balance=0.01, z=0.001), optim=_optim()))
  c.generate = ConfigDict(dict(temperature=0.5, top_p=0.95, speech_temperature=0.7, guidance=1.5, max_new=32,
                               dit_steps=16))
  c.evaluate = ConfigDict(dict(n_data=1024))
  return c
