"""Defines the mesh axes, the tables of logical axes and how every parameter is built."""

from collections.abc import Callable, Mapping, Sequence
import enum
import math
from typing import Any

from flax import nnx
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from omni_jax.errors import UserError

AXES = ('data', 'fsdp', 'expert', 'tensor', 'context')
EXPERT_AXIS = 'expert'
CONTEXT_AXIS = 'context'
# Axes of a mesh for generation. Without `fsdp`: what is split only to save memory would
# be gathered again for every id that is written.
GENERATION_AXES = ('data', EXPERT_AXIS, 'tensor', CONTEXT_AXIS)
# Mesh axes over which a weight may be split only to save memory (see `gather_weight`).
MEMORY_AXES = ('fsdp', EXPERT_AXIS)
# Bytes of weights on a device above which `generation_sizes` splits them further, over
# these axes. `expert` comes late: reading prompts, each device handles the tokens of all
# that share the experts.
WEIGHTS_A_DEVICE = {'tensor': 2**30, EXPERT_AXIS: 2**33}

# Logical axis -> the mesh axis or axes that split it; None: it is not split.
Rules = Mapping[str, str | tuple[str, ...] | None]
RULES: Rules = {
  # activations
  'batch': ('data', 'fsdp', EXPERT_AXIS),
  'length': CONTEXT_AXIS,
  'act_embed': None,
  'act_mlp': 'tensor',
  'act_heads': 'tensor',
  # weights
  'embed': MEMORY_AXES,
  'expert_embed': 'fsdp',
  'mlp': 'tensor',
  'mlp_rows': ('tensor', 'fsdp'),
  'heads': 'tensor',
  'vocab': 'tensor',
  'expert': EXPERT_AXIS,
  'layers': None,
}
# The table for generation: a weight is split where every device computes with its own
# part, and replicated over the other axes.
GENERATION_RULES: Rules = {
  **RULES,
  'batch': ('data', EXPERT_AXIS),
  'embed': None,
  'expert_embed': None,
  'mlp_rows': 'tensor',
}

# A mesh of devices, or an abstract mesh, which only has the axis sizes.
AnyMesh = Mesh | jax.sharding.AbstractMesh


def rules_of(mesh: AnyMesh) -> Rules:
  """Returns the table of a mesh, which its axes determine; RULES without a mesh."""
  return GENERATION_RULES if mesh.axis_names == GENERATION_AXES else RULES


def make_mesh(
  sizes: Mapping[str, int] | None = None,
  devices: Sequence[jax.Device] | None = None,
  axes: tuple[str, ...] = AXES,
) -> Mesh:
  """Returns a mesh with these axis sizes.

  Args:
    sizes: sizes by axis, 1 by default; one of -1 takes the devices that are left over.
    devices: devices of the mesh; by default all of this process's backend.
    axes: AXES, or GENERATION_AXES for a mesh on which replies are written.

  Raises:
    UserError: if an axis is unknown, if the product of the sizes does not divide the
      number of devices, or if several processes would leave devices unused.
  """
  sizes = dict(sizes or {})
  devices = list(jax.devices() if devices is None else devices)
  key = 'config.mesh' if axes == AXES else '--mesh'
  unknown = set(sizes) - set(axes)
  if unknown:
    raise UserError(f'mesh axis {sorted(unknown)} is unknown; the axes are {axes}')
  count = len(devices)
  shape = tuple(int(sizes.get(axis, 1)) for axis in axes)
  if shape.count(-1) == 1:
    known = math.prod(size for size in shape if size != -1)
    rest = max(1, count // max(1, known))
    shape = tuple(rest if size == -1 else size for size in shape)
  description = f'mesh {dict(zip(axes, shape, strict=True))}'
  needed = math.prod(shape)
  if min(shape) < 1:
    raise UserError(f'{description}: sizes are 1 or more, and at most one is -1')
  if needed > count or count % needed:
    raise UserError(
      f'{description} needs {needed} devices, but there are {count}; '
      f'set {key} so that the product divides {count}'
    )
  if needed < count and jax.process_count() > 1:
    raise UserError(
      f'{description} has {needed} of {count} devices: several processes take all of '
      f'them; set one axis of {key} to -1'
    )
  array = _device_array(shape, devices[:needed])
  return Mesh(array, axes, axis_types=(AxisType.Auto,) * len(axes))


def _device_array(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
  """Returns the devices in this shape: axes follow links, the first crosses slices."""
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices > 1 and devices[0].platform == 'tpu':
    first, *others = shape
    if first % slices:
      nearest = max(1, first // slices) * slices
      raise UserError(
        f'mesh axis {AXES[0]!r} of size {first} runs across {slices} slices, but is '
        f'not divisible by their number; nearest: {nearest}'
      )
    within = (first // slices, *others)
    across = (slices, *[1] * len(others))
    return mesh_utils.create_hybrid_device_mesh(
      within, across, devices, allow_split_physical_axes=True
    )
  try:
    return mesh_utils.create_device_mesh(shape, devices)
  except NotImplementedError:
    # Some axis is not a product of whole dimensions of the torus.
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def candidate_meshes(devices: int, slices: int, experts: int) -> list[dict[str, int]]:
  """Returns the axis sizes worth trying for this many devices, slices and experts.

  Slices go to `data`; their devices to `fsdp`, alone or with `expert` or `tensor`.
  """
  within = devices // slices
  parts = [{'fsdp': within}]
  for n in (4, 8, 16):  # sizes of the axis `expert` worth trying
    if within % n == 0 and experts % n == 0 and within > n:
      parts.append({'fsdp': within // n, EXPERT_AXIS: n})
  if within % 4 == 0 and within > 4:
    parts.append({'fsdp': within // 4, 'tensor': 4})
  base = dict.fromkeys(AXES, 1)
  base['data'] = slices
  return [base | part for part in parts]


def generation_sizes(
  devices: int, weight_bytes: float, tensor: int, experts: int
) -> dict[str, int]:
  """Returns the axis sizes of a mesh for generation with this many devices.

  Rows are split over the devices, and weights only as far as WEIGHTS_A_DEVICE asks.

  Args:
    weight_bytes: bytes of all weights.
    tensor: largest size of the axis `tensor` that suits the model.
    experts: number of routed experts.
  """
  sizes = dict.fromkeys(GENERATION_AXES, 1)
  for axis, largest in (('tensor', tensor), (EXPERT_AXIS, experts)):
    while weight_bytes > WEIGHTS_A_DEVICE[axis] * math.prod(sizes.values()):
      doubled = 2 * sizes[axis]
      if largest % doubled or devices % (2 * math.prod(sizes.values())):
        break
      sizes[axis] = doubled
  return sizes | {'data': devices // math.prod(sizes.values())}


def mesh_axes(mesh: AnyMesh, axis: str) -> tuple[str, ...]:
  """Returns the mesh axes that split a logical axis."""
  names = rules_of(mesh)[axis]
  if names is None:
    return ()
  return (names,) if isinstance(names, str) else names


def token_axes(mesh: AnyMesh) -> tuple[str, ...]:
  """Returns the mesh axes that split tokens: devices along them have different ones."""
  return mesh_axes(mesh, 'batch') + mesh_axes(mesh, 'length')


def num_shards(mesh: AnyMesh, axis: str) -> int:
  """Returns the number of parts into which a mesh splits a logical axis."""
  return math.prod(mesh.shape[name] for name in mesh_axes(mesh, axis))


def spec(*axes: str | None) -> P:
  """Returns the PartitionSpec of an array, given the logical axis of each dimension.

  The table is that of the mesh set by `jax.set_mesh`.
  """
  return _spec(rules_of(jax.sharding.get_abstract_mesh()), *axes)


def _spec(rules: Rules, *axes: str | None) -> P:
  return P(*(rules[axis] if axis else None for axis in axes))


def axis_if_divisible(mesh: AnyMesh, axis: str, *sizes: int) -> str | None:
  """Returns the logical axis if the mesh divides all these sizes of it, else None."""
  parts = num_shards(mesh, axis)
  return axis if all(size % parts == 0 for size in sizes) else None


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
  """Constrains an activation to its logical axes on the mesh set by `jax.set_mesh`."""
  return jax.lax.with_sharding_constraint(x, spec(*axes))


def shard_items(x: jax.Array) -> jax.Array:
  """Constrains the first axis to be split over devices like the rows of a batch.

  It holds rows, or images or frames flattened out of rows; without the constraint XLA
  would gather the items of all rows on every device (docs/decisions.md, 38). An axis that
  the mesh does not divide is whole on every device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  others = (None,) * (x.ndim - 1)
  return shard(x, axis_if_divisible(mesh, 'batch', len(x)), *others)


def shard_cache(x: jax.Array) -> jax.Array:
  """Constrains cached keys or values (rows, slots, heads, width) to rows and heads.

  A dimension that the mesh does not divide stays whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, cache_spec(mesh, x.shape))


def cache_spec(mesh: AnyMesh, shape: tuple[int, ...]) -> P:
  """Returns the PartitionSpec of cached keys or values of this shape.

  The last four dimensions are rows, slots, heads and width.
  """
  *layers, rows, _, heads, _ = shape
  row_axis = axis_if_divisible(mesh, 'batch', rows)
  head_axis = axis_if_divisible(mesh, 'act_heads', heads)
  axes = (*[None] * len(layers), row_axis, None, head_axis, None)
  return _spec(rules_of(mesh), *axes)


class Role(enum.StrEnum):
  """The role of a parameter, which determines its optimizer and its precision."""

  MATRIX = 'matrix'  # a linear map, or a stack of them
  TABLE = 'table'  # rows that are looked up (ids, places, queries); single vectors
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
  """Returns a new trainable fp32 array; every parameter of a model is built here.

  Args:
    axes: one logical axis (or None) per dimension.
    init: initializer, (key, shape, dtype) -> array.
  """
  assert len(shape) == len(axes), (shape, axes)
  return nnx.Param(init(rngs.params(), shape, np.float32), axes=axes, role=role)


def leaf_name(path: tuple[Any, ...]) -> str:
  """Returns the path of a leaf in a pytree as a dotted name."""
  return jax.tree_util.keystr(path, simple=True, separator='.')


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a pytree by their dotted names."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {leaf_name(path): leaf for path, leaf in leaves}


def param_specs(model: nnx.Module, rules: Rules = RULES) -> dict[str, Any]:
  """Returns the PartitionSpec of every parameter, as a pure dict.

  Parameters of stacked layers have leading axes beyond those named: 'layers'.
  """

  def spec_of(variable: nnx.Variable) -> P:
    axes = variable.get_metadata()['axes']
    layers = ('layers',) * (variable.ndim - len(axes))
    return _spec(rules, *layers, *axes)

  return _map_params(spec_of, model)


def param_roles(model: nnx.Module) -> dict[str, Any]:
  """Returns the role of every parameter, as a pure dict."""
  return _map_params(role_of, model)


def role_of(variable: nnx.Variable) -> Role:
  """Returns the role that `param` gave to a parameter."""
  return variable.get_metadata()['role']


def _map_params(function: Callable[[nnx.Variable], Any], model: nnx.Module) -> Any:
  """Applies the function to every parameter; returns the results as a pure dict."""
  state = nnx.state(model, nnx.Param)
  is_variable = lambda x: isinstance(x, nnx.Variable)
  results = jax.tree.map(function, state, is_leaf=is_variable)
  return nnx.to_pure_dict(results)


def weight_sharding(mesh: Mesh, pspec: P, shape: tuple[int, ...]) -> NamedSharding:
  """Returns the sharding of a weight without the mesh axes that do not divide it.

  Of several axes for one dimension, the longest prefix that divides it is kept.
  """
  padded = tuple(pspec) + (None,) * (len(shape) - len(pspec))
  kept: list[Any] = []
  for axes, size in zip(padded, shape, strict=True):
    if axes is None:
      kept.append(None)
    elif isinstance(axes, tuple):
      kept.append(_dividing_prefix(mesh, axes, size))
    else:
      kept.append(axes if size % mesh.shape[axes] == 0 else None)
  return NamedSharding(mesh, P(*kept))


def _dividing_prefix(
  mesh: Mesh, axes: tuple[str, ...], size: int
) -> tuple[str, ...] | None:
  """Returns the longest prefix of mesh axes that divides a size; None if none does."""
  kept = []
  parts = 1
  for axis in axes:
    parts *= mesh.shape[axis]
    if size % parts:
      break
    kept.append(axis)
  return tuple(kept) or None


def gather_weight(w: jax.Array, pspec: P) -> jax.Array:
  """Returns a weight gathered over the mesh axes that split it only to save memory.

  Those are `fsdp` and, in a weight that belongs to no expert, also `expert`. The
  gradient goes back by reduce-scatter. Inside a shard_map, w is the device's part of a
  weight that is split as `pspec` says.
  """
  for dimension, axes in _memory_axes(pspec):
    w = jax.lax.all_gather(w, axes, axis=dimension, tiled=True)
  return w


def scatter_gradient(dw: jax.Array, pspec: P) -> jax.Array:
  """Returns the device's part of a weight's gradient, summed over all devices.

  dw is the device's gradient of the weight that `gather_weight` returned.
  """
  for dimension, axes in _memory_axes(pspec):
    dw = jax.lax.psum_scatter(dw, axes, scatter_dimension=dimension, tiled=True)
  return dw


def _memory_axes(pspec: P) -> list[tuple[int, tuple[str, ...]]]:
  """Returns (dimension, mesh axes) of each split that only saves memory."""
  pairs = []
  for dimension, axes in enumerate(pspec):
    if axes == 'fsdp':
      axes = (axes,)
    if isinstance(axes, tuple):
      saving = tuple(axis for axis in axes if axis in MEMORY_AXES)
      if saving:
        pairs.append((dimension, saving))
  return pairs


def compiler_options(mesh: Mesh) -> dict[str, Any]:
  """Returns the XLA options for programs on a mesh."""
  if mesh.devices.flat[0].platform != 'tpu':
    return {}
  # By default, a TPU's cores would sit idle during a ragged all-to-all.
  return {'xla_tpu_enable_async_ragged_all_to_all': True}


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def one_per_device(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a vector with one element for each device."""
  return NamedSharding(mesh, P(mesh.axis_names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of every array of a batch: rows split over the batch axes."""
  return NamedSharding(mesh, P(mesh_axes(mesh, 'batch')))


def process_part(mesh: Mesh) -> tuple[int, int]:
  """Returns (index, count) of the part of the rows that this process gives to `place`.

  Processes give the same part if a mesh axis that does not split rows (tensor, context)
  runs across them.

  Raises:
    UserError: if two processes hold some rows in common and others not, or if one holds
      more rows than another.
  """
  parts = num_shards(mesh, 'batch')
  rows_by_process: dict[int, set[int]] = {}
  # As if the batch had one row for each part.
  slices: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((parts,))
  for device, (rows,) in slices.items():
    row = rows.start or 0  # None means 0
    rows_by_process.setdefault(device.process_index, set()).add(row)
  groups = sorted({tuple(sorted(rows)) for rows in rows_by_process.values()})
  sizes = [len(group) for group in groups]
  if sum(sizes) != parts or len(set(sizes)) > 1:
    raise UserError(
      'the processes of this mesh hold different numbers of rows, or overlapping ones: '
      f'{groups}; set config.mesh so that the number of processes divides the product '
      'of the axes that split rows'
    )
  own_group = tuple(sorted(rows_by_process[jax.process_index()]))
  return groups.index(own_group), len(groups)


def place(batch: Any, mesh: Mesh) -> Any:
  """Returns a batch as global arrays whose rows are split over the batch axes.

  The batch is a pytree of numpy arrays: the rows of this process, see `process_part`.
  """
  sharding = batch_sharding(mesh)
  to_global = lambda x: jax.make_array_from_process_local_data(sharding, x)
  return jax.tree.map(to_global, batch)
