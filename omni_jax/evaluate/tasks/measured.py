"""The result of an evaluation task."""

from typing import Any, NamedTuple

from omni_jax.evaluate.page.gallery import Gallery


class Measured(NamedTuple):
  """The task's entries of metrics.json, and what the report shows."""

  metrics: dict[str, Any]
  gallery: Gallery
