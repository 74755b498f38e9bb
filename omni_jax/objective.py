"""Objectives: what a train step minimises, as a value.

An objective is a function (model, params, reference, batch, key) -> (loss, Outcome).
Pre-training and the training of an autoencoder are two of them; the same step, loop and
checkpoints serve any other.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from omni_jax.errors import UserError
from omni_jax.modalities.device import Autoencoder
from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.model import batch_losses, merge, OmniModel
from omni_jax.nn.moe_router import mutual_information, RouterStats, updated_bias
from omni_jax.types import Batch

Metrics = dict[str, Array]
TOKENS = 'tokens'  # metric: number of filled positions, or of pieces, in the batch


class Outcome(NamedTuple):
  """Results of an objective besides its loss.

  Attributes:
    metrics: metrics of the step, by name.
    heads: losses as sums and weights, which add up over the parts of a batch.
    stats: statistics of the routers, or anything else that `refresh` needs; they are
      averaged over the parts of a batch.
  """

  metrics: Metrics
  heads: dict[str, HeadLoss]
  stats: Any = None


@runtime_checkable
class Objective(Protocol):
  """A pure function that returns the loss of a batch, and an Outcome.

  Args:
    model: abstract model; its arrays come from `params`.
    params: the parameters that are trained.
    reference: what is not trained: the buffers of the state, with frozen networks.
    batch: a batch from the data loader.
    key: key of the step.
  """

  def __call__(
    self, model: Any, params: Any, reference: Any, batch: Any, key: Array
  ) -> tuple[Array, Outcome]: ...


# (reference, outcome, key) -> the buffers that change in the step, with new values.
Refresh = Callable[[Any, Outcome, Array], dict[str, Any]]


class WholeBatch(NamedTuple):
  """Describes a whole batch that is computed in parts.

  Attributes:
    weights: weight of each head's loss, summed over all parts.
    parts: number of parts.
  """

  weights: Mapping[str, Array]
  parts: int


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights of the losses in their sum.

  Each head's loss is a mean over all devices before it is weighted.

  Attributes:
    heads: weight of each head's loss, by medium; 1 for a medium that is not named.
    balance: weight of the routers' balance loss.
    z: weight of the routers' z-loss.
    inside: weight of the text head's predictions at a medium's own positions, by
      medium, relative to 1 for a token of text. Below 1, it keeps a long sound with its
      many frames from outweighing the words.
  """

  heads: Mapping[str, float]
  balance: float
  z: float
  inside: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_config(cls, part: ConfigDict, media: Collection[str]) -> 'LossConfig':
    """Returns the weights of `config.omni.losses`.

    Args:
      part: that part of the config: a weight by medium, and balance, z and inside.
      media: names of the media of the run, text among them.

    Raises:
      UserError: if a key is neither a medium nor one of these names, or if the weight
        of a router's loss is missing.
    """
    for name in ('balance', 'z'):
      if name not in part:
        raise UserError(f'config.omni.losses.{name} is missing')
    heads = part.to_dict()
    inside = heads.pop('inside', {})
    balance = heads.pop('balance')
    z = heads.pop('z')
    unknown = sorted({*heads, *inside} - set(media))
    if unknown:
      raise UserError(
        f'config.omni.losses: {unknown} is unknown; '
        f'it has weights for {sorted(media)}, balance, z and inside'
      )
    return cls(heads, balance, z, inside)


def text_weights(batch: Batch, config: LossConfig, numbers: Mapping[str, int]) -> Array:
  """Returns the weights (B, L) of the text head's targets.

  The weight of a target is scaled by `config.inside` for the medium of the position
  that predicts it.

  Args:
    numbers: numbers of the media in `batch.modality_BL`, by name.
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
  whole: WholeBatch | None = None,
) -> Array:
  """Returns the weighted sum of the heads' mean losses and of the routers' losses.

  The routers' balance loss and z-loss are means over layers.

  Args:
    whole: the whole batch, if these are the losses of a part of it: the result is then
      the part's share of the whole loss.
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
  """The objective of the whole model: losses of all heads and of the routers.

  Attributes:
    losses: weights of the losses.
    mesh: mesh of the step.
    bias_step: step size of loss-free balancing, see `updated_bias`.
    whole: the whole batch, if the objective is applied to a part of it.
  """

  losses: LossConfig
  mesh: Mesh
  bias_step: float
  whole: WholeBatch | None = None

  def __call__(
    self, model: OmniModel, params: Any, reference: Any, batch: Batch, key: Array
  ) -> tuple[Array, Outcome]:
    """Returns the loss of a packed batch, and an Outcome with router statistics."""
    numbers = model.config.hosts().numbers
    batch = batch._replace(weight_BL=text_weights(batch, self.losses, numbers))
    heads, stats = batch_losses(
      params, reference, batch, key, model=model, mesh=self.mesh
    )
    loss = total_loss(heads, stats, self.losses, self.whole)
    filled_BL = batch.segment_BL > 0
    metrics = {TOKENS: filled_BL.sum(), 'filled': filled_BL.mean()}
    return loss, Outcome(metrics, heads, stats)

  def refresh(self, reference: Any, outcome: Outcome, key: Array) -> dict[str, Any]:
    """Returns the routers' biases after the step."""
    del key
    load_IE = outcome.stats.load_E
    bias_IE = updated_bias(reference['router_bias'], load_IE, self.bias_step)
    return {'router_bias': bias_IE}


def over_parts(metrics: Metrics, stats: RouterStats) -> tuple[Metrics, RouterStats]:
  """Returns the metrics and router statistics of a batch from those of its parts.

  Counts are summed; everything else is averaged.

  Args:
    metrics, stats: those of the parts, stacked along a leading axis.
  """
  of_batch = {name: value.mean(axis=0) for name, value in metrics.items()}
  of_batch[TOKENS] = metrics[TOKENS].sum(axis=0)
  mean_stats = jax.tree.map(lambda x: x.mean(axis=0), stats)
  load_mE = stats.load_mE.sum(axis=0)
  return of_batch, mean_stats._replace(load_mE=load_mE)


def metrics_of(outcome: Outcome) -> Metrics:
  """Returns the metrics of a step by their names in the log."""
  metrics = dict(outcome.metrics)
  for name, head in outcome.heads.items():
    metrics[f'loss/{name}'] = head.mean
    metrics[f'weight/{name}'] = head.weight
  if isinstance(outcome.stats, RouterStats):
    metrics |= router_metrics(outcome.stats)
  return metrics


def router_metrics(stats: RouterStats) -> Metrics:
  """Returns the metrics of the routers.

  Means over layers, but for the extremes of the load and, per expert and modality, the
  load summed over layers.
  """
  experts = stats.load_E.shape[-1]
  return {
    'loss/balance': stats.balance.mean(),
    'loss/z': stats.z.mean(),
    'routing/entropy': stats.entropy.mean(),
    'routing/load_max': stats.load_E.max() * experts,
    'routing/load_min': stats.load_E.min() * experts,
    'routing/dropped': stats.dropped.mean(),
    'routing/mutual_information': jax.vmap(mutual_information)(stats.load_mE).mean(),
    'routing/expert_by_modality': stats.load_mE.sum(axis=0),
  }


@dataclasses.dataclass(frozen=True)
class Autoencoding:
  """The objective of an autoencoder: its loss on a batch of crops of one size.

  A batch is a pair (values, mask). The buffers are moving averages, see `refresh`.

  Attributes:
    row: the autoencoder, from its medium's row of the table.
    config: config of the autoencoder.
  """

  row: Autoencoder
  config: Any

  def __call__(
    self, model: Any, params: Any, reference: Any, batch: Any, key: Array
  ) -> tuple[Array, Outcome]:
    """Returns the loss of a batch of crops, and an Outcome with statistics."""
    forward_key, _ = jax.random.split(key)
    module = merge(model, params)
    _, mask = batch
    loss, trained = self.row.loss(module, reference, batch, forward_key)
    metrics = {f'{self.row.name}/loss': loss, TOKENS: jnp.sum(mask)}
    for name, value in trained.metrics.items():
      metrics[f'{self.row.name}/{name}'] = value
    return loss, Outcome(metrics, {}, trained.stats)

  def refresh(self, reference: Any, outcome: Outcome, key: Array) -> dict[str, Any]:
    """Returns the autoencoder's buffers after the step."""
    _, restart_key = jax.random.split(key)
    return self.row.update_buffers(self.config, reference, outcome.stats, restart_key)
