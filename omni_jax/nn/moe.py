"""Mixture of experts: a router, routed experts and a shared one."""

import dataclasses

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.nn import moe_router
from omni_jax.nn.expert_parallel import (
  Dispatch,
  DOWN_AXES,
  moe_expert_parallel,
  UP_AXES,
)
from omni_jax.nn.experts import Experts
from omni_jax.nn.layers import Linear, SwiGLU
from omni_jax.sharding import Role

stacked_lecun = nnx.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal', in_axis=-2, out_axis=-1, batch_axis=0
)


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Sizes of a layer of experts.

  Attributes:
    width: width of the tokens.
    hidden: hidden width of a routed expert.
    experts: number of routed experts.
    top_k: number of routed experts that a token visits.
    shared: hidden width of the expert that every token visits; 0 for none.
    dispatch: how tokens reach their experts.
    modalities: m, the number of modalities, padding included.
    routers: number of routers: 1, or one per modality.
  """

  width: int
  hidden: int
  experts: int
  top_k: int
  shared: int
  dispatch: Dispatch
  modalities: int
  routers: int


class MoE(nnx.Module):
  """A router (or one per modality), E routed experts and a shared expert.

  Every token visits the shared expert.
  """

  def __init__(self, c: MoEConfig, *, rngs: nnx.Rngs):
    self.config = c
    up_shape = (c.experts, c.width, c.hidden)
    down_shape = (c.experts, c.hidden, c.width)
    self.router = Linear(
      c.width, c.routers * c.experts, ('embed', None), rngs=rngs, role=Role.ROUTER
    )
    self.gate = sharding.param(rngs, up_shape, UP_AXES, stacked_lecun)
    self.up = sharding.param(rngs, up_shape, UP_AXES, stacked_lecun)
    self.down = sharding.param(rngs, down_shape, DOWN_AXES, stacked_lecun)
    self.shared = SwiGLU(c.width, c.shared, rngs=rngs) if c.shared else None

  def __call__(
    self,
    x_BLD: Float[Array, 'B L D'],
    modality_BL: Int[Array, 'B L'],
    bias_E: Float[Array, 'E'],
    mesh: Mesh,
  ) -> tuple[Float[Array, 'B L D'], moe_router.RouterStats]:
    """Returns the output of the layer and the router's statistics.

    Args:
      modality_BL: number of the medium of each position; 0 is padding, which is not
        routed.
      bias_E: added to the router's scores when experts are selected.
    """
    c = self.config
    logits_BLE = self.router(x_BLD.astype(jnp.float32))
    if c.routers > 1:
      own_BLm = jax.nn.one_hot(modality_BL, c.routers)
      logits_BLmE = logits_BLE.reshape(*modality_BL.shape, c.routers, -1)
      logits_BLE = jnp.einsum('blme,blm->ble', logits_BLmE, own_BLm)
    routing = moe_router.route(logits_BLE, bias_E, modality_BL > 0, top_k=c.top_k)
    weights = Experts(
      self.gate[...].astype(x_BLD.dtype),
      self.up[...].astype(x_BLD.dtype),
      self.down[...].astype(x_BLD.dtype),
    )
    shared_BLD = self.shared(x_BLD) if self.shared is not None else None
    y_BLD, dropped = moe_expert_parallel(
      x_BLD,
      shared_BLD,
      weights,
      routing.expert_TK,
      routing.weight_TK,
      config=c.dispatch,
      mesh=mesh,
    )
    stats = moe_router.stats(
      logits_BLE, routing, modality_BL, dropped, modalities=c.modalities
    )
    return y_BLD, stats
