"""How a train state is first made, already sharded."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import optax

from omni_jax import sharding
from omni_jax.checkpoint.init_values import init_buffers, init_codec_values, init_params
from omni_jax.checkpoint.train_state import fresh_average, TrainState
from omni_jax.modalities.audio.quantizer import CodecBuffers
from omni_jax.model import OmniConfig
from omni_jax.sharding import name_of


def _start(
  params: Any, buffers: Any, tx: optax.GradientTransformation, seed: int
) -> TrainState:
  key_data = jax.random.key_data(jax.random.key(seed))
  return TrainState(params, buffers, tx.init(params), jnp.int32(0), key_data)


def init_omni(
  config: OmniConfig,
  tx: optax.GradientTransformation,
  codec: Any,
  *,
  seed: int,
  average: bool = False,
) -> TrainState:
  """Returns a fresh state of the omni stage.

  Args:
    codec: params and codebooks of the codec stage, kept as frozen buffers.
    average: keep a moving average of the parameters as a buffer, too.
  """
  params = init_params(config, seed=seed)
  buffers = init_buffers(config, codec, params if average else None)
  return fresh_average(_start(params, buffers, tx, seed))


def init_codec(
  config: OmniConfig, tx: optax.GradientTransformation, *, seed: int
) -> TrainState:
  """Returns a fresh state of the codec stage."""
  values = init_codec_values(config, seed=seed)
  return _start(values['params'], {'codebooks': values['codebooks']}, tx, seed)


def codec_values(state: TrainState) -> dict[str, Any]:
  """Returns what the omni stage needs of a finished codec stage."""
  return {'params': state.params, 'codebooks': state.buffers['codebooks']}


def codebooks_of(buffers: dict[str, Any]) -> CodecBuffers:
  """Returns the typed view of the codebooks in a buffers dict."""
  return CodecBuffers(**buffers['codebooks'])


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
