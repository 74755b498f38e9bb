"""Defines the result of an evaluation task."""

from typing import Any, NamedTuple

from omni_jax.evaluate.page.gallery import Gallery


class TaskResult(NamedTuple):
  """The entries of a task in metrics.json, and what the report shows."""

  metrics: dict[str, Any]
  gallery: Gallery
