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
from omni_jax.nn.expert_parallel import Dispatch, EXPERT_AXES, moe_expert_parallel
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
    width, hidden, experts, top_k: of the routed experts.
    shared: hidden width of the expert that every token passes; 0 for none.
    how: how tokens come to experts.
    modalities: rows of the table of experts by modality, padding among them.
    routers: 1, or one for each modality.
  """

  width: int
  hidden: int
  experts: int
  top_k: int
  shared: int
  how: Dispatch
  modalities: int = 4
  routers: int = 1


class MoE(nnx.Module):
  """Router (one, or one for each modality), E routed experts and one shared expert that every token passes."""

  def __init__(self, c: MoEConfig, *, rngs: nnx.Rngs):
    self.config = c
    width, hidden, experts = c.width, c.hidden, c.experts
    self.router = Linear(
      width, c.routers * experts, ('embed', None), rngs=rngs, role=Role.ROUTER
    )
    self.gate = sharding.param(
      rngs, (experts, width, hidden), EXPERT_AXES.gate_EDF, stacked_lecun
    )
    self.up = sharding.param(
      rngs, (experts, width, hidden), EXPERT_AXES.up_EDF, stacked_lecun
    )
    self.down = sharding.param(
      rngs, (experts, hidden, width), EXPERT_AXES.down_EFD, stacked_lecun
    )
    self.shared = SwiGLU(width, c.shared, rngs=rngs) if c.shared else None

  def __call__(
    self,
    x_BLD: Float[Array, 'B L D'],
    modality_BL: Int[Array, 'B L'],
    bias_E: Float[Array, 'E'],
    mesh: Mesh,
  ) -> tuple[Float[Array, 'B L D'], moe_router.RouterStats]:
    logits_BLE = self.router(x_BLD.astype(jnp.float32))
    routers = self.config.routers
    if routers > 1:
      own_BLM = jax.nn.one_hot(modality_BL, routers)
      logits_BLE = jnp.einsum(
        'blme,blm->ble', logits_BLE.reshape(*modality_BL.shape, routers, -1), own_BLM
      )
    routing = moe_router.route(
      logits_BLE, bias_E, modality_BL > 0, top_k=self.config.top_k
    )
    weights = Experts(
      *(w[...].astype(x_BLD.dtype) for w in (self.gate, self.up, self.down))
    )
    shared_BLD = self.shared(x_BLD) if self.shared is not None else None
    y_BLD, dropped = moe_expert_parallel(
      x_BLD,
      shared_BLD,
      weights,
      routing.expert_TK,
      routing.weight_TK,
      how=self.config.how,
      mesh=mesh,
    )
    stats = moe_router.stats(
      logits_BLE, routing, modality_BL, dropped, modalities=self.config.modalities
    )
    return y_BLD, stats
