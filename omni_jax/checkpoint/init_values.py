"""Initializes parameters and buffers of a model, as pure dicts, without an optimizer."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from omni_jax.model import ModelConfig, OmniModel


def params_of(model: nnx.Module) -> dict[str, Any]:
  """Returns the parameters of a module as a nested dict."""
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def init_params(config: ModelConfig, *, seed: int) -> dict[str, Any]:
  """Returns fresh parameters of the omni stage, in the dtype of config.weights."""
  params = params_of(OmniModel(config, rngs=nnx.Rngs(seed)))
  return jax.tree.map(lambda p: p.astype(config.weights), params)


def init_buffers(
  config: ModelConfig, frozen: Mapping[str, Any], average: Any = None
) -> dict[str, Any]:
  """Returns fresh buffers of the omni stage.

  Args:
    frozen: values of the autoencoders by name, kept as they are.
    average: initial values of the moving average of the parameters; None for a run that
      keeps no average.
  """
  shape = (config.decoder.layers, config.decoder.experts)
  bias_IE = jnp.zeros(shape, jnp.float32)
  buffers = {'router_bias': bias_IE, 'frozen': dict(frozen)}
  if average is not None:
    buffers['ema'] = average
  return buffers


def init_autoencoder(config: ModelConfig, name: str, *, seed: int) -> dict[str, Any]:
  """Returns fresh values ('params' and 'buffers') of an autoencoder."""
  medium, row = config.tables.autoencoders()[name]
  own_config = config.autoencoders[name]
  module = row.make(config.media[medium], own_config, nnx.Rngs(seed))
  return {'params': params_of(module), 'buffers': row.init_buffers(own_config)}


def init_frozen(config: ModelConfig, *, seed: int) -> dict[str, Any]:
  """Returns fresh values of all autoencoders, by name."""
  return {
    name: init_autoencoder(config, name, seed=seed) for name in config.autoencoders
  }
