"""The train steps: pure functions (TrainState, batch) -> (TrainState, metrics)."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from omni_jax.checkpoint.train_state import TrainState
from omni_jax.modalities.audio.codec import Codec
from omni_jax.modalities.audio.codec_loss import codec_forward
from omni_jax.modalities.audio.quantizer import CodecBuffers, update_buffers
from omni_jax.model import encode_media, merge, OmniModel
from omni_jax.nn.moe_router import mutual_information, updated_bias
from omni_jax.train.accumulate import accumulated
from omni_jax.train.losses import LossConfig, text_weights, total_loss
from omni_jax.train.numerics import guarded
from omni_jax.train.optim import frozen
from omni_jax.train.state import codebooks_of
from omni_jax.types import Batch

Metrics = dict[str, Array]
StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def omni_losses(
  params: Any,
  buffers: Any,
  batch: Batch,
  key: Array,
  *,
  model: OmniModel,
  codec: Codec,
  mesh: Mesh,
):
  """Losses of all heads and figures of the routers on one batch.

  Args:
    model, codec: abstract modules, the arrays come from params and buffers.
    key: of the step, for the noise of the diffusion loss.

  Returns:
    (dict of HeadLoss, RouterStats)
  """
  omni = merge(model, params)
  frozen = jax.lax.stop_gradient(buffers['codec'])
  encoded = encode_media(
    model.config, merge(codec, frozen['params']), codebooks_of(frozen), batch, key
  )
  decoded = omni(batch, encoded, buffers['router_bias'], mesh)
  return omni.losses(decoded.hidden_BLD, batch, encoded, mesh), decoded.stats


def _group_norms(grads: Any) -> Metrics:
  """Gradient norm of every part of the model."""
  groups = {name: part for name, part in grads.items() if name != 'heads'}
  groups |= {f'{name}_head': part for name, part in grads.get('heads', {}).items()}
  return {f'grad_norm/{name}': optax.tree.norm(part) for name, part in groups.items()}


def _apply(
  state: TrainState, grads: Any, buffers: Any, tx: optax.GradientTransformation
) -> TrainState:
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return TrainState(params, buffers, opt_state, state.step + 1, state.rng)


def averaged(average: Any, params: Any, step: Array, decay: float) -> Any:
  """The moving average after one more update; it forgets fast at first: min(decay, (1 + step) / (10 + step))."""
  keep = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda a, p: p + keep * (a - p), average, params)


@dataclasses.dataclass(frozen=True)
class Update:
  """What an update does beside the optimizer.

  Attributes:
    bias_step: of loss-free balancing, see `updated_bias`.
    accumulate: parts that the batch is cut into, computed one after the other; the update is that of the whole batch,
      but for the routers' balance losses, which are means over parts.
    ema: decay of the average in buffers['ema']; read only where the state has one.
    freeze: the optimizer's patterns: no gradient is computed for what they name.
  """

  bias_step: float = 1e-3
  accumulate: int = 1
  ema: float = 0.0
  freeze: Sequence[str] = ()


def make_omni_step(
  model: OmniModel,
  codec: Codec,
  tx: optax.GradientTransformation,
  losses: LossConfig,
  mesh: Mesh,
  update: Update,
) -> StepFn:
  """One update of the whole model on a batch of every modality."""

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    batch = batch._replace(weight_BL=text_weights(batch, losses))

    def objective(params, batch, whole=None):
      still = frozen(params, update.freeze)
      params = jax.tree.map(
        lambda p, stays: jax.lax.stop_gradient(p) if stays else p, params, still
      )
      heads, stats = omni_losses(
        params, state.buffers, batch, key, model=model, codec=codec, mesh=mesh
      )
      return total_loss(heads, stats, losses, whole), (heads, stats)

    if update.accumulate == 1:
      (loss, (heads, stats)), grads = jax.value_and_grad(objective, has_aux=True)(
        state.params, batch
      )
    else:
      (loss, (heads, stats)), grads = accumulated(
        objective, state.params, batch, update.accumulate
      )
    bias_IE = updated_bias(state.buffers['router_bias'], stats.load_E, update.bias_step)
    metrics = {
      'loss/total': loss,
      'grad_norm/total': optax.tree.norm(grads),
      **_group_norms(grads),
    }
    metrics |= {f'loss/{name}': head.mean for name, head in heads.items()}
    metrics |= {f'weight/{name}': head.weight for name, head in heads.items()}
    metrics |= {
      'loss/balance': stats.balance.mean(),
      'loss/z': stats.z.mean(),
      'routing/entropy': stats.entropy.mean(),
      'routing/load_max': stats.load_E.max() * stats.load_E.shape[-1],
      'routing/load_min': stats.load_E.min() * stats.load_E.shape[-1],
      'routing/dropped': stats.dropped.mean(),
      'routing/mutual_information': jax.vmap(mutual_information)(stats.load_ME).mean(),
      'routing/expert_by_modality': stats.load_ME.sum(axis=0),
      'tokens': (batch.segment_BL > 0).sum(),
      'filled': (batch.segment_BL > 0).mean(),
    }
    buffers = {**state.buffers, 'router_bias': bias_IE}
    after = _apply(state, grads, buffers, tx)
    if 'ema' in buffers:
      average = averaged(buffers['ema'], after.params, state.step, update.ema)
      after = after._replace(buffers=buffers | {'ema': average})
    return guarded(state, after, metrics)

  return step


def make_codec_step(codec: Codec, tx: optax.GradientTransformation) -> StepFn:
  """One update of the speech codec on clips (wave_NS, mask_NR), its codebooks by moving averages."""

  def step(state: TrainState, clips: tuple[Array, Array]) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    k_forward, k_restart = jax.random.split(key)
    codebooks = codebooks_of(state.buffers)

    def objective(params):
      return codec_forward(merge(codec, params), codebooks, *clips, k_forward)

    (loss, (figures, stats)), grads = jax.value_and_grad(objective, has_aux=True)(
      state.params
    )
    updated: CodecBuffers = update_buffers(codec.config, codebooks, stats, k_restart)
    metrics = {'codec/loss': loss, 'grad_norm/total': optax.tree.norm(grads)}
    metrics |= {f'codec/{name}': value for name, value in figures._asdict().items()}
    metrics['tokens'] = jnp.sum(clips[1])
    return guarded(
      state, _apply(state, grads, {'codebooks': updated._asdict()}, tx), metrics
    )

  return step
