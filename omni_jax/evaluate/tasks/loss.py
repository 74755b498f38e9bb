"""Implements the task 'loss': the mean loss on held-out data, such as the end of a text."""

from typing import Any

from omni_jax.data.sources.table import held_out
from omni_jax.evaluate.limits import Limits, Log
from omni_jax.evaluate.page.gallery import Gallery
from omni_jax.evaluate.tasks.task_result import TaskResult
from omni_jax.generate.api import TrainedModel


def measure(
  trained: TrainedModel, limits: Limits, *, seed: int, log: Log
) -> TaskResult:
  """Returns the loss on all held-out data; no limit applies."""
  del limits, seed, log
  pieces: Any = held_out(trained.config.data, trained.hosts)
  n = len(pieces)
  loss = trained.loss([pieces[index] for index in range(n)])
  data = {
    'file': str(pieces.path),
    'n': n,
    'bad': 0,
    'groups': {'text': {'n': n, 'loss': loss}},
    'targets': {},
  }
  return TaskResult({'directions': {}, 'data': data, 'codec': {}}, Gallery())
