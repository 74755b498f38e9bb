"""Words of a speaker who was never heard: FSDD's recordings but for one speaker, whose are then transcribed.

  python -m omni_jax.data.sources.spoken_digits --source=../shared/data --output=data/spoken_digits
  python -m omni_jax.train --config=configs/new_speaker.py --config.data.root=data/spoken_digits \
    --workdir=runs/new_speaker --config.data.leave_out=theo --config.data.eval_file=speaker_theo.jsonl

One CPU core, busy: 5 to 8 minutes. Seed 0, right words in % by who is left out, 500 recordings each (bar 80): george
75.0, jackson 85.4, nicolas 84.0, theo 83.9, yweweler 83.4. Settings were chosen on george; docs/results.md says which.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# By path: a config file is run as a file, wherever the command is called from.
_spoken_digits = runpy.run_path(
  str(pathlib.Path(__file__).with_name('spoken_digits.py'))
)['get_config']


def get_config() -> ConfigDict:
  c = _spoken_digits()
  c.stages = ('omni', 'evaluate')  # nothing is spoken: no codec
  c.cpu_devices = 1
  c.model.audio.seconds = 1.04
  c.model.audio_embed.update(dict(level='clip', channels=64))
  c.data.update(
    dict(train_file='speakers.jsonl', leave_out='theo', eval_file='speaker_theo.jsonl')
  )
  c.data.budget.update(dict(seen=0, drawn=0, heard_frames=56, spoken_frames=0))
  # Microphones and rooms: FSDD's speakers differ 14 times in loudness and by 10 to 15 dB in the slope of their spectra.
  c.data.augment.update(dict(gain=18.0, tone=10.0))
  c.omni.steps = 500
  c.omni.save_every = 500
  c.evaluate = ConfigDict(dict(n_data=500))
  return c
