"""Checks, before anything is compiled, that a mesh divides what it has to split."""

from collections.abc import Iterable

from omni_jax import sharding
from omni_jax.errors import UserError


def describe_axes(mesh: sharding.AnyMesh, axis: str) -> str:
  """Returns the mesh axes of a logical axis as a message names them."""
  return ' x '.join(f'config.mesh.{name}' for name in sharding.mesh_axes(mesh, axis))


def check_rows(mesh: sharding.AnyMesh, rows: int) -> None:
  """Raises UserError, before compilation, unless the mesh divides the batch's rows."""
  parts = sharding.num_shards(mesh, 'batch')
  if rows % parts:
    axes = sharding.mesh_axes(mesh, 'batch')
    nearest = max(1, rows // parts) * parts
    raise UserError(
      f'batch of {rows} rows is not divisible by {parts} devices of {axes}; '
      f'nearest: {nearest}'
    )


def check_sizes(mesh: sharding.AnyMesh, sizes: Iterable[tuple[str, int, str]]) -> None:
  """Checks, before compilation, that the mesh divides the main dimensions.

  `weight_sharding` would silently keep such a dimension whole on every device: harmless
  for small tables, but not for the weights that have these dimensions.

  Args:
    sizes: (config key, size, logical axis) of each dimension.

  Raises:
    UserError: if the mesh does not divide a size; the message has the key, the mesh
      axes, both sizes, and the nearest ones that would fit.
  """
  for key, size, axis in sizes:
    parts = sharding.num_shards(mesh, axis)
    if size % parts == 0:
      continue
    names = describe_axes(mesh, axis)
    below = size // parts * parts
    multiples = [n for n in (below, below + parts) if n]
    nearest_sizes = ' or '.join(map(str, multiples))
    nearest_parts = ' or '.join(map(str, _nearest_divisors(size, parts)))
    raise UserError(
      f'{key}={size} is not divisible by {names}={parts}; '
      f'nearest: {nearest_sizes} for {key}, {nearest_parts} for {names}'
    )


def _nearest_divisors(size: int, parts: int) -> list[int]:
  """Returns the divisors of a size that are nearest to a number of parts."""
  divisors = [n for n in range(1, size + 1) if size % n == 0]
  smaller = [n for n in divisors if n < parts]
  larger = [n for n in divisors if n > parts]
  return smaller[-1:] + larger[:1]
