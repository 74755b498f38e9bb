"""One causal decoder that reads and writes text, images and speech, trained jointly."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from collections.abc import Mapping

  import omni_jax.generate.api

__version__ = '0.1.0'


def load(
  workdir: str,
  step: int | None = None,
  weights: str = 'average',
  mesh: 'Mapping[str, int] | None' = None,
) -> 'omni_jax.generate.api.TrainedModel':
  """Restores a trained run.

  Args:
    workdir: folder of the run.
    step: step of the checkpoint; the newest one by default.
    weights: 'average' (of the parameters, where the run keeps one) or 'raw'.
    mesh: sizes of the axes of the mesh, such as {'tensor': 8}; by default all devices
      of this process, in the way that suits the model.

  Raises:
    UserError: if there is no such run or step, or if its arrays do not fit its config.
  """
  # Imported here because loading jax takes seconds, which `import omni_jax` must not.
  from omni_jax.generate.api import load as load_run

  return load_run(workdir, step, weights, mesh)
