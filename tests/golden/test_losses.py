"""The losses of twenty tiny steps are those of a text file.

A change that should not change any number must leave the file as it is. After one that
should, run `pytest tests/golden --regenerate`, and commit the file with the reason.
"""

import pathlib

import numpy as np
from samples import laid_out_examples, packed_batch

FILE = pathlib.Path(__file__).with_name('omni_losses.txt')
HEADS = ('text', 'image', 'audio', 'balance')
STEPS = 20


def test_losses_are_those_of_the_file(kit, request):
  hosts = kit.config.hosts()
  batches = []
  for seed in range(4):
    batches.append(packed_batch(laid_out_examples(kit.config, seed), hosts))
  state = kit.state
  lines = []
  for step in range(STEPS):
    state, metrics = kit.step(state, batches[step % len(batches)])
    lines.append([float(metrics[f'loss/{head}']) for head in HEADS])
  if request.config.getoption('regenerate'):
    np.savetxt(FILE, lines, fmt='%.6f', header=' '.join(HEADS))
  # Other processors and releases of XLA round differently and add in another order.
  np.testing.assert_allclose(lines, np.loadtxt(FILE), rtol=1e-3)
