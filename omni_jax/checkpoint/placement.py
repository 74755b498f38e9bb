"""Places the parameters of a model on a mesh for generation."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from omni_jax import sharding
from omni_jax.checkpoint.init_values import params_of
from omni_jax.model import abstract, ModelConfig
from omni_jax.nn.expert_parallel import Exchange
from omni_jax.nn.tiles import LANES
from omni_jax.sharding import Role


def generation_mesh(
  config: ModelConfig,
  sizes: Mapping[str, int] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh on which a model writes replies.

  Args:
    sizes: sizes by axis, 1 by default; None for those that suit the model (see
      `sharding.generation_sizes`).
    devices: devices of the mesh; by default those of this process.

  Raises:
    UserError: if there is no such axis, or the sizes do not suit the devices.
  """
  devices = list(devices or jax.local_devices())
  if sizes is None and len(devices) > 1:
    shapes = generation_params(config)
    weight_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    sizes = sharding.generation_sizes(
      len(devices), weight_bytes, largest_tensor_axis(config), config.decoder.experts
    )
  return sharding.make_mesh(sizes, devices, sharding.GENERATION_AXES)


def generation_config(config: ModelConfig) -> ModelConfig:
  """Returns the config of the network for generation: its experts drop no token.

  So a reply depends neither on the mesh nor on the other prompts.
  """
  decoder = dataclasses.replace(config.decoder, exchange=Exchange.GATHER)
  return dataclasses.replace(config, decoder=decoder)


def generation_params(config: ModelConfig, mesh: Mesh | None = None) -> dict[str, Any]:
  """Returns the shapes of the parameters for generation, as a pure dict.

  They have the dtype of the computation, to which the model casts all but the routers
  before it uses them: replies are the same, and decoding reads half of the bytes.

  Args:
    mesh: mesh over which they are split; None for shapes without shardings.
  """
  model = abstract(config)

  def cast(x: jax.ShapeDtypeStruct, role: Role) -> jax.ShapeDtypeStruct:
    dtype = x.dtype if role == Role.ROUTER else config.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype)

  shapes = jax.tree.map(cast, params_of(model), sharding.param_roles(model))
  if mesh is None:
    return shapes

  def split(x: jax.ShapeDtypeStruct, spec: Any) -> jax.ShapeDtypeStruct:
    shard = sharding.weight_sharding(mesh, spec, x.shape)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard)

  return jax.tree.map(
    split, shapes, sharding.param_specs(model, sharding.rules_of(mesh))
  )


def largest_tensor_axis(config: ModelConfig) -> int:
  """Returns the largest size of the mesh axis `tensor` that suits generation.

  Every device then has whole key heads, and whole tiles of the experts' hidden widths.
  """
  decoder = config.decoder
  ways = math.gcd(decoder.kv_heads, decoder.expert_hidden // LANES)
  return math.gcd(ways, decoder.shared_hidden // LANES)
