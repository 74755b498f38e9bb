"""Which experts a token goes to, the losses that keep them busy, and what is reported of it."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int


class Routing(NamedTuple):
  """Choices of T tokens, which may lie in several dimensions. Padding has expert E (one past the last) and weight 0."""

  expert_TK: Array  # int32
  weight_TK: Array  # how much of each; sums to 1 over K
  load_E: (
    Array  # share of the valid choices (all K of them) that each expert got; sums to 1
  )
  importance_E: Array  # mean router probability; sums to 1


class RouterStats(NamedTuple):
  """What one layer tells of its routing."""

  balance: Array  # balance loss, 1 when uniform
  z: Array  # router z-loss
  entropy: Array  # of a token's router probabilities, nats, mean over valid tokens
  load_E: Array
  load_ME: Array  # valid choices counted by modality and expert
  dropped: Array  # share of the valid choices that found no place at their expert


def _total(x: Array) -> Array:
  """The sum over all tokens. Their dimensions are never joined: each may be split over another mesh axis."""
  return x.sum(axis=tuple(range(x.ndim - 1)))


def route(
  logits_TE: Float[Array, '*T E'],
  bias_E: Float[Array, 'E'],
  valid_T: Bool[Array, '*T'],
  *,
  top_k: int,
) -> Routing:
  """Softmax scores, top-k of score + bias, renormalised.

  The bias steers the selection only, never the weights (loss-free balancing, arXiv 2408.15664). Computed in fp32.
  """
  experts = logits_TE.shape[-1]
  p_TE = jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1)
  score_TE = jax.lax.stop_gradient(p_TE) + jnp.broadcast_to(bias_E, p_TE.shape)
  _, expert_TK = jax.lax.top_k(score_TE, top_k)
  chosen_TKE = (
    jax.nn.one_hot(expert_TK, experts, dtype=jnp.float32) * valid_T[..., None, None]
  )
  weight_TK = jnp.einsum('...ke,...e->...k', chosen_TKE, p_TE)
  weight_TK = weight_TK / jnp.maximum(weight_TK.sum(axis=-1, keepdims=True), 1e-9)
  n = jnp.maximum(valid_T.sum(), 1)
  load_E = _total(chosen_TKE) / (n * top_k)
  importance_E = _total(jnp.where(valid_T[..., None], p_TE, 0)) / n
  expert_TK = jnp.where(valid_T[..., None], expert_TK, experts).astype(jnp.int32)
  return Routing(expert_TK, weight_TK, load_E, importance_E)


def balance_loss(routing: Routing) -> Float[Array, '']:
  """E · Σ load · importance (Switch Transformer, arXiv 2101.03961), load over all K choices: 1 when uniform."""
  return routing.load_E.size * jnp.sum(routing.load_E * routing.importance_E)


def z_loss(
  logits_TE: Float[Array, '*T E'], valid_T: Bool[Array, '*T']
) -> Float[Array, '']:
  """Mean squared log-partition of the router (ST-MoE, arXiv 2202.08906)."""
  z_T = jax.nn.logsumexp(logits_TE.astype(jnp.float32), axis=-1)
  return jnp.where(valid_T, z_T**2, 0).sum() / jnp.maximum(valid_T.sum(), 1)


def stats(
  logits_TE: Float[Array, '*T E'],
  routing: Routing,
  modality_T: Int[Array, '*T'],
  dropped: Float[Array, ''],
  *,
  modalities: int,
) -> RouterStats:
  """Returns losses and figures of one layer; padding has modality 0.

  Args:
    modalities: rows of the table of experts by modality, padding among them.
  """
  valid_T = modality_T > 0
  logp_TE = jax.nn.log_softmax(logits_TE.astype(jnp.float32), axis=-1)
  entropy_T = -jnp.sum(jnp.exp(logp_TE) * logp_TE, axis=-1)
  experts = logits_TE.shape[-1]
  load_TE = jax.nn.one_hot(routing.expert_TK, experts, dtype=jnp.float32).sum(axis=-2)
  load_ME = jnp.einsum(
    '...m,...e->me', jax.nn.one_hot(modality_T, modalities, dtype=jnp.float32), load_TE
  )
  return RouterStats(
    balance_loss(routing),
    z_loss(logits_TE, valid_T),
    jnp.where(valid_T, entropy_T, 0).sum() / jnp.maximum(valid_T.sum(), 1),
    routing.load_E,
    load_ME,
    dropped,
  )


def mutual_information(load_ME: Float[Array, 'M E']) -> Float[Array, '']:
  """What the expert tells of the modality, in nats: Σ p(m, e) log p(m, e) / p(m) p(e); 0 where routing ignores it."""
  p_ME = load_ME / jnp.maximum(load_ME.sum(), 1)
  independent_ME = p_ME.sum(axis=1, keepdims=True) * p_ME.sum(axis=0, keepdims=True)
  return jnp.sum(
    jnp.where(p_ME > 0, p_ME * jnp.log(p_ME / jnp.maximum(independent_ME, 1e-9)), 0)
  )


def updated_bias(
  bias_IE: Float[Array, 'I E'], load_IE: Float[Array, 'I E'], step: float
) -> Float[Array, 'I E']:
  """One step of loss-free balancing: experts with less than their share become a little easier to choose."""
  return bias_IE + step * jnp.sign(1 / load_IE.shape[-1] - load_IE)
