"""What a step takes and gives back, and how it is first made, already sharded."""

from typing import Any, NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import optax

from omni_jax import sharding
from omni_jax.modalities.audio.codec import Codec
from omni_jax.modalities.audio.quantizer import CodecBuffers, init_buffers
from omni_jax.model import OmniConfig, OmniModel
from omni_jax.train.optim import name_of


class TrainState(NamedTuple):
  """Pure values: nothing of Flax in it, so that a checkpoint is plain data.

  Attributes:
    params: trainable arrays, a nested dict.
    buffers: explicit state that no optimizer touches (router biases, codebooks, the frozen codec, averages).
    opt_state: of optax.
    step: updates done, int32.
    rng: raw key data of the run.
  """

  params: Any
  buffers: Any
  opt_state: Any
  step: Array
  rng: Array


def _pure(model: nnx.Module) -> dict[str, Any]:
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _start(
  params: Any, buffers: Any, tx: optax.GradientTransformation, seed: int
) -> TrainState:
  return TrainState(
    params,
    buffers,
    tx.init(params),
    jnp.int32(0),
    jax.random.key_data(jax.random.key(seed)),
  )


def init_omni(
  config: OmniConfig,
  tx: optax.GradientTransformation,
  codec: Any,
  *,
  seed: int,
  average: bool = False,
) -> TrainState:
  """A fresh state of the omni stage.

  Args:
    codec: params and codebooks of the codec stage, kept as frozen buffers.
    average: keep a moving average of the parameters as a buffer, too.
  """
  params = jax.tree.map(
    lambda p: p.astype(config.weights), _pure(OmniModel(config, rngs=nnx.Rngs(seed)))
  )
  bias_IE = jnp.zeros((config.decoder.layers, config.decoder.experts), jnp.float32)
  state = _start(
    params,
    {'router_bias': bias_IE, 'codec': codec} | ({'ema': params} if average else {}),
    tx,
    seed,
  )
  return fresh_average(state)


def fresh_average(state: TrainState) -> TrainState:
  """The state with its average, where it keeps one, begun anew at the parameters: copies, since a step donates both."""
  if 'ema' not in state.buffers:
    return state
  return state._replace(
    buffers=state.buffers | {'ema': jax.tree.map(jnp.copy, state.params)}
  )


def use_average(model: dict[str, Any]) -> dict[str, Any]:
  """{'params', 'buffers'} with the average in the place of the parameters, where there is one."""
  buffers = dict(model['buffers'])
  return {'params': buffers.pop('ema', model['params']), 'buffers': buffers}


def init_codec(
  config: OmniConfig, tx: optax.GradientTransformation, *, seed: int
) -> TrainState:
  """A fresh state of the codec stage."""
  params = _pure(Codec(config.codec, config.media.audio, rngs=nnx.Rngs(seed)))
  return _start(params, {'codebooks': init_buffers(config.codec)._asdict()}, tx, seed)


def codec_values(state: TrainState) -> dict[str, Any]:
  """What the omni stage needs of a finished codec stage."""
  return {'params': state.params, 'codebooks': state.buffers['codebooks']}


def codebooks_of(buffers: dict[str, Any]) -> CodecBuffers:
  """The typed view of the codebooks in a buffers dict."""
  return CodecBuffers(**buffers['codebooks'])


def shardings(abstract: TrainState, specs: Any, mesh: Mesh) -> TrainState:
  """Weights, their average and their optimizer moments by the table of rules; everything else whole on every device."""
  whole = sharding.replicated(mesh)
  fit = jax.tree.map(
    lambda x, s: sharding.fitting(mesh, s, x.shape), abstract.params, specs
  )
  by_name = {
    name_of(path): fit_leaf
    for path, fit_leaf in jax.tree_util.tree_leaves_with_path(fit)
  }

  def moment(path, leaf):
    # A moment lies in the optimizer's state under the name of its weight, whatever wraps it.
    names = name_of(path).split('.')
    found = next(
      (
        by_name[name]
        for i in range(len(names))
        if (name := '.'.join(names[i:])) in by_name
      ),
      whole,
    )
    return found if leaf.ndim >= len(found.spec) else whole

  moments = jax.tree_util.tree_map_with_path(moment, abstract.opt_state)
  rest: dict[str, NamedSharding] = jax.tree.map(lambda _: whole, abstract.buffers)
  rest |= {'ema': fit} if 'ema' in rest else {}
  return TrainState(fit, rest, moments, whole, whole)
