"""Where sharding is decided: mesh axes, the table from logical to mesh axes, and the only way to make a parameter."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import enum
import math
from typing import Any

from flax import nnx
import jax
from jax.experimental import mesh_utils, multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from omni_jax.errors import UserError

AXES = ('data', 'fsdp', 'expert', 'tensor', 'context')
BATCH_AXES = ('data', 'fsdp', 'expert')
EXPERT_AXIS, CONTEXT_AXIS = 'expert', 'context'
TOKEN_AXES = (*BATCH_AXES, CONTEXT_AXIS)  # each of their devices has tokens of its own
RULES = {
  # activations
  'batch': BATCH_AXES,
  'length': 'context',
  'act_embed': None,
  'act_mlp': 'tensor',
  'act_heads': 'tensor',
  # weights
  'embed': ('fsdp', 'expert'),
  'expert_embed': 'fsdp',
  'mlp': 'tensor',
  'mlp_rows': ('tensor', 'fsdp'),
  'heads': 'tensor',
  'vocab': 'tensor',
  'expert': 'expert',
  'layers': None,
}


def make_mesh(
  sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh with the named axis sizes; axes that are not named have size 1, one of size -1 takes the devices left over.

  Args:
    devices: other than all of this process's backend, such as those of a described topology.

  Raises:
    UserError: if an axis is unknown or the product of the sizes does not divide the number of devices.
  """
  sizes, devices = (
    dict(sizes or {}),
    list(jax.devices() if devices is None else devices),
  )
  if unknown := set(sizes) - set(AXES):
    raise UserError(f'mesh axis {sorted(unknown)} is unknown; the axes are {AXES}')
  shape = tuple(int(sizes.get(axis, 1)) for axis in AXES)
  if shape.count(-1) == 1:
    rest = max(1, len(devices) // -math.prod(shape))
    shape = tuple(rest if n == -1 else n for n in shape)
  if min(shape) < 1:
    raise UserError(
      f'mesh {dict(zip(AXES, shape, strict=True))}: sizes are 1 and more, at most one of them -1'
    )
  if math.prod(shape) > (n := len(devices)) or n % math.prod(shape):
    raise UserError(
      f'mesh {dict(zip(AXES, shape, strict=True))} wants {math.prod(shape)} devices, there are {n}; '
      f'set config.mesh so that the product divides {n}'
    )
  if math.prod(shape) < n and jax.process_count() > 1:
    raise UserError(
      f'mesh {dict(zip(AXES, shape, strict=True))} has {math.prod(shape)} of {n} devices: several '
      'processes take all of them; set one axis of config.mesh to -1'
    )
  return Mesh(
    _laid_out(shape, devices[: math.prod(shape)]),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
  )


def _laid_out(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
  """Devices so that mesh axes follow the links between chips; of several slices, the first axis goes across them."""
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices > 1 and devices[0].platform == 'tpu':
    if shape[0] % slices:
      raise UserError(
        f'mesh axis {AXES[0]!r} of size {shape[0]} does not divide by {slices} slices, which it goes '
        f'across; nearest: {max(1, shape[0] // slices) * slices}'
      )
    within, across = (
      (shape[0] // slices, *shape[1:]),
      (slices, *(1,) * (len(shape) - 1)),
    )
    return mesh_utils.create_hybrid_device_mesh(
      within, across, devices, allow_split_physical_axes=True
    )
  try:
    return mesh_utils.create_device_mesh(shape, devices)
  except (
    NotImplementedError
  ):  # no set of the torus's sides makes up one of the axes: parts of sides have to
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def splits(devices: int, slices: int, experts: int) -> list[dict[str, int]]:
  """Meshes worth trying: all of a slice to fsdp, or a part of it to experts or widths; slices to data."""
  within = devices // slices
  parts = [dict(fsdp=within)]
  parts += [
    dict(fsdp=within // n, expert=n)
    for n in (4, 8, 16)
    if within % n == 0 and experts % n == 0 and within > n
  ]
  parts += [
    dict(fsdp=within // n, tensor=n) for n in (4,) if within % n == 0 and within > n
  ]
  return [{**dict.fromkeys(AXES, 1), 'data': slices, **part} for part in parts]


def ways(mesh: Mesh | jax.sharding.AbstractMesh, axis: str) -> int:
  """Into how many parts the mesh splits a dimension with this logical axis."""
  return math.prod(
    mesh.shape[a]
    for part in spec(axis)
    for a in ((part,) if isinstance(part, str) else part or ())
  )


def check_divides(
  mesh: Mesh | jax.sharding.AbstractMesh, rows: int, experts: int
) -> None:
  """Refuses, before compilation, a batch or an expert count that the mesh cannot split evenly."""
  if rows % (n := ways(mesh, 'batch')):
    raise UserError(
      f'batch of {rows} rows does not divide by {n} devices of {BATCH_AXES}; '
      f'nearest: {max(1, rows // n) * n}'
    )
  if experts % mesh.shape[EXPERT_AXIS]:
    raise UserError(
      f'{experts} experts do not divide by {mesh.shape[EXPERT_AXIS]} devices of axis {EXPERT_AXIS!r}'
    )


def axes_named(axis: str) -> str:
  """The mesh axes of a logical axis, as messages call them."""
  names = RULES[axis] or ()
  return ' x '.join(
    f'config.mesh.{name}' for name in ((names,) if isinstance(names, str) else names)
  )


def check_sizes(
  mesh: Mesh | jax.sharding.AbstractMesh, sizes: Iterable[tuple[str, int, str]]
) -> None:
  """Refuses, before compilation, a main dimension that the mesh axes of its logical axis do not divide.

  `fitting` would keep it whole on every device without a word: harmless for small tables, not for what these sizes
  span.

  Args:
    sizes: (config key, size, logical axis).

  Raises:
    UserError: with key, mesh axis, both sizes, and the nearest that would fit.
  """
  for key, size, axis in sizes:
    names, n = axes_named(axis), ways(mesh, axis)
    if size % n:
      fits = [size // n * n] * (size > n) + [(size // n + 1) * n]
      divisors = [k for k in range(1, size + 1) if size % k == 0]
      splits = [max(k for k in divisors if k < n)] + [k for k in divisors if k > n][:1]
      raise UserError(
        f'{key}={size} does not divide by {names}={n}; nearest: {" or ".join(map(str, fits))} for {key}, '
        f'{" or ".join(map(str, splits))} for {names}'
      )


def spec(*axes: str | None) -> P:
  """PartitionSpec of an array whose dimensions have these logical axes."""
  return P(*(RULES[axis] if axis else None for axis in axes))


def dividing(mesh: Mesh, axis: str, *sizes: int) -> str | None:
  """The logical axis, or None if the mesh does not divide all these sizes of it: then its devices hold the whole."""
  return axis if all(size % ways(mesh, axis) == 0 for size in sizes) else None


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
  """Constrains an activation to the layout of its logical axes. The mesh is the one set by `jax.set_mesh`."""
  return jax.lax.with_sharding_constraint(x, spec(*axes))


def shard_items(x: jax.Array) -> jax.Array:
  """Rows on the first axis, or images or frames that are flattened out of them, stay there; nothing without a mesh.

  Without it XLA gathers the items of all rows on every device rather than a weight (docs/decisions.md, 38).
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or x.shape[0] % ways(mesh, 'batch'):
    return x
  return shard(x, 'batch', *(None,) * (x.ndim - 1))


class Role(enum.StrEnum):
  """What a parameter is to the model: optimizer and precision depend on it."""

  MATRIX = 'matrix'  # a linear map, or a stack of them
  TABLE = 'table'  # a row for each of something: ids, places, queries; single vectors
  NORM = 'norm'  # scales of a norm
  BIAS = 'bias'  # added to the output of a linear map
  ROUTER = 'router'  # logits of the experts


def param(
  rngs: nnx.Rngs,
  shape: tuple[int, ...],
  axes: tuple[str | None, ...],
  init: Callable[..., jax.Array],
  role: Role = Role.MATRIX,
) -> nnx.Param:
  """Returns a trainable fp32 array.

  Args:
    axes: one logical axis name (or None) per dimension.
  """
  assert len(shape) == len(axes), (shape, axes)
  return nnx.Param(init(rngs.params(), shape, np.float32), axes=axes, role=role)


def name_of(path: tuple[Any, ...]) -> str:
  """Returns the path of a leaf in a tree as a dotted name."""
  return jax.tree_util.keystr(path, simple=True, separator='.')


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their dotted names."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {name_of(path): leaf for path, leaf in leaves}


def param_specs(model: nnx.Module) -> dict[str, Any]:
  """Returns the PartitionSpec of every parameter, as a pure dict.

  Stacked layers have one leading axis more than they name.
  """

  def spec_of(variable):
    axes = variable.get_metadata()['axes']
    return spec(*(('layers',) * (variable.ndim - len(axes)) + axes))

  return _by_param(spec_of, model)


def param_roles(model: nnx.Module) -> dict[str, Any]:
  """Returns the role of every parameter, as a pure dict."""
  return _by_param(role_of, model)


def role_of(variable: nnx.Variable) -> Role:
  """Returns the role that `param` gave to a parameter."""
  return variable.get_metadata()['role']


def _by_param(function: Callable[[nnx.Variable], Any], model: nnx.Module) -> Any:
  """Returns what the function returns of every parameter, as a pure dict."""
  state = nnx.state(model, nnx.Param)
  return nnx.to_pure_dict(
    jax.tree.map(function, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
  )


def fitting(mesh: Mesh, pspec: P, shape: tuple[int, ...]) -> NamedSharding:
  """The sharding of a weight, without the mesh axes that do not divide its dimension (small weights stay whole).

  Of several axes for one dimension, the first ones stay that do.
  """

  def kept(axes, n):
    if axes is None or isinstance(axes, str):
      return axes if n % mesh.shape.get(axes, 1) == 0 else None
    parts = np.cumprod([mesh.shape[axis] for axis in axes])
    return tuple(axes[: sum(n % p == 0 for p in parts)]) or None

  padded = tuple(pspec) + (None,) * (len(shape) - len(pspec))
  return NamedSharding(
    mesh, P(*(kept(axes, n) for axes, n in zip(padded, shape, strict=True)))
  )


def whole_width(w: jax.Array, pspec: P) -> jax.Array:
  """A weight as `pspec` lays it out, gathered over the axes that only save memory; for use inside a shard_map.

  Those are `fsdp`, and beside it `expert` where a weight belongs to no expert. The gradient goes back by
  reduce-scatter.
  """
  for dimension, axes in _saving(pspec):
    w = jax.lax.all_gather(w, axes, axis=dimension, tiled=True)
  return w


def summed_slices(dw: jax.Array, pspec: P) -> jax.Array:
  """From each device's gradient of a weight that `whole_width` made whole, the sum for the slice that it holds."""
  for dimension, axes in _saving(pspec):
    dw = jax.lax.psum_scatter(dw, axes, scatter_dimension=dimension, tiled=True)
  return dw


def _saving(pspec: P) -> list[tuple[int, tuple[str, ...]]]:
  """Dimensions with the axes over which they are split for memory alone."""
  found = []
  for dimension, axes in enumerate(pspec):
    axes = (axes,) if axes == 'fsdp' else axes if isinstance(axes, tuple) else ()
    if saving := tuple(axis for axis in axes if axis in ('fsdp', 'expert')):
      found.append((dimension, saving))
  return found


def compiler_options(mesh: Mesh) -> dict[str, Any]:
  """Options of XLA for programs on a mesh. A TPU's cores would stand still during a ragged all-to-all by default."""
  return (
    {'xla_tpu_enable_async_ragged_all_to_all': True}
    if mesh.devices.flat[0].platform == 'tpu'
    else {}
  )


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
  """Of everything in a batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def cache_layout(mesh: Mesh) -> NamedSharding:
  """Of keys and values: layers, rows, slots, heads, width."""
  return NamedSharding(mesh, P(None, BATCH_AXES))


def input_part(mesh: Mesh) -> tuple[int, int]:
  """(index, count): which part of a batch's rows this process gives to `place`, of how many.

  Processes have the same part where a mesh axis that does not split rows (tensor, context) lies across them.

  Raises:
    UserError: if processes share some rows and not others, or hold more rows than others.
  """
  n = ways(mesh, 'batch')
  rows: dict[int, set[int]] = {}
  for device, (part,) in (
    NamedSharding(mesh, P(BATCH_AXES)).devices_indices_map((n,)).items()
  ):
    rows.setdefault(device.process_index, set()).add(part.start or 0)
  parts = sorted({tuple(sorted(own)) for own in rows.values()})
  if sum(map(len, parts)) != n or len({len(part) for part in parts}) > 1:
    raise UserError(
      f'mesh {dict(mesh.shape)} gives the processes parts {parts} of {n} parts of the rows, which '
      'are not apart and alike; set config.mesh so that the axes that split rows divide by the processes'
    )
  return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def place(batch: Any, mesh: Mesh) -> Any:
  """Host rows of this process, as `input_part` says, -> global arrays split over the batch axes."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(by_rows(mesh), x), batch
  )


_largest = jax.jit(jnp.max)


def anywhere(own: bool, mesh: Mesh) -> jax.Array:
  """Whether any process says so; all of them ask at the same points.

  The answer is made on the devices: who asks for it at once waits for all that they have to do before.
  """
  flags = np.full((jax.local_device_count(),), own, np.int32)
  return _largest(
    jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXES)), flags)
  )


def gather_bytes(own: bytes) -> list[bytes]:
  """Returns the bytes of every process, in every process.

  Once the processes of a run have parted (`train.processes.disband`), each has only
  its own.
  """
  if jax.process_count() == 1 or not jax.distributed.is_initialized():
    return [own]
  lengths = multihost_utils.process_allgather(np.int32(len(own)))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: len(own)] = np.frombuffer(own, np.uint8)
  return [
    row[:n].tobytes()
    for row, n in zip(multihost_utils.process_allgather(padded), lengths, strict=True)
  ]
