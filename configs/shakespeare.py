"""Checks the decoder against a published result: nanoGPT's CPU setting on Shakespeare.

  python -m omni_jax.train --config=configs/shakespeare.py --workdir=runs/shakespeare \\
    --config.data.root=../shared/data/tinyshakespeare

The text is tiny Shakespeare by characters. nanoGPT's README trains 4 layers of width
128 on a CPU, with 12 pieces of 64 characters for 2,000 steps, and reaches a validation
loss of 1.88 nats per character. The layers, the width, the pieces, the steps and the
split (last tenth) are the same here, and the model has no medium but text. (The figure
below was measured with the other two heads switched on but without data.)

Validation loss 1.617, over all 1,742 pieces of the last tenth, each without the text
before it; 7 min 13 s with the evaluation on two CPU cores, seed 0, commit 162d2af. The
network is not the same: it has eight experts, of which a token visits two and a shared
one, 1.19 M parameters in the decoder, of which a position uses 0.60 M (nanoGPT: 0.80
M), and Muon instead of AdamW.
"""

from ml_collections import ConfigDict

from omni_jax.config import derived


def get_config() -> ConfigDict:
  c = derived(__file__, 'text')
  c.data.update(dict(source='text', train_file='input.txt', piece=64))
  c.data.budget.update(dict(rows=12, length=65))
  c.omni.update(dict(steps=2000, log_every=100, save_every=1000))
  return c
