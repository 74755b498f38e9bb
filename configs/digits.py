"""Reads and writes text, handwritten digits and spoken digit words in four languages: the default run.

  python -m omni_jax.train --config=configs/digits.py --workdir=runs/digits

Two CPU cores, no accelerator, cold XLA cache: 9 min 25 s with the install, from the README's two lines to report.html
(bar 20, target 10), at commit 2174c56; tests ran beside most of it; omni at 3.5 steps/s with nothing beside it,
evaluation 54 s. At d8be97a: 2.3 GB at the peak (bar 4), 1.2 % of the omni stage spent waiting for data (medians; bar 2)
and 2.2 % of the codec stage. Seed 0, figures good to +-3 points. Beside it earlier versions: e68bc70 (10 min 7 s with
the install), d8be97a (11 min 38 s without it), 162d2af (15 min 28 s), dbc99d1 (13 min 50 s).

                      2174c56           e68bc70  d8be97a  162d2af  dbc99d1
  image_to_text        98.5 %  (bar 96)   98.8     97.5     98.5     97.0
  speech_to_text       98.5 %  (bar 95)   98.2     98.2     99.0     99.2
  text_to_text        100.0 %  (bar 90)  100.0    100.0    100.0    100.0
  text_to_image        99.5 %  (bar 95)   99.8     99.2     99.0     99.0
  image_to_image       94.8 %  (bar 90)   95.5     95.5     93.5     92.5
  speech_to_image      93.5 %  (bar 90)   94.0     95.5     94.8     95.0
  text_to_speech       98.0 %  (bar 90)   98.0     98.8     96.5     97.8
  image_to_speech      94.2 %  (bar 90)   94.0     93.8     90.5     91.8
  speech_to_speech     98.2 %  (bar 90)   97.5     97.8     96.2     98.8
"""

from ml_collections import ConfigDict

from omni_jax.data.sources.digits import LANGUAGES
from omni_jax.data.sources.espeak import TRAIN_VARIANTS


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.stages = ('codec', 'omni', 'evaluate')
  c.cpu_devices = (
    2  # one per core: XLA's own threads leave half of the second core idle
  )
  c.mesh = ConfigDict(dict(data=-1, fsdp=1, expert=1, tensor=1, context=1))
  c.distributed = False
  c.profile = ''
  c.repeat_every = 0  # makes every so manieth step twice and compares the bits, to find hardware that computes wrong
  c.init_from = (
    ''  # FOLDER or FOLDER@STEP of a run whose weights the omni stage starts from
  )
  c.compilation_cache = '~/.cache/omni_jax/xla'

  c.model = ConfigDict(
    dict(
      dtype='float32',
      weights='float32',
      image=dict(
        height=8, width=8, channels=1, patch=2, mean=0.305, std=0.376, fit='stretch'
      ),
      audio=dict(rate=8000, seconds=0.96, mels=32, mel_hops=8, mel_window=256),
      tokenizer=dict(languages=LANGUAGES, voices=TRAIN_VARIANTS, max_grid=4),
      decoder=dict(
        width=128,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=32,
        experts=8,
        top_k=2,
        expert_hidden=64,
        shared_hidden=128,
        routing='token',
        exchange='gather',
        capacity=2.0,
        block=64,
        theta=1000.0,
        remat='none',
        unroll=1,
      ),
      image_embed=dict(layers=0, heads=4, hidden=256),
      audio_embed=dict(hearing='mel', level='fixed', channels=0, hidden=256),
      dit=dict(
        width=128,
        layers=3,
        heads=4,
        hidden=256,
        noises=2,
        null=0.1,
        shift=1.0,
        denoiser='dit',
      ),
      codec_head=dict(width=128, layers=2, heads=4, hidden=256, first_weight=3.0),
      codec=dict(
        latent=64, codebooks=4, entries=256, width=128, layers=2, hidden=256, window=16
      ),
    )
  )
  c.data = ConfigDict(
    dict(
      source='digits',
      seed=0,
      codes='computed',
      voices=14,
      takes=5,
      spoken_takes=1,
      recipes=dict(
        image_to_text=0.18,
        speech_to_text=0.19,
        text_to_text=0.04,
        text_to_image=0.11,
        image_to_image=0.11,
        speech_to_image=0.13,
        text_to_speech=0.06,
        image_to_speech=0.06,
        speech_to_speech=0.08,
        reply=0.04,
      ),
      budget=dict(
        rows=16, length=128, seen=3, drawn=2, heard_frames=20, spoken_frames=12
      ),
      root='',
      train_file='train.jsonl',
      eval_file='test.jsonl',
    )
  )
  c.data.augment = ConfigDict(
    dict(
      turn=0.2,
      scale=0.12,
      shear=0.15,
      shift=0.075,
      speed=0.11,
      pitch=0.0,
      gain=3.0,
      tone=0.0,
      noise=0.01,
      delay=0.05,
    )
  )  # of what is only read
  c.loader = ConfigDict(dict(lanes=0, workers=0, strict=True))
  c.data.rate = c.model.audio.get_ref('rate')
  c.data.seconds = c.model.audio.get_ref('seconds')

  # codec.init_from: FOLDER of a run whose codec is used instead of an own one; take 'codec' out of c.stages then
  c.codec = ConfigDict(
    dict(
      init_from='',
      steps=700,
      batch=32,
      frames=6,
      log_every=50,
      save_every=350,
      bad_steps=0,  # updates that are not finite and may be left out; one more ends the run
      optim=dict(
        kind='muon',
        lr=4e-3,
        warmup=50,
        final=0.02,
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
      steps=1300,
      log_every=50,
      save_every=650,
      bad_steps=0,
      bias_step=1e-3,
      accumulate=1,
      ema=0.0,
      freeze=(),
      losses=dict(text=1.0, image=1.0, audio=1.0, balance=0.01, z=0.001, frame=1.0),
      optim=dict(
        kind='muon',
        lr=2e-3,
        warmup=100,
        final=0.02,
        b1=0.9,
        b2=0.98,
        weight_decay=0.01,
        clip=1.0,
        multipliers=dict(),
      ),
    )
  )
  c.generate = ConfigDict(
    dict(
      temperature=0.5,
      top_p=0.95,
      speech_temperature=0.3,
      guidance=1.5,
      max_new=32,
      dit_steps=16,
    )
  )
  c.evaluate = ConfigDict(dict(n=400, n_images=400))
  return c
