"""Gradient accumulation: a batch in parts, whose losses are divided by the weights of the whole batch."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.nn.moe_router import RouterStats
from omni_jax.train.losses import Whole
from omni_jax.types import Batch

# (params, part of the batch, the whole) -> (part of the loss, (losses of the heads, figures of the routers))
Objective = Callable[
  [Any, Batch, Whole | None], tuple[Array, tuple[dict[str, HeadLoss], RouterStats]]
]


def parts_of(batch: Batch, parts: int) -> Batch:
  """Leading axis of parts. Every device cuts the rows that it has: part p takes rows p, p + parts, …"""
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(len(x) // parts, parts, *x.shape[1:]), 1, 0), batch
  )


def accumulated(
  objective: Objective, params: Any, batch: Batch, parts: int
) -> tuple[Any, Any]:
  """What `jax.value_and_grad(objective, has_aux=True)` gives for the whole batch, with the memory of one part.

  A mean of means would weigh a word in a part of few words more: losses are sums, divided by the weights of all parts
  and devices. Gradients add up in fp32. What the routers tell is a mean over parts, and counts are
  sums; their balance loss is a product of means, so that it is not quite that of the whole batch.
  """
  cut = parts_of(batch, parts)

  def weights(part):
    """Known before anything is computed: XLA leaves out all that they do not need."""
    heads = jax.lax.stop_gradient(objective(params, part, None)[1][0])
    return {name: head.weight for name, head in heads.items()}

  whole = Whole(jax.tree.map(lambda w: w.sum(), jax.lax.map(weights, cut)), parts)

  def one(carry, part):
    (loss, (heads, stats)), grads = jax.value_and_grad(objective, has_aux=True)(
      params, part, whole
    )
    return jax.tree.map(
      lambda total, x: total + x.astype(jnp.float32), carry, (loss, heads, grads)
    ), stats

  none = jnp.zeros((), jnp.float32)
  heads = {name: HeadLoss(none, none) for name in whole.weights}
  grads = jax.tree.map(
    lambda p: 0 * p.astype(jnp.float32), params
  )  # made of the weights: so they are laid out alike
  (loss, heads, grads), stats = jax.lax.scan(one, (none, heads, grads), cut)
  grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
  mean = jax.tree.map(lambda x: x.mean(axis=0), stats)
  return (loss, (heads, mean._replace(load_ME=stats.load_ME.sum(axis=0)))), grads
