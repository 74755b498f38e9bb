"""The text head: next-token loss and sampler."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from omni_jax.modalities.head_loss import HeadLoss, UnitLoss
from omni_jax.modalities.text.cross_entropy import cross_entropy
from omni_jax.nn.layers import Linear
from omni_jax.sharding import Role

WEIGHT_AXES = ('embed', 'vocab')  # logical axes of the head's weight
MIN_TEMPERATURE = 1e-4  # avoids a division by 0


class TextHead(nnx.Module):
  """A linear layer to the vocabulary."""

  def __init__(self, width: int, vocab_size: int, *, rngs: nnx.Rngs):
    self.out = Linear(width, vocab_size, WEIGHT_AXES, rngs=rngs, role=Role.TABLE)

  def logits(self, hidden: Float[Array, '... D']) -> Float[Array, '... V']:
    """Returns fp32 logits of the next id."""
    return self.out(hidden).astype(jnp.float32)

  def loss(
    self,
    hidden_BLD: Float[Array, 'B L D'],
    target_BL: Int[Array, 'B L'],
    weight_BL: Float[Array, 'B L'],
    mesh: Mesh,
  ) -> HeadLoss:
    """Returns the weighted cross-entropy of the batch, in nats.

    Nearly every position has a target, so the head runs on the whole row.
    """
    w_DV = self.out.w[...].astype(hidden_BLD.dtype)
    total = cross_entropy(
      hidden_BLD, w_DV, target_BL, weight_BL, axes=WEIGHT_AXES, mesh=mesh
    )
    return HeadLoss(total, jnp.sum(weight_BL))

  def losses(
    self,
    hidden_BLD: Float[Array, 'B L D'],
    target_BL: Int[Array, 'B L'],
    weight_BL: Float[Array, 'B L'],
  ) -> UnitLoss:
    """Returns the weighted cross-entropy of each position, in nats.

    It serves objectives that weigh the segments of a row differently, works row by row
    and computes the logits again for the gradient; `loss` costs less.
    """

    @jax.checkpoint
    def row_loss(row: tuple[Array, Array]) -> Array:
      hidden_LD, target_L = row
      logp_LV = jax.nn.log_softmax(self.logits(hidden_LD))
      return -jnp.take_along_axis(logp_LV, target_L[:, None], axis=1)[:, 0]

    loss_BL = jax.lax.map(row_loss, (hidden_BLD, target_BL))
    at_BL = jnp.broadcast_to(jnp.arange(target_BL.shape[1]), target_BL.shape)
    return UnitLoss(loss_BL * weight_BL, weight_BL, at_BL)


def sample_token(
  logits_BV: Float[Array, 'B V'],
  allowed_BV: Bool[Array, 'B V'],
  key: Array,
  *,
  temperature: Float[Array, ''],
  top_p: Float[Array, ''],
) -> Int[Array, 'B']:
  """Samples one of the allowed ids in each row (see `sample_logits`)."""
  masked_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
  return sample_logits(masked_BV, key, temperature=temperature, top_p=top_p)


def sample_logits(
  logits: Float[Array, '... V'], key: Array, *, temperature: Array, top_p: Array
) -> Int[Array, '...']:
  """Samples from the nucleus over the last axis (Holtzman et al. 2020).

  Args:
    temperature: divides the logits; 0 takes the most likely id.
    top_p: the nucleus is the fewest ids whose probabilities sum to at least this.
  """
  scaled = logits / jnp.maximum(temperature, MIN_TEMPERATURE)
  ordered = jnp.sort(scaled, axis=-1)[..., ::-1]
  before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
  lowest = jnp.where(before < top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
  nucleus = jnp.where(scaled >= lowest, scaled, -jnp.inf)
  drawn = jax.random.categorical(key, nucleus)
  chosen = jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1))
  return chosen.astype(jnp.int32)
