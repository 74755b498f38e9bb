"""Gradient accumulation: a batch in parts, whose losses are divided by the weights of the whole batch."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.objective import Outcome, Pretraining, Whole
from omni_jax.types import Batch


def cut_into(batch: Batch, parts: int) -> Batch:
  """Returns a leading axis of parts. Every device cuts the rows that it has: part p takes rows p, p + parts, …

  Rows that share their pools stay together.
  """
  pools = min(len(x) for x in jax.tree.leaves(batch))
  together = pools // parts

  def cut(x: Array) -> Array:
    rows = len(x) // pools
    groups = x.reshape(together, parts, rows, *x.shape[1:])
    return jnp.moveaxis(groups, 1, 0).reshape(parts, together * rows, *x.shape[1:])

  return jax.tree.map(cut, batch)


def accumulated(
  objective: Pretraining,
  model: Any,
  params: Any,
  reference: Any,
  batch: Batch,
  key: Array,
  *,
  parts: int,
  hold: Callable[[Any], Any],
) -> tuple[tuple[Array, Outcome], Any]:
  """Returns what `jax.value_and_grad(…, has_aux=True)` gives for the whole batch, with the memory of one part.

  A mean of means would weigh a word in a part of few words more: losses are sums, divided by the weights of all parts
  and devices. Gradients add up in fp32. What the routers tell is a mean over parts, and counts are sums; their balance
  loss is a product of means, so that it is not quite that of the whole batch.

  Args:
    hold: stops the gradient of the parameters that are frozen.
  """
  cut = cut_into(batch, parts)

  def weights(part: Batch) -> dict[str, Array]:
    """Known before anything is computed: XLA leaves out all that they do not need."""
    _, outcome = objective(model, params, reference, part, key)
    heads = jax.lax.stop_gradient(outcome.heads)
    return {name: head.weight for name, head in heads.items()}

  sums = jax.tree.map(lambda w: w.sum(), jax.lax.map(weights, cut))
  of_part = dataclasses.replace(objective, whole=Whole(sums, parts))

  def loss_of(params: Any, part: Batch) -> tuple[Array, Outcome]:
    return of_part(model, hold(params), reference, part, key)

  def one(carry, part):
    (loss, outcome), grads = jax.value_and_grad(loss_of, has_aux=True)(params, part)
    added = (loss, outcome.heads, grads)
    carry = jax.tree.map(lambda total, x: total + x.astype(jnp.float32), carry, added)
    return carry, (outcome.metrics, outcome.stats)

  none = jnp.zeros((), jnp.float32)
  heads = {name: HeadLoss(none, none) for name in sums}
  # Made of the weights: so they are laid out alike.
  zeros = jax.tree.map(lambda p: 0 * p.astype(jnp.float32), params)
  start = (none, heads, zeros)
  (loss, heads, grads), (metrics, stats) = jax.lax.scan(one, start, cut)
  grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
  mean = jax.tree.map(lambda x: x.mean(axis=0), stats)
  stats = mean._replace(load_ME=stats.load_ME.sum(axis=0))
  metrics = {'tokens': metrics['tokens'].sum(), 'filled': metrics['filled'].mean()}
  return (loss, Outcome(metrics, heads, stats)), grads
