"""The task 'loss': the mean loss on what is held out, such as the end of a text file."""

from typing import Any

from omni_jax.data.sources.table import held_out
from omni_jax.evaluate.limits import Limits, Log
from omni_jax.evaluate.page.gallery import Gallery
from omni_jax.evaluate.tasks.measured import Measured


def measure(trained: Any, limits: Limits, *, seed: int, log: Log) -> Measured:
  """Measures the loss on everything that is held out; there is nothing to limit."""
  del limits, seed, log
  hosts = trained.hosts
  pieces = held_out(trained.config.data, hosts)
  loss = trained.loss([pieces[index] for index in range(len(pieces))])
  data = {
    'file': str(pieces.path),
    'n': len(pieces),
    'bad': 0,
    'groups': {'text': {'n': len(pieces), 'loss': loss}},
    'targets': {},
  }
  return Measured({'directions': {}, 'data': data, 'codec': {}}, Gallery())
