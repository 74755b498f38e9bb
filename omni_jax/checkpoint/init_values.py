"""Fresh parameters and buffers of a model, as pure dicts: no optimizer is needed for them."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from omni_jax.modalities.audio.codec import Codec
from omni_jax.modalities.audio.quantizer import init_buffers as init_codebooks
from omni_jax.model import OmniConfig, OmniModel


def _pure(model: nnx.Module) -> dict[str, Any]:
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def init_params(config: OmniConfig, *, seed: int) -> dict[str, Any]:
  """Returns fresh parameters of the omni stage, in the type of config.weights."""
  params = _pure(OmniModel(config, rngs=nnx.Rngs(seed)))
  return jax.tree.map(lambda p: p.astype(config.weights), params)


def init_buffers(
  config: OmniConfig, codec_values: Any, average: Any = None
) -> dict[str, Any]:
  """Returns fresh buffers of the omni stage.

  Args:
    codec_values: params and codebooks of the codec stage, kept as they are.
    average: the values that a moving average of the parameters begins with; None for a
      run that keeps no average.
  """
  shape = (config.decoder.layers, config.decoder.experts)
  buffers = {'router_bias': jnp.zeros(shape, jnp.float32), 'codec': codec_values}
  if average is not None:
    buffers['ema'] = average
  return buffers


def init_codec_values(config: OmniConfig, *, seed: int) -> dict[str, Any]:
  """Returns fresh params and codebooks of the codec stage."""
  params = _pure(Codec(config.codec, config.media.audio, rngs=nnx.Rngs(seed)))
  return {'params': params, 'codebooks': init_codebooks(config.codec)._asdict()}
