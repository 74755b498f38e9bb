"""The train step of any objective: (TrainState, batch) -> (TrainState, metrics)."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import optax

from omni_jax.checkpoint.train_state import TrainState
from omni_jax.objective import (
  Metrics,
  metrics_of,
  Objective,
  Outcome,
  Pretraining,
  Refresh,
)
from omni_jax.train.accumulate import value_and_grad_in_parts
from omni_jax.train.numerics import skip_if_not_finite, TOTAL_GRAD_NORM, TOTAL_LOSS
from omni_jax.train.optim import frozen_mask

StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
GROUPS = ('embeds', 'heads')  # parts of the model whose norms are reported by medium


@dataclasses.dataclass(frozen=True)
class Update:
  """The settings of an update besides those of the optimizer.

  Attributes:
    accumulate: number of parts into which the batch is split; they are computed one
      after the other. The update is that of the whole batch, except for the routers'
      balance losses, which are means over the parts.
    ema: decay of the average in buffers['ema']; used only if the state has one.
    freeze: patterns of names, as the optimizer has them; no gradient is computed for
      parameters that match.
    refresh: returns the buffers that change with an update; None if there are none.
  """

  accumulate: int = 1
  ema: float = 0.0
  freeze: Sequence[str] = ()
  refresh: Refresh | None = None


def make_step(
  objective: Objective,
  model: Any,
  tx: optax.GradientTransformation,
  update: Update = Update(),
) -> StepFn:
  """Returns the function that computes one update of an objective.

  Args:
    model: the abstract model that the objective takes.
    tx: the optimizer.
  """

  def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

    def stop_frozen(params: Any) -> Any:
      is_frozen = frozen_mask(params, update.freeze)
      return jax.tree.map(_stop_gradient_if, is_frozen, params)

    def loss_of(params: Any) -> tuple[Array, Outcome]:
      return objective(model, stop_frozen(params), state.buffers, batch, key)

    if update.accumulate == 1:
      value, grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    else:
      assert isinstance(objective, Pretraining), 'only its losses can be accumulated'
      value, grads = value_and_grad_in_parts(
        objective,
        model,
        state.params,
        state.buffers,
        batch,
        key,
        parts=update.accumulate,
        stop_frozen=stop_frozen,
      )
    loss, outcome = value
    metrics = {TOTAL_LOSS: loss, TOTAL_GRAD_NORM: optax.tree.norm(grads)}
    metrics |= group_norms(grads)
    metrics |= metrics_of(outcome)
    buffers = dict(state.buffers)
    if update.refresh:
      buffers |= update.refresh(state.buffers, outcome, key)
    after = _apply_gradients(state, grads, buffers, tx)
    if 'ema' in buffers:
      average = updated_average(buffers['ema'], after.params, state.step, update.ema)
      after = after._replace(buffers=buffers | {'ema': average})
    return skip_if_not_finite(state, after, metrics)

  return step


def _stop_gradient_if(is_frozen: bool, param: Array) -> Array:
  return jax.lax.stop_gradient(param) if is_frozen else param


def group_norms(grads: Any) -> Metrics:
  """Returns the gradient norm of every part of the model.

  Embeddings and heads have one norm per medium.
  """
  norms = {}
  for name, part in grads.items():
    if name in GROUPS:
      for medium, own in part.items():
        norms[f'grad_norm/{name}.{medium}'] = optax.tree.norm(own)
    else:
      norms[f'grad_norm/{name}'] = optax.tree.norm(part)
  return norms


def _apply_gradients(
  state: TrainState, grads: Any, buffers: Any, tx: optax.GradientTransformation
) -> TrainState:
  """Returns the state after the optimizer's update, with the given buffers."""
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return TrainState(
    params=params,
    buffers=buffers,
    opt_state=opt_state,
    step=state.step + 1,
    rng=state.rng,
  )


def updated_average(average: Any, params: Any, step: Array, decay: float) -> Any:
  """Returns the moving average of the parameters after an update.

  The decay is min(decay, (1 + step) / (10 + step)), so it forgets fast at first.
  """
  keep = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda a, p: p + keep * (a - p), average, params)
