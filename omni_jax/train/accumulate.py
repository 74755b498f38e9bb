"""Accumulates gradients: a batch is computed in parts, one after the other.

The losses of every part are divided by the weights of the whole batch.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.objective import Outcome, over_parts, Pretraining, WholeBatch
from omni_jax.types import Batch


def split_batch(batch: Batch, parts: int) -> Batch:
  """Returns the batch with a leading axis of parts.

  Every device splits the rows that it holds: part p takes the rows p, p + parts, and so
  on. Rows that share their pools stay together.
  """
  pools = min(len(x) for x in jax.tree.leaves(batch))
  pools_per_part = pools // parts

  def split(x: Array) -> Array:
    rows = len(x) // pools
    groups = x.reshape(pools_per_part, parts, rows, *x.shape[1:])
    shape = (parts, pools_per_part * rows, *x.shape[1:])
    return jnp.moveaxis(groups, 1, 0).reshape(shape)

  return jax.tree.map(split, batch)


def value_and_grad_in_parts(
  objective: Pretraining,
  model: Any,
  params: Any,
  reference: Any,
  batch: Batch,
  key: Array,
  *,
  parts: int,
  stop_frozen: Callable[[Any], Any],
) -> tuple[tuple[Array, Outcome], Any]:
  """Does what `jax.value_and_grad(…, has_aux=True)` does, in the memory of one part.

  A mean of means would give more weight to a word in a part with few words. Losses are
  therefore sums, divided by the weights of all parts and devices. Gradients are summed
  in fp32. Router statistics are means over the parts, and counts are sums. The routers'
  balance loss is a product of means, so it differs slightly from that of the whole
  batch.

  Args:
    parts: number of parts.
    stop_frozen: function that stops the gradients of the frozen parameters.
  """
  split = split_batch(batch, parts)

  def weights(part: Batch) -> dict[str, Array]:
    # The weights need no forward pass: XLA leaves out everything else.
    _, outcome = objective(model, params, reference, part, key)
    heads = jax.lax.stop_gradient(outcome.heads)
    return {name: head.weight for name, head in heads.items()}

  sums = jax.tree.map(lambda w: w.sum(), jax.lax.map(weights, split))
  part_objective = dataclasses.replace(objective, whole=WholeBatch(sums, parts))

  def loss_of(params: Any, part: Batch) -> tuple[Array, Outcome]:
    return part_objective(model, stop_frozen(params), reference, part, key)

  def add_part(totals, part):
    (loss, outcome), grads = jax.value_and_grad(loss_of, has_aux=True)(params, part)
    own = (loss, outcome.heads, grads)
    totals = jax.tree.map(lambda total, x: total + x.astype(jnp.float32), totals, own)
    return totals, (outcome.metrics, outcome.stats)

  zero = jnp.zeros((), jnp.float32)
  heads = {name: HeadLoss(zero, zero) for name in sums}
  # Computed from the parameters, so that the gradients have the same shardings.
  zeros = jax.tree.map(lambda p: 0 * p.astype(jnp.float32), params)
  totals, per_part = jax.lax.scan(add_part, (zero, heads, zeros), split)
  loss, heads, grads = totals
  metrics, stats = over_parts(*per_part)
  grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
  return (loss, Outcome(metrics, heads, stats)), grads
