"""Reads and writes text, handwritten digits and spoken digit words: the default run.

  python -m omni_jax.train --config=configs/digits.py --workdir=runs/digits

Two CPU cores, no accelerator, cold XLA cache: 9 to 21 minutes, depending on the
machine (docs/results.md has the runs). Accuracy in % at aa54e1f, seed 0; runs differ by
up to 3 points:

  text_to_text 100.0 (bar 90)   text_to_image 99.8 (95)   text_to_speech 98.8 (90)
  image_to_text 98.5 (96)       image_to_image 93.0 (90)  image_to_speech 91.8 (90)
  speech_to_text 99.2 (95)      speech_to_image 94.5 (90) speech_to_speech 96.5 (90)
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
