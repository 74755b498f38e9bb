"""From the losses of the heads and the figures of the routers to one scalar."""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

from jax import Array
import jax.numpy as jnp

from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.nn.moe_router import RouterStats
from omni_jax.types import Batch, Modality


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weight of each loss in the sum; every head's loss is normalised by its own weight over all devices first.

  Attributes:
    text, image, audio: of the heads.
    balance, z: of the routers.
    frame: of `<frame>` and `<eoa>` within the text head's loss, where a word weighs 1: a long sound has many frames.
  """

  text: float = 1.0
  image: float = 1.0
  audio: float = 1.0
  balance: float = 0.01
  z: float = 0.001
  frame: float = 1.0


def text_weights(batch: Batch, config: LossConfig) -> Array:
  """The weights of the text head's targets, by the modality of the position that says them; (B, L)."""
  return batch.weight_BL * jnp.where(
    batch.modality_BL == Modality.AUDIO, config.frame, 1.0
  )


class Whole(NamedTuple):
  """A batch that is computed in parts."""

  weights: Mapping[str, Array]  # of each head's loss, sums over all parts
  parts: int


def total_loss(
  heads: Mapping[str, HeadLoss],
  stats: RouterStats,
  config: LossConfig,
  whole: Whole | None = None,
) -> Array:
  """Σ weight · mean loss of a head + balance and z-loss, means over layers.

  Args:
    whole: of what these are a part, if they are: the result is that part of the whole loss.
  """
  parts = whole.parts if whole else 1
  if whole:
    heads = {
      name: head._replace(weight=whole.weights[name]) for name, head in heads.items()
    }
  loss = sum(getattr(config, name) * head.mean for name, head in heads.items())
  return (
    loss + (config.balance * stats.balance.mean() + config.z * stats.z.mean()) / parts
  )
