"""From the losses of the heads and the figures of the routers to one scalar."""

from collections.abc import Mapping
import dataclasses

from jax import Array

from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.nn.moe_router import RouterStats


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weight of each loss in the sum; every head's loss is normalised by its own weight over all devices first."""
  text: float = 1.0
  image: float = 1.0
  audio: float = 1.0
  balance: float = 0.01
  z: float = 0.001


def total_loss(heads: Mapping[str, HeadLoss], stats: RouterStats, config: LossConfig) -> Array:
  """Σ weight · mean loss of a head + balance and z-loss, means over layers."""
  loss = sum(getattr(config, name) * head.mean for name, head in heads.items())
  return loss + config.balance * stats.balance.mean() + config.z * stats.z.mean()
