"""Cross-entropy over a large vocabulary, without all logits at once on any device."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax import sharding

# Logits of one chunk on one device, half a gigabyte: large enough to hide the time that
# reading the weight's gradient takes.
LOGITS = 2**27


def cross_entropy_reference(
  hidden_TD: Float[Array, 'T D'],
  w_DV: Float[Array, 'D V'],
  target_T: Int[Array, 'T'],
  weight_T: Float[Array, 'T'],
) -> Float[Array, '']:
  """Returns Σ weight · -log p(target), in nats: the reference for `cross_entropy`."""
  logits_TV = jnp.dot(hidden_TD, w_DV, preferred_element_type=jnp.float32)
  logp_TV = jax.nn.log_softmax(logits_TV)
  logp_T = jnp.take_along_axis(logp_TV, target_T[:, None], axis=1)[:, 0]
  return -jnp.sum(weight_T * logp_T)


def cross_entropy(
  hidden_BLD: Float[Array, 'B L D'],
  w_DV: Float[Array, 'D V'],
  target_BL: Int[Array, 'B L'],
  weight_BL: Float[Array, 'B L'],
  *,
  axes: tuple[str, str],
  mesh: Mesh,
  logits: int = LOGITS,
) -> Float[Array, '']:
  """Returns Σ weight · -log p(target), in nats, of rows that are split over the mesh.

  No gradient flows to `weight_BL`.

  Args:
    axes: logical axes of w_DV, which is in the dtype of the computation.
    logits: largest number of logits on a device at a time.
  """
  if mesh.size == 1:
    hidden_TD, target_T, weight_T = _as_tokens(hidden_BLD, target_BL, weight_BL)
    return _chunked(hidden_TD, w_DV, target_T, weight_T, sharding.spec(), logits)
  pspec = sharding.weight_sharding(mesh, sharding.spec(*axes), w_DV.shape).spec

  def local(
    hidden_BLD: Array, w_DV: Array, target_BL: Array, weight_BL: Array
  ) -> Array:
    hidden_TD, target_T, weight_T = _as_tokens(hidden_BLD, target_BL, weight_BL)
    total = _chunked(hidden_TD, w_DV, target_T, weight_T, pspec, logits)
    return jax.lax.psum(total, sharding.token_axes(mesh))

  rows = sharding.spec('batch', 'length')
  mapped = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(rows, pspec, rows, rows),
    out_specs=sharding.spec(),
    check_vma=False,
  )
  return mapped(hidden_BLD, w_DV, target_BL, weight_BL)


def _as_tokens(
  hidden_BLD: Array, target_BL: Array, weight_BL: Array
) -> tuple[Array, Array, Array]:
  """Returns the same arrays with rows and positions flattened into tokens."""
  hidden_TD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])
  return hidden_TD, target_BL.reshape(-1), weight_BL.reshape(-1)


class _Gradients(NamedTuple):
  hidden_TD: Array
  w_DV: Array


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(
  hidden_TD: Array,
  w_dV: Array,
  target_T: Array,
  weight_T: Array,
  pspec: Any,
  logits: int,
) -> Array:
  """Returns the sum over the tokens of this device.

  Args:
    w_dV: the slice of the weight that this device holds.
    pspec: PartitionSpec of the weight.
    logits: largest number of logits at a time.
  """
  w_DV = sharding.gather_weight(w_dV, pspec)
  axis = _vocabulary_axis(pspec)
  total, _ = _loss(hidden_TD, w_DV, target_T, weight_T, axis, logits, False)
  return total


def _vocabulary_axis(pspec: Any) -> str | None:
  """Returns the mesh axis that splits the vocabulary, or None."""
  return pspec[1] if pspec else None


def _forward(
  hidden_TD: Array,
  w_dV: Array,
  target_T: Array,
  weight_T: Array,
  pspec: Any,
  logits: int,
) -> tuple[Array, _Gradients]:
  """Returns the loss and its gradients.

  Both are computed together, while the logits of a chunk exist; otherwise the logits
  would have to be computed again.
  """
  w_DV = sharding.gather_weight(w_dV, pspec)
  axis = _vocabulary_axis(pspec)
  total, gradients = _loss(hidden_TD, w_DV, target_T, weight_T, axis, logits, True)
  assert gradients is not None
  # Only a slice of the weight's gradient is kept. The barrier makes sure that it is cut
  # before the decoder's backward pass begins.
  slices = gradients._replace(w_DV=sharding.scatter_gradient(gradients.w_DV, pspec))
  return jax.lax.optimization_barrier((total, slices))


def _backward(
  pspec: Any, logits: int, gradients: _Gradients, scale: Array
) -> tuple[Array, Array, None, None]:
  del logits
  axis = _vocabulary_axis(pspec)
  if axis:
    # The loss is the same on all devices of this axis, so shard_map gives each of them
    # a part of the cotangent.
    scale = jax.lax.psum(scale, axis)
  dhidden_TD = gradients.hidden_TD * scale.astype(gradients.hidden_TD.dtype)
  dw_dV = gradients.w_DV * scale.astype(gradients.w_DV.dtype)
  return dhidden_TD, dw_dV, None, None


_chunked.defvjp(_forward, _backward)


def _loss(
  hidden_TD: Array,
  w_DV: Array,
  target_T: Array,
  weight_T: Array,
  axis: str | None,
  logits: int,
  with_gradients: bool,
) -> tuple[Array, _Gradients | None]:
  """Returns the sum over the tokens of this device, and its gradients if requested.

  Args:
    w_DV: the weight, or the columns of this device where `axis` splits it.
    axis: mesh axis that splits the vocabulary, or None.
  """
  tokens = len(hidden_TD)
  width, vocab = w_DV.shape
  chunks = min(tokens, -(-tokens * vocab // logits))
  size = -(-tokens // chunks)
  missing = chunks * size - tokens

  def cut(value_T: Array) -> Array:
    ends = ((0, missing),) + ((0, 0),) * (value_T.ndim - 1)
    return jnp.pad(value_T, ends).reshape(chunks, size, *value_T.shape[1:])

  def over_vocabulary(value: Array, reduce: Callable[[Array, str], Array]) -> Array:
    return reduce(value, axis) if axis else value

  first = jax.lax.axis_index(axis) * vocab if axis else 0

  def chunk(carry, rows):
    total, dw_DV = carry
    hidden_CD, target_C, weight_C = rows
    logits_CV = jnp.dot(hidden_CD, w_DV, preferred_element_type=jnp.float32)
    top_C1 = over_vocabulary(logits_CV.max(axis=1, keepdims=True), jax.lax.pmax)
    local_sum_C1 = jnp.exp(logits_CV - top_C1).sum(axis=1, keepdims=True)
    sum_C1 = over_vocabulary(local_sum_C1, jax.lax.psum)
    is_target_CV = (
      jnp.arange(vocab, dtype=jnp.int32)[None] == (target_C - first)[:, None]
    )
    local_logit_C = jnp.where(is_target_CV, logits_CV, 0).sum(axis=1)
    logit_C = over_vocabulary(local_logit_C, jax.lax.psum)
    total += jnp.sum(weight_C * (jnp.log(sum_C1[:, 0]) + top_C1[:, 0] - logit_C))
    if not with_gradients:
      return (total, dw_DV), None
    p_CV = jnp.exp(logits_CV - top_C1) / sum_C1
    dlogits_CV = (p_CV - is_target_CV) * weight_C[:, None]
    dlogits_CV = dlogits_CV.astype(hidden_TD.dtype)
    dw_DV += jnp.dot(hidden_CD.T, dlogits_CV, preferred_element_type=jnp.float32)
    # This device's part of the sum over the vocabulary.
    dhidden_CD = jnp.dot(dlogits_CV, w_DV.T)
    return (total, dw_DV), dhidden_CD

  dw_shape = (width, vocab) if with_gradients else ()
  dw_DV = jnp.zeros(dw_shape, jnp.float32)
  start = (jnp.zeros(()), dw_DV)
  rows = (cut(hidden_TD), cut(target_T), cut(weight_T))
  (total, dw_DV), dhidden = jax.lax.scan(chunk, start, rows)
  if not with_gradients:
    return total, None
  dhidden_TD = dhidden.reshape(-1, width)[:tokens]
  return total, _Gradients(dhidden_TD, dw_DV.astype(w_DV.dtype))
