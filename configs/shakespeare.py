"""A sanity check of the decoder against a public figure: tiny Shakespeare by characters, in nanoGPT's CPU setting.

  python -m omni_jax.train --config=configs/shakespeare.py --config.data.root=../shared/data/tinyshakespeare \\
    --workdir=runs/shakespeare

nanoGPT's README trains 4 layers of width 128 with 12 pieces of 64 characters for 2,000 steps on a CPU and reaches a
validation loss of 1.88 nats a character. Same layers, width, pieces, steps and split (last tenth) here, and no
other medium in the model. (When the figure below was taken, the other two heads were on, with nothing to do.)

Validation loss 1.617 (all 1,742 pieces of the last tenth, each without what stands before it); 7 min 13 s with its
evaluation on two CPU cores, seed 0, commit 162d2af. Not the same network: eight experts of which
two and a shared one work, 1.19 M parameters in the decoder, 0.60 M of them for one position (nanoGPT: 0.80 M), and
Muon in the place of AdamW.
"""

from ml_collections import ConfigDict

from omni_jax.config import derived


def get_config() -> ConfigDict:
  c = derived(__file__, 'text')
  c.data.update(dict(source='text', train_file='input.txt', piece=64))
  c.data.budget.update(dict(rows=12, length=65))
  c.omni.update(dict(steps=2000, log_every=100, save_every=1000))
  return c
