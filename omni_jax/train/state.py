"""How a train state is first made, already sharded."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import optax

from omni_jax import sharding
from omni_jax.checkpoint.init_values import init_autoencoder, init_buffers, init_params
from omni_jax.checkpoint.train_state import fresh_average, TrainState
from omni_jax.model import ModelConfig
from omni_jax.sharding import name_of


def _start(
  params: Any, buffers: Any, tx: optax.GradientTransformation, seed: int
) -> TrainState:
  key_data = jax.random.key_data(jax.random.key(seed))
  return TrainState(params, buffers, tx.init(params), jnp.int32(0), key_data)


def init_model_state(
  config: ModelConfig,
  tx: optax.GradientTransformation,
  frozen: Mapping[str, Any],
  *,
  seed: int,
  average: bool = False,
) -> TrainState:
  """Returns a fresh state of the omni stage.

  Args:
    frozen: values of the autoencoders by name, kept as frozen buffers.
    average: keep a moving average of the parameters as a buffer, too.
  """
  params = init_params(config, seed=seed)
  buffers = init_buffers(config, frozen, params if average else None)
  return fresh_average(_start(params, buffers, tx, seed))


def init_autoencoder_state(
  config: ModelConfig, name: str, tx: optax.GradientTransformation, *, seed: int
) -> TrainState:
  """Returns a fresh state of the stage of an autoencoder."""
  values = init_autoencoder(config, name, seed=seed)
  return _start(values['params'], values['buffers'], tx, seed)


def shardings(abstract: TrainState, specs: Any, mesh: Mesh) -> TrainState:
  """Returns the sharding of every array of a state.

  Weights, their average and their optimizer moments follow the table of rules;
  everything else is whole on every device.
  """
  whole = sharding.replicated(mesh)
  fit = jax.tree.map(
    lambda x, s: sharding.fitting(mesh, s, x.shape), abstract.params, specs
  )
  by_name = sharding.named_leaves(fit)

  def moment(path, leaf):
    # A moment has the name of its weight at the end of its own, whatever wraps it.
    parts = name_of(path).split('.')
    suffixes = ['.'.join(parts[i:]) for i in range(len(parts))]
    weight = next((name for name in suffixes if name in by_name), None)
    own = by_name[weight] if weight else whole
    return own if leaf.ndim >= len(own.spec) else whole

  moments = jax.tree_util.tree_map_with_path(moment, abstract.opt_state)
  buffers: dict[str, NamedSharding] = jax.tree.map(lambda _: whole, abstract.buffers)
  if 'ema' in buffers:
    buffers['ema'] = fit
  return TrainState(fit, buffers, moments, whole, whole)
