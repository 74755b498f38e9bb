"""The router of experts: its choices, their balancing losses, and its statistics."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int


class Routing(NamedTuple):
  """The experts of T tokens, where T may stand for several dimensions.

  Attributes:
    expert_TK: int32 numbers of the experts; E (one past the last) for padding.
    weight_TK: weight of each choice; they sum to 1 over K, and are 0 for padding.
    load_E: share of the valid choices (all K of them) that each expert got; sums to 1.
    importance_E: mean router probability; sums to 1.
  """

  expert_TK: Array
  weight_TK: Array
  load_E: Array
  importance_E: Array


class RouterStats(NamedTuple):
  """Losses and statistics of the routing in one layer.

  Attributes:
    balance: balance loss, 1 when uniform.
    z: router z-loss.
    entropy: entropy of the router probabilities of a token, in nats, mean over valid
      tokens.
    load_E: share of the valid choices that each expert got.
    load_mE: number of valid choices by modality and expert.
    dropped: share of the valid choices that found no place at their expert.
  """

  balance: Array
  z: Array
  entropy: Array
  load_E: Array
  load_mE: Array
  dropped: Array


def _total(x: Array) -> Array:
  """Returns the sum over all tokens.

  Their dimensions are never merged, since each may be split over another mesh axis.
  """
  return x.sum(axis=tuple(range(x.ndim - 1)))


def route(
  logits_TE: Float[Array, '*T E'],
  bias_E: Float[Array, 'E'],
  valid_T: Bool[Array, '*T'],
  *,
  top_k: int,
) -> Routing:
  """Returns the experts of each token: softmax scores, top-k, renormalised weights.

  The bias affects only the selection, never the weights (loss-free balancing, arXiv
  2408.15664). Computed in fp32.
  """
  experts = logits_TE.shape[-1]
  p_TE = jax.nn.softmax(logits_TE.astype(jnp.float32), axis=-1)
  score_TE = jax.lax.stop_gradient(p_TE) + jnp.broadcast_to(bias_E, p_TE.shape)
  _, expert_TK = jax.lax.top_k(score_TE, top_k)
  chosen_TKE = jax.nn.one_hot(expert_TK, experts, dtype=jnp.float32)
  chosen_TKE = chosen_TKE * valid_T[..., None, None]
  weight_TK = jnp.einsum('...ke,...e->...k', chosen_TKE, p_TE)
  weight_TK = weight_TK / jnp.maximum(weight_TK.sum(axis=-1, keepdims=True), 1e-9)
  n = jnp.maximum(valid_T.sum(), 1)
  load_E = _total(chosen_TKE) / (n * top_k)
  importance_E = _total(jnp.where(valid_T[..., None], p_TE, 0)) / n
  expert_TK = jnp.where(valid_T[..., None], expert_TK, experts).astype(jnp.int32)
  return Routing(expert_TK, weight_TK, load_E, importance_E)


def balance_loss(routing: Routing) -> Float[Array, '']:
  """Returns E · Σ load · importance (Switch Transformer, arXiv 2101.03961).

  The load counts all K choices. The loss is 1 when uniform.
  """
  return routing.load_E.size * jnp.sum(routing.load_E * routing.importance_E)


def z_loss(
  logits_TE: Float[Array, '*T E'], valid_T: Bool[Array, '*T']
) -> Float[Array, '']:
  """Returns the mean squared log-partition of the router (ST-MoE, arXiv 2202.08906)."""
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
  """Returns the losses and statistics of one layer; padding has modality 0.

  Args:
    dropped: share of the valid choices that found no place at their expert.
    modalities: m, the number of modalities, padding included.
  """
  valid_T = modality_T > 0
  logp_TE = jax.nn.log_softmax(logits_TE.astype(jnp.float32), axis=-1)
  entropy_T = -jnp.sum(jnp.exp(logp_TE) * logp_TE, axis=-1)
  experts = logits_TE.shape[-1]
  load_TE = jax.nn.one_hot(routing.expert_TK, experts, dtype=jnp.float32).sum(axis=-2)
  modality_Tm = jax.nn.one_hot(modality_T, modalities, dtype=jnp.float32)
  load_mE = jnp.einsum('...m,...e->me', modality_Tm, load_TE)
  balance = balance_loss(routing)
  z = z_loss(logits_TE, valid_T)
  entropy = jnp.where(valid_T, entropy_T, 0).sum() / jnp.maximum(valid_T.sum(), 1)
  return RouterStats(balance, z, entropy, routing.load_E, load_mE, dropped)


def mutual_information(load_mE: Float[Array, 'm E']) -> Float[Array, '']:
  """Returns the mutual information of expert and modality, in nats.

  Σ p(m, e) log p(m, e) / p(m) p(e); it is 0 where routing ignores the modality.
  """
  p_mE = load_mE / jnp.maximum(load_mE.sum(), 1)
  independent_mE = p_mE.sum(axis=1, keepdims=True) * p_mE.sum(axis=0, keepdims=True)
  used_mE = p_mE > 0
  term_mE = p_mE * jnp.log(p_mE / jnp.maximum(independent_mE, 1e-9))
  return jnp.sum(jnp.where(used_mE, term_mE, 0))


def updated_bias(
  bias_IE: Float[Array, 'I E'], load_IE: Float[Array, 'I E'], step: float
) -> Float[Array, 'I E']:
  """Returns the bias after one step of loss-free balancing.

  Experts with less than their share become a little easier to choose.
  """
  return bias_IE + step * jnp.sign(1 / load_IE.shape[-1] - load_IE)
