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


def _initial_state(
  params: Any, buffers: Any, tx: optax.GradientTransformation, seed: int
) -> TrainState:
  """Returns the state before the first update."""
  return TrainState(
    params=params,
    buffers=buffers,
    opt_state=tx.init(params),
    step=jnp.int32(0),
    rng=jax.random.key_data(jax.random.key(seed)),
  )


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
    seed: seed of the parameters and of the run's random key.
    average: whether a buffer keeps a moving average of the parameters.
  """
  params = init_params(config, seed=seed)
  buffers = init_buffers(config, frozen, params if average else None)
  return fresh_average(_initial_state(params, buffers, tx, seed))


def init_autoencoder_state(
  config: ModelConfig, name: str, tx: optax.GradientTransformation, *, seed: int
) -> TrainState:
  """Returns a fresh state of the stage of the autoencoder with this name."""
  values = init_autoencoder(config, name, seed=seed)
  return _initial_state(values['params'], values['buffers'], tx, seed)


def shardings(abstract: TrainState, specs: Any, mesh: Mesh) -> TrainState:
  """Returns the sharding of every array of a state.

  Weights, their average and their optimizer moments follow the table of rules;
  everything else is replicated on every device.

  Args:
    abstract: shapes of the state.
    specs: PartitionSpecs of the parameters, as `sharding.param_specs` returns them.
  """
  replicated: Any = sharding.replicated(mesh)  # stands for an array, too
  params = jax.tree.map(
    lambda x, spec: sharding.weight_sharding(mesh, spec, x.shape),
    abstract.params,
    specs,
  )
  by_name = sharding.named_leaves(params)

  def moment_sharding(path, leaf):
    # The name of a moment ends with the name of its weight, whatever wraps it.
    parts = leaf_name(path).split('.')
    suffixes = ['.'.join(parts[i:]) for i in range(len(parts))]
    weight = next((name for name in suffixes if name in by_name), None)
    if weight is None:
      return replicated
    weight_sharding = by_name[weight]
    has_all_axes = leaf.ndim >= len(weight_sharding.spec)
    return weight_sharding if has_all_axes else replicated

  moments = jax.tree_util.tree_map_with_path(moment_sharding, abstract.opt_state)
  buffers: dict[str, Any] = jax.tree.map(lambda _: replicated, abstract.buffers)
  if 'ema' in buffers:
    buffers['ema'] = params
  return TrainState(
    params=params, buffers=buffers, opt_state=moments, step=replicated, rng=replicated
  )
