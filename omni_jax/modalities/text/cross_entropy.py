"""Cross-entropy over a large vocabulary: the logits of all positions never exist at once, on no device."""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax import sharding

LOGITS = (
  2**27
)  # of one chunk on one device: half a gigabyte, large enough to hide that the weight's gradient is read


def cross_entropy_reference(
  hidden_TD: Float[Array, 'T D'],
  w_DV: Float[Array, 'D V'],
  target_T: Int[Array, 'T'],
  weight_T: Float[Array, 'T'],
) -> Float[Array, '']:
  """Σ weight · -log p(target), in nats: what the chunked one must equal."""
  logp_TV = jax.nn.log_softmax(
    jnp.dot(hidden_TD, w_DV, preferred_element_type=jnp.float32)
  )
  return -jnp.sum(
    weight_T * jnp.take_along_axis(logp_TV, target_T[:, None], axis=1)[:, 0]
  )


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
  """The same for rows that lie split over the mesh; no gradient flows to `weight_BL`.

  Args:
    axes: logical axes of w_DV, which is in the type of the computation.
    logits: largest number of them on a device at a time.
  """
  flat = lambda hidden, *rest: (
    hidden.reshape(-1, hidden.shape[-1]),
    *(a.reshape(-1) for a in rest),
  )
  if mesh.size == 1:
    hidden_TD, target_T, weight_T = flat(hidden_BLD, target_BL, weight_BL)
    return _chunked(hidden_TD, w_DV, target_T, weight_T, sharding.spec(), logits)
  layout = sharding.fitting(mesh, sharding.spec(*axes), w_DV.shape).spec

  def local(hidden_BLD, w_DV, target_BL, weight_BL):
    hidden_TD, target_T, weight_T = flat(hidden_BLD, target_BL, weight_BL)
    total = _chunked(hidden_TD, w_DV, target_T, weight_T, layout, logits)
    return jax.lax.psum(total, sharding.TOKEN_AXES)

  rows = sharding.spec('batch', 'length')
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(rows, layout, rows, rows),
    out_specs=sharding.spec(),
    check_vma=False,
  )(hidden_BLD, w_DV, target_BL, weight_BL)


class _Gradients(NamedTuple):
  hidden_TD: Array
  w_DV: Array


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(
  hidden_TD: Array,
  w_dV: Array,
  target_T: Array,
  weight_T: Array,
  layout: Any,
  logits: int,
) -> Array:
  """Sum over the tokens of this device.

  Args:
    w_dV: the slice of the weight that it holds.
    layout: PartitionSpec of the weight.
  """
  return _loss(
    hidden_TD,
    sharding.whole_width(w_dV, layout),
    target_T,
    weight_T,
    _axis(layout),
    logits,
    False,
  )[0]


def _axis(layout: Any) -> str | None:
  """Mesh axis that the vocabulary is split over, if any."""
  return layout[1] if layout else None


def _forward(hidden_TD, w_dV, target_T, weight_T, layout, logits):
  """The gradient is made with the loss, while the logits of a chunk are there: else they would be made again."""
  w_DV = sharding.whole_width(w_dV, layout)
  total, gradients = _loss(
    hidden_TD, w_DV, target_T, weight_T, _axis(layout), logits, True
  )
  # Of the weight's gradient a slice is kept, and before the decoder's backward pass begins: behind the barrier.
  slices = gradients._replace(w_DV=sharding.summed_slices(gradients.w_DV, layout))
  return jax.lax.optimization_barrier((total, slices))


def _backward(layout, logits, gradients, scale):
  del logits
  if (
    axis := _axis(layout)
  ):  # the loss is the same on all its devices: shard_map gives each a part of the cotangent
    scale = jax.lax.psum(scale, axis)
  return *(g * scale.astype(g.dtype) for g in gradients), None, None


_chunked.defvjp(_forward, _backward)


def _loss(
  hidden_TD, w_DV, target_T, weight_T, axis, logits, gradient
) -> tuple[Array, _Gradients | None]:
  tokens, (width, vocab) = len(hidden_TD), w_DV.shape
  chunks = min(tokens, -(-tokens * vocab // logits))
  size = -(-tokens // chunks)
  padded = lambda a: jnp.pad(
    a, ((0, chunks * size - tokens),) + ((0, 0),) * (a.ndim - 1)
  )
  cut = lambda a: padded(a).reshape(chunks, size, *a.shape[1:])
  everywhere = (lambda x, op: op(x, axis)) if axis else (lambda x, op: x)
  first = jax.lax.axis_index(axis) * vocab if axis else 0

  def chunk(carry, rows):
    total, dw_DV = carry
    hidden_CD, target_C, weight_C = rows
    logits_CV = jnp.dot(hidden_CD, w_DV, preferred_element_type=jnp.float32)
    top_C1 = everywhere(logits_CV.max(axis=1, keepdims=True), jax.lax.pmax)
    sum_C1 = everywhere(
      jnp.exp(logits_CV - top_C1).sum(axis=1, keepdims=True), jax.lax.psum
    )
    said_CV = jnp.arange(vocab, dtype=jnp.int32)[None] == (target_C - first)[:, None]
    said_C = everywhere(jnp.where(said_CV, logits_CV, 0).sum(axis=1), jax.lax.psum)
    total += jnp.sum(weight_C * (jnp.log(sum_C1[:, 0]) + top_C1[:, 0] - said_C))
    if not gradient:
      return (total, dw_DV), None
    d_CV = (
      (jnp.exp(logits_CV - top_C1) / sum_C1 - said_CV) * weight_C[:, None]
    ).astype(hidden_TD.dtype)
    dw_DV += jnp.dot(hidden_CD.T, d_CV, preferred_element_type=jnp.float32)
    return (total, dw_DV), jnp.dot(
      d_CV, w_DV.T
    )  # this device's part of the sum over the vocabulary

  none = jnp.zeros((width, vocab) if gradient else (), jnp.float32)
  (total, dw_DV), dhidden = jax.lax.scan(
    chunk, (jnp.zeros(()), none), tuple(map(cut, (hidden_TD, target_T, weight_T)))
  )
  if not gradient:
    return total, None
  return total, _Gradients(
    dhidden.reshape(-1, width)[:tokens], dw_DV.astype(w_DV.dtype)
  )
