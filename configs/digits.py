"""The default run: text, handwritten digits and spoken digit words in four languages.

  python -m omni_jax.train --config=configs/digits.py --workdir=runs/digits

Two CPU cores, no accelerator, cold XLA cache: 9 min 25 s from the README's two lines to
report.html, install included (bar 20 min, target 10 min), at commit 2174c56. Tests ran
on the same machine most of the time. The omni stage makes 3.5 steps/s on an idle
machine, and the evaluation takes 54 s. At d8be97a: 2.3 GB of memory at the peak (bar
4), 1.2 % of the omni stage (bar 2) and 2.2 % of the codec stage spent waiting for data
(medians).

The first column of the table is this run with seed 0; its figures are good to +-3
points. The next columns are earlier versions: e68bc70 (10 min 7 s with the install),
d8be97a (11 min 38 s without it), 162d2af (15 min 28 s), dbc99d1 (13 min 50 s). The last
column is a run with streams (between 35487b3 and e466d24) on one H200: 6 min 33 s, of
which the first 50 steps of codec and omni, which compile, took 3 min 42 s; 18 to 28
steps/s. A whole run on CPU has not been timed since.

                      2174c56           e68bc70  d8be97a  162d2af  dbc99d1  H200
  image_to_text        98.5 %  (bar 96)   98.8     97.5     98.5     97.0     97.2
  speech_to_text       98.5 %  (bar 95)   98.2     98.2     99.0     99.2     99.3
  text_to_text        100.0 %  (bar 90)  100.0    100.0    100.0    100.0    100.0
  text_to_image        99.5 %  (bar 95)   99.8     99.2     99.0     99.0     99.5
  image_to_image       94.8 %  (bar 90)   95.5     95.5     93.5     92.5     92.8
  speech_to_image      93.5 %  (bar 90)   94.0     95.5     94.8     95.0     95.2
  text_to_speech       98.0 %  (bar 90)   98.0     98.8     96.5     97.8     98.8
  image_to_speech      94.2 %  (bar 90)   94.0     93.8     90.5     91.8     91.8
  speech_to_speech     98.2 %  (bar 90)   97.5     97.8     96.2     98.8     98.3
"""

from ml_collections import ConfigDict

from omni_jax.config import derived
from omni_jax.data.sources.digits import LANGUAGES
from omni_jax.data.sources.espeak import TRAIN_VARIANTS


def get_config() -> ConfigDict:
  c = derived(__file__, 'base')
  c.cpu_devices = 2  # one per core
  c.model.tokenizer.languages = LANGUAGES
  c.model.tokenizer.voices = TRAIN_VARIANTS
  c.data.source = 'digits'
  c.data.recipes = ConfigDict(
    dict(
      image_to_text=0.16,
      speech_to_text=0.19,
      text_to_text=0.04,
      text_to_image=0.11,
      image_to_image=0.11,
      speech_to_image=0.13,
      text_to_speech=0.06,
      image_to_speech=0.08,
      speech_to_speech=0.08,
      reply=0.04,
    )
  )
  c.data.augment.image.update(dict(turn=0.2, scale=0.12, shear=0.15, shift=0.075))
  c.data.augment.audio.update(dict(speed=0.11, gain=3.0, noise=0.01, delay=0.05))
  c.evaluate.update(dict(n=400, n_images=400))
  return c
