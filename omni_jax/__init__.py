"""One causal decoder that reads and writes text, images and speech, trained end to end by one loss."""

from typing import Any

__version__ = '0.1.0'


def load(workdir: str, step: int | None = None, weights: str = 'average') -> Any:
  """A trained run, ready to generate: see `omni_jax.generate.api.Omni`."""
  from omni_jax.generate.api import (
    load as load_run,
  )  # loading jax takes seconds; `import omni_jax` does not

  return load_run(workdir, step, weights)
