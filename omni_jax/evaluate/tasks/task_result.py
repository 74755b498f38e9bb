"""Defines the result of an evaluation task."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omni_jax.evaluate.page.gallery import Gallery


class TaskResult(NamedTuple):
  """The entries of a task in metrics.json, what the report shows, and every reply."""

  metrics: dict[str, Any]
  gallery: Gallery
  predictions: Sequence[Mapping[str, Any]] = ()
