"""Where sharding is decided: mesh axes, the table from logical to mesh axes, and the only way to make a parameter."""

from collections.abc import Callable, Iterable, Mapping
import math
from typing import Any

from flax import nnx
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from omni_jax.errors import UserError

AXES = ('data', 'fsdp', 'expert', 'tensor', 'context')
BATCH_AXES = ('data', 'fsdp', 'expert')
EXPERT_AXIS = 'expert'
RULES = {
    # activations
    'batch': BATCH_AXES, 'length': 'context', 'act_embed': None, 'act_mlp': 'tensor',
    # weights
    'embed': 'fsdp', 'mlp': 'tensor', 'heads': 'tensor', 'vocab': 'tensor', 'expert': 'expert', 'layers': None,
}


def make_mesh(sizes: Mapping[str, int] | None = None) -> Mesh:
  """A mesh with the named axis sizes; axes that are not named have size 1, one of size -1 takes the devices left over.

  Raises:
    UserError: if an axis is unknown or the product of the sizes does not divide the number of devices.
  """
  sizes = dict(sizes or {})
  if unknown := set(sizes) - set(AXES):
    raise UserError(f'mesh axis {sorted(unknown)} is unknown; the axes are {AXES}')
  shape = tuple(int(sizes.get(axis, 1)) for axis in AXES)
  if shape.count(-1) == 1:
    rest = max(1, jax.device_count() // -math.prod(shape))
    shape = tuple(rest if n == -1 else n for n in shape)
  if min(shape) < 1:
    raise UserError(f'mesh {dict(zip(AXES, shape, strict=True))}: sizes are 1 and more, at most one of them -1')
  if math.prod(shape) > (n := jax.device_count()) or n % math.prod(shape):
    raise UserError(f'mesh {dict(zip(AXES, shape, strict=True))} wants {math.prod(shape)} devices, there are {n}; '
                    f'set config.mesh so that the product divides {n}')
  if math.prod(shape) < n and jax.process_count() > 1:
    raise UserError(f'mesh {dict(zip(AXES, shape, strict=True))} has {math.prod(shape)} of {n} devices: several '
                    'processes take all of them; set one axis of config.mesh to -1')
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:math.prod(shape)])


def check_divides(mesh: Mesh, rows: int, experts: int) -> None:
  """Refuses, before compilation, a batch or an expert count that the mesh cannot split evenly."""
  ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if rows % ways:
    raise UserError(f'batch of {rows} rows does not divide by {ways} devices of {BATCH_AXES}; '
                    f'nearest: {max(1, rows // ways) * ways}')
  if experts % mesh.shape[EXPERT_AXIS]:
    raise UserError(f'{experts} experts do not divide by {mesh.shape[EXPERT_AXIS]} devices of axis {EXPERT_AXIS!r}')


def ways(mesh: Mesh, axis: str) -> tuple[str, int]:
  """(mesh axes as messages call them, into how many parts they split a dimension of this logical axis)."""
  names = RULES[axis] or ()
  names = (names,) if isinstance(names, str) else names
  return ' x '.join(f'config.mesh.{name}' for name in names), math.prod(mesh.shape[name] for name in names)


def check_sizes(mesh: Mesh, sizes: Iterable[tuple[str, int, str]]) -> None:
  """Refuses, before compilation, a main dimension that the mesh axes of its logical axis do not divide.

  `fitting` would keep it whole on every device without a word: harmless for small tables, not for what these sizes
  span.

  Args:
    sizes: (config key, size, logical axis).

  Raises:
    UserError: with key, mesh axis, both sizes, and the nearest that would fit.
  """
  for key, size, axis in sizes:
    names, n = ways(mesh, axis)
    if size % n:
      fits = [size // n * n] * (size > n) + [(size // n + 1) * n]
      divisors = [k for k in range(1, size + 1) if size % k == 0]
      splits = [max(k for k in divisors if k < n)] + [k for k in divisors if k > n][:1]
      raise UserError(f'{key}={size} does not divide by {names}={n}; nearest: {" or ".join(map(str, fits))} for {key}, '
                      f'{" or ".join(map(str, splits))} for {names}')


def spec(*axes: str | None) -> P:
  """PartitionSpec of an array whose dimensions have these logical axes."""
  return P(*(RULES[axis] if axis else None for axis in axes))


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
  """Constrains an activation to the layout of its logical axes. The mesh is the one set by `jax.set_mesh`."""
  return jax.lax.with_sharding_constraint(x, spec(*axes))


def param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...],
          init: Callable[..., jax.Array]) -> nnx.Param:
  """A trainable fp32 array with one logical axis name (or None) per dimension."""
  assert len(shape) == len(axes), (shape, axes)
  return nnx.Param(init(rngs.params(), shape, np.float32), axes=axes)


def param_specs(model: nnx.Module) -> dict[str, Any]:
  """PartitionSpec per parameter, as a pure dict. Stacked layers have one leading axis more than they name."""
  def of(leaf):
    axes = leaf.get_metadata()['axes']
    return spec(*(('layers',) * (leaf.ndim - len(axes)) + axes))
  state = nnx.state(model, nnx.Param)
  return nnx.to_pure_dict(jax.tree.map(of, state, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def fitting(mesh: Mesh, pspec: P, shape: tuple[int, ...]) -> NamedSharding:
  """The sharding of a weight, without the mesh axes that do not divide its dimension (small weights stay whole)."""
  def ways(axis):
    return math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ()))
  padded = tuple(pspec) + (None,) * (len(shape) - len(pspec))
  return NamedSharding(mesh, P(*(a if n % ways(a) == 0 else None for a, n in zip(padded, shape, strict=True))))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def input_part(mesh: Mesh) -> tuple[int, int]:
  """(index, count): which part of a batch's rows this process gives to `place`, of how many.

  Processes have the same part where a mesh axis that does not split rows (tensor, context) lies across them.

  Raises:
    UserError: if processes share some rows and not others, or hold more rows than others.
  """
  ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  rows: dict[int, set[int]] = {}
  for device, (part,) in NamedSharding(mesh, P(BATCH_AXES)).devices_indices_map((ways,)).items():
    rows.setdefault(device.process_index, set()).add(part.start or 0)
  parts = sorted({tuple(sorted(own)) for own in rows.values()})
  if sum(map(len, parts)) != ways or len({len(part) for part in parts}) > 1:
    raise UserError(f'mesh {dict(mesh.shape)} gives the processes parts {parts} of {ways} parts of the rows, which '
                    'are not apart and alike; set config.mesh so that the axes that split rows divide by the processes')
  return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def place(batch: Any, mesh: Mesh) -> Any:
  """Host rows of this process, as `input_part` says, -> global arrays split over the batch axes."""
  sharding = NamedSharding(mesh, P(BATCH_AXES))
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


_largest = jax.jit(jnp.max)


def anywhere(own: bool, mesh: Mesh) -> jax.Array:
  """Whether any process says so; all of them ask at the same points.

  The answer is made on the devices: who asks for it at once waits for all that they have to do before.
  """
  flags = np.full((jax.local_device_count(),), own, np.int32)
  return _largest(jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXES)), flags))


def gather_bytes(own: bytes) -> list[bytes]:
  """The bytes of every process, in every process."""
  if jax.process_count() == 1:
    return [own]
  lengths = multihost_utils.process_allgather(np.int32(len(own)))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[:len(own)] = np.frombuffer(own, np.uint8)
  return [row[:n].tobytes() for row, n in zip(multihost_utils.process_allgather(padded), lengths, strict=True)]
