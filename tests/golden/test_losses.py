"""The losses of twenty tiny steps, in a text file: a change that should change no number must leave it as it is.

After a change that should: `pytest tests/golden --regenerate`, and commit the file with the reason.
"""

import pathlib

import numpy as np
from samples import laid, packed

FILE = pathlib.Path(__file__).with_name('omni_losses.txt')
HEADS = ('text', 'image', 'audio', 'balance')
STEPS = 20


def test_losses_are_what_they_were(kit, request):
  batches = [packed(laid(kit.config, seed), kit.config.hosts()) for seed in range(4)]
  state, lines = kit.state, []
  for step in range(STEPS):
    state, metrics = kit.step(state, batches[step % len(batches)])
    lines.append([float(metrics[f'loss/{head}']) for head in HEADS])
  if request.config.getoption('regenerate'):
    np.savetxt(FILE, lines, fmt='%.6f', header=' '.join(HEADS))
  # The tolerance is for other processors and releases of XLA, which round otherwise and add up in another order.
  np.testing.assert_allclose(lines, np.loadtxt(FILE), rtol=1e-3)
