"""Defines the state of a training run, which steps update and checkpoints hold."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp


class TrainState(NamedTuple):
  """The state of a training run, in pure values: a checkpoint is plain data without Flax.

  Attributes:
    params: trainable arrays, a nested dict.
    buffers: state that no optimizer touches (router biases, codebooks, the frozen
      codec, averages).
    opt_state: state of the optax optimizer.
    step: number of updates done, int32.
    rng: raw data of the run's random key.
  """

  params: Any
  buffers: Any
  opt_state: Any
  step: Array
  rng: Array


def fresh_average(state: TrainState) -> TrainState:
  """Returns the state with its average, if it keeps one, restarted at the parameters.

  The average is a copy, since a step donates both the parameters and the average.
  """
  if 'ema' not in state.buffers:
    return state
  average = jax.tree.map(jnp.copy, state.params)
  return state._replace(buffers=state.buffers | {'ema': average})


def use_average(model: dict[str, Any]) -> dict[str, Any]:
  """Returns {'params', 'buffers'} with the average, if any, as the parameters."""
  buffers = dict(model['buffers'])
  params = buffers.pop('ema', model['params'])
  return {'params': params, 'buffers': buffers}
