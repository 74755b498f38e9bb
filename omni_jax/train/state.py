"""Creates the first train state of a stage, already sharded."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from omni_jax import sharding
from omni_jax.checkpoint.init_values import init_autoencoder, init_buffers, init_params
from omni_jax.checkpoint.train_state import fresh_average, TrainState
from omni_jax.model import ModelConfig
from omni_jax.sharding import leaf_name


def _start(
  params: Any, buffers: Any, tx: optax.GradientTransformation, seed: int
) -> TrainState:
  """Returns the state before the first update."""
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
    average: also keep a moving average of the parameters, as a buffer.
  """
  params = init_params(config, seed=seed)
  buffers = init_buffers(config, frozen, params if average else None)
  return fresh_average(_start(params, buffers, tx, seed))


def init_autoencoder_state(
  config: ModelConfig, name: str, tx: optax.GradientTransformation, *, seed: int
) -> TrainState:
  """Returns a fresh state of the stage of the autoencoder with this name."""
  values = init_autoencoder(config, name, seed=seed)
  return _start(values['params'], values['buffers'], tx, seed)


def shardings(abstract: TrainState, specs: Any, mesh: Mesh) -> TrainState:
  """Returns the sharding of every array of a state.

  Weights, their average and their optimizer moments follow the table of rules;
  everything else is replicated on every device.

  Args:
    abstract: shapes of the state.
    specs: PartitionSpecs of the parameters, as `sharding.param_specs` returns them.
  """
  replicated = sharding.replicated(mesh)
  params = jax.tree.map(
    lambda x, spec: sharding.weight_sharding(mesh, spec, x.shape),
    abstract.params,
    specs,
  )
  by_name = sharding.named_leaves(params)

  def of_moment(path, leaf):
    # The name of a moment ends with the name of its weight, whatever wraps it.
    parts = leaf_name(path).split('.')
    suffixes = ['.'.join(parts[i:]) for i in range(len(parts))]
    weight = next((name for name in suffixes if name in by_name), None)
    if weight is None:
      return replicated
    own = by_name[weight]
    return own if leaf.ndim >= len(own.spec) else replicated

  moments = jax.tree_util.tree_map_with_path(of_moment, abstract.opt_state)
  buffers: dict[str, Any] = jax.tree.map(lambda _: replicated, abstract.buffers)
  if 'ema' in buffers:
    buffers['ema'] = params
  layout: list[Any] = [params, buffers, moments, replicated, replicated]
  return TrainState._make(layout)
