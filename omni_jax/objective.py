"""What a step minimises, as a value: `Objective(model, params, reference, batch, key) -> (loss, Outcome)`.

Pre-training and the training of an autoencoder are two of them; the same step, loop and checkpoints serve any other.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax.errors import UserError
from omni_jax.modalities.device import Autoencoder
from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.model import batch_losses, merge, OmniModel
from omni_jax.nn.moe_router import mutual_information, RouterStats, updated_bias
from omni_jax.types import Batch

Metrics = dict[str, Array]


class Outcome(NamedTuple):
  """What an objective gives beside its loss.

  Attributes:
    metrics: figures of the step.
    heads: losses as sums and weights, which add up over the parts of a batch.
    stats: of the routers, or of whatever else `refresh` needs; means over the parts of a batch.
  """

  metrics: Metrics
  heads: dict[str, HeadLoss]
  stats: Any = None


@runtime_checkable
class Objective(Protocol):
  """A pure function of its arguments.

  Args:
    model: abstract; the arrays come from params.
    params: what is trained.
    reference: what is not: the buffers of the state, with frozen networks.
    batch: what the data loader gives.
    key: of the step.
  """

  def __call__(
    self, model: Any, params: Any, reference: Any, batch: Any, key: Array
  ) -> tuple[Array, Outcome]: ...


# (reference, outcome, key) -> buffers that are other ones after the step.
Refresh = Callable[[Any, Outcome, Array], dict[str, Any]]


class Whole(NamedTuple):
  """A batch that is computed in parts.

  Attributes:
    weights: of each head's loss, sums over all parts.
    parts: how many.
  """

  weights: Mapping[str, Array]
  parts: int


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weight of each loss in the sum; every head's loss is normalised by its own weight over all devices first.

  Attributes:
    heads: by medium; 1 for one that is not named.
    balance, z: of the routers.
    inside: by medium, of what the text head says at that medium's own positions, where a word weighs 1: a long sound
      has many frames.
  """

  heads: Mapping[str, float] = dataclasses.field(default_factory=dict)
  balance: float = 0.01
  z: float = 0.001
  inside: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_config(cls, part: Any, media: Mapping[str, Any]) -> 'LossConfig':
    """Returns the weights of `config.omni.losses`: by medium, beside balance, z and inside.

    Args:
      media: names of the media of the run, text among them.

    Raises:
      UserError: for a name that is neither.
    """
    values = part.to_dict()
    routers = {name: values.pop(name) for name in ('balance', 'z') if name in values}
    inside = values.pop('inside', {})
    if unknown := sorted({*values, *inside} - set(media)):
      raise UserError(
        f'config.omni.losses: {unknown} is unknown; there are {sorted(media)}, balance, z and inside'
      )
    return cls(heads=values, inside=inside, **routers)


def text_weights(batch: Batch, config: LossConfig, numbers: Mapping[str, int]) -> Array:
  """Returns the weights of the text head's targets, by the medium of the position that says them: (B, L).

  Args:
    numbers: of the media.
  """
  weight_BL = batch.weight_BL
  for medium, factor in config.inside.items():
    inside_BL = batch.modality_BL == numbers[medium]
    weight_BL = weight_BL * jnp.where(inside_BL, factor, 1.0)
  return weight_BL


def total_loss(
  heads: Mapping[str, HeadLoss],
  stats: RouterStats,
  config: LossConfig,
  whole: Whole | None = None,
) -> Array:
  """Returns Σ weight · mean loss of a head + balance and z-loss, means over layers.

  Args:
    whole: of what these are a part, if they are: the result is that part of the whole loss.
  """
  parts = whole.parts if whole else 1
  loss = jnp.zeros((), jnp.float32)
  for name, head in heads.items():
    if whole:
      head = head._replace(weight=whole.weights[name])
    loss += config.heads.get(name, 1.0) * head.mean
  routers = config.balance * stats.balance.mean() + config.z * stats.z.mean()
  return loss + routers / parts


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """The losses of all heads and routers on a batch of every medium.

  Attributes:
    losses: their weights.
    bias_step: of loss-free balancing, see `updated_bias`.
    whole: of what the batch is a part.
  """

  losses: LossConfig
  mesh: Mesh
  bias_step: float = 1e-3
  whole: Whole | None = None

  def __call__(
    self, model: OmniModel, params: Any, reference: Any, batch: Batch, key: Array
  ) -> tuple[Array, Outcome]:
    numbers = model.config.hosts().numbers
    batch = batch._replace(weight_BL=text_weights(batch, self.losses, numbers))
    heads, stats = batch_losses(
      params, reference, batch, key, model=model, mesh=self.mesh
    )
    loss = total_loss(heads, stats, self.losses, self.whole)
    filled_BL = batch.segment_BL > 0
    metrics = {'tokens': filled_BL.sum(), 'filled': filled_BL.mean()}
    return loss, Outcome(metrics, heads, stats)

  def refresh(self, reference: Any, outcome: Outcome, key: Array) -> dict[str, Any]:
    """Returns the routers' biases after the step."""
    del key
    bias_IE = reference['router_bias']
    after_IE = updated_bias(bias_IE, outcome.stats.load_E, self.bias_step)
    return {'router_bias': after_IE}


def metrics_of(outcome: Outcome) -> Metrics:
  """Returns the figures of a step by the names that the log has."""
  metrics = dict(outcome.metrics)
  for name, head in outcome.heads.items():
    metrics[f'loss/{name}'] = head.mean
    metrics[f'weight/{name}'] = head.weight
  if isinstance(outcome.stats, RouterStats):
    metrics |= router_metrics(outcome.stats)
  return metrics


def router_metrics(stats: RouterStats) -> Metrics:
  """Returns the figures of the routers, means over layers."""
  experts = stats.load_E.shape[-1]
  return {
    'loss/balance': stats.balance.mean(),
    'loss/z': stats.z.mean(),
    'routing/entropy': stats.entropy.mean(),
    'routing/load_max': stats.load_E.max() * experts,
    'routing/load_min': stats.load_E.min() * experts,
    'routing/dropped': stats.dropped.mean(),
    'routing/mutual_information': jax.vmap(mutual_information)(stats.load_ME).mean(),
    'routing/expert_by_modality': stats.load_ME.sum(axis=0),
  }


@dataclasses.dataclass(frozen=True)
class Autoencoding:
  """The loss of an autoencoder on crops (value, mask) of one size; its buffers follow by moving averages."""

  row: Autoencoder
  config: Any

  def __call__(
    self, model: Any, params: Any, reference: Any, batch: Any, key: Array
  ) -> tuple[Array, Outcome]:
    forward_key, _ = jax.random.split(key)
    module = merge(model, params)
    loss, trained = self.row.loss(module, reference, batch, forward_key)
    figures = {f'{self.row.name}/{name}': x for name, x in trained.metrics.items()}
    metrics = {f'{self.row.name}/loss': loss, 'tokens': jnp.sum(batch[1]), **figures}
    return loss, Outcome(metrics, {}, trained.stats)

  def refresh(self, reference: Any, outcome: Outcome, key: Array) -> dict[str, Any]:
    """Returns the autoencoder's buffers after the step."""
    _, restart_key = jax.random.split(key)
    return self.row.update_buffers(self.config, reference, outcome.stats, restart_key)
