"""Text, images and speech, 1.6 billion parameters of which a token visits 1 billion: 16 chips of TPU v5e.

  python -m omni_jax.train --config=configs/omni_1b.py --config.data.root=DATA --workdir=gs://BUCKET/omni_1b
  python -m omni_jax.compile --config=configs/omni_1b.py --topology=v5e:4x4

DATA holds JSON lines as in docs/add_dataset.md. Images are 256 x 256 in patches of 16, sounds 16 kHz. What it takes on
chips, measured by compiling: docs/pods.md. `--config=configs/omni_1b.py:text` is the same decoder with text alone.
"""

from ml_collections import ConfigDict


def get_config(only: str = '') -> ConfigDict:
  """Args:
  only: 'text' for rows without images and sounds, whose embeddings and heads are then as small as can be.
  """
  if only not in ('', 'text'):
    raise ValueError(f"config '{only}' is unknown: it is 'text' or nothing")
  c = ConfigDict()
  c.seed = 0
  c.stages = ('codec', 'omni')
  c.cpu_devices = 1
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, expert=1, tensor=1, context=1))
  c.distributed = True
  c.profile = ''
  c.repeat_every = 0
  c.init_from = ''
  c.compilation_cache = ''

  c.model = ConfigDict(
    dict(
      dtype='bfloat16',
      weights='float32',
      image=dict(
        height=256, width=256, channels=3, patch=16, mean=0.45, std=0.27, fit='keep'
      ),
      audio=dict(rate=16000, seconds=20.0, mels=80, mel_hops=8, mel_window=512),
      tokenizer=dict(languages=('en',), voices=(), max_grid=16, size=32000),
      decoder=dict(
        width=2048,
        layers=16,
        heads=16,
        kv_heads=4,
        head_dim=128,
        experts=8,
        top_k=2,
        expert_hidden=1024,
        shared_hidden=2048,
        routing='token',
        block=128,
        exchange='gather',
        capacity=2.0,
        theta=1e6,
        remat='full',
        unroll=1,
      ),
      image_embed=dict(layers=0, heads=16, hidden=2048),
      audio_embed=dict(hearing='mel', level='fixed', channels=0, hidden=2048),
      dit=dict(
        width=1024,
        layers=12,
        heads=16,
        hidden=2816,
        noises=1,
        null=0.1,
        shift=1.0,
        denoiser='dit',
      ),
      codec_head=dict(width=1024, layers=4, heads=16, hidden=2816, first_weight=3.0),
      codec=dict(
        latent=256,
        codebooks=8,
        entries=1024,
        width=512,
        layers=4,
        heads=8,
        hidden=1408,
        window=32,
      ),
    )
  )
  c.data = ConfigDict(
    dict(
      source='jsonl',
      seed=0,
      root='',
      train_file='train.jsonl',
      eval_file='test.jsonl',
      leave_out='',
      codes='computed',
      augment=None,
      budget=dict(
        rows=32, length=4096, seen=4, drawn=2, heard_frames=500, spoken_frames=250
      ),
    )
  )
  c.loader = ConfigDict(dict(lanes=0, workers=8, strict=True))
  c.codec = ConfigDict(
    dict(
      init_from='',
      steps=50_000,
      batch=256,
      frames=25,
      log_every=100,
      save_every=5000,
      bad_steps=10,
      optim=dict(
        kind='adamw',
        lr=5e-4,
        warmup=1000,
        final=0.1,
        b1=0.9,
        b2=0.95,
        weight_decay=0.01,
        clip=1.0,
        multipliers=dict(),
      ),
    )
  )
  c.omni = ConfigDict(
    dict(
      steps=100_000,
      log_every=20,
      save_every=1000,
      bad_steps=10,
      bias_step=1e-3,
      accumulate=1,
      ema=0.0,
      freeze=(),
      losses=dict(text=1.0, image=1.0, audio=1.0, balance=0.01, z=0.001, frame=1.0),
      optim=dict(
        kind='adamw',
        lr=3e-4,
        warmup=2000,
        final=0.1,
        b1=0.9,
        b2=0.95,
        weight_decay=0.1,
        clip=1.0,
        multipliers=dict(),
      ),
    )
  )
  c.generate = ConfigDict(
    dict(
      temperature=0.7,
      top_p=0.95,
      speech_temperature=0.7,
      guidance=3.0,
      max_new=256,
      dit_steps=32,
    )
  )
  c.evaluate = ConfigDict(dict(n_data=200, n_codec=50))
  return text_only(c) if only else c


def text_only(c: ConfigDict) -> ConfigDict:
  """The same decoder on rows of text; for comparison with trainers that know nothing else."""
  c.data.budget.update(dict(seen=0, drawn=0, heard_frames=0, spoken_frames=0))
  c.stages = ('omni',)
  small = dict(width=256, layers=1, heads=1, hidden=256)  # which 256 chips divide
  c.model.image_embed.update(dict(layers=0, hidden=256))
  c.model.audio_embed.hidden = 256
  for part in (c.model.dit, c.model.codec_head, c.model.codec):
    part.update(small)
  c.model.codec.update(dict(latent=16, codebooks=1, entries=16))
  return c
