"""Builds the optimizer: AdamW or Muon with warm-up, cosine decay and clipping.

Learning-rate multipliers and frozen parameters are selected by name.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import enum
import fnmatch
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from omni_jax.errors import UserError
from omni_jax.sharding import leaf_name, named_leaves, Role
from omni_jax.train.muon import muon

MUON_MOMENTUM = 0.95
MUON_RMS = 0.2  # root mean square of Muon's updates, about that of AdamW's


class Kind(enum.StrEnum):
  """Kind of optimizer."""

  ADAMW = 'adamw'
  MUON = 'muon'  # Muon on matrices (Jordan et al. 2024), AdamW on everything else


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Settings of the optimizer of a stage.

  Attributes:
    kind: see Kind; Muon's updates are scaled to MUON_RMS, so that lr means the same for
      both.
    lr: peak learning rate.
    warmup: number of steps in which the rate rises to its peak.
    final: share of the peak that a cosine reaches at the last step.
    b1, b2: decay of Adam's first and second moments.
    weight_decay: decay of matrices and tables; norms, biases and single rows do not
      decay.
    clip: largest global gradient norm.
    multipliers: prefix of a parameter's name ('heads.image') -> factor on its updates.

  Raises:
    ValueError: if there is no such kind.
  """

  kind: Kind | str
  lr: float
  warmup: int
  final: float
  b1: float
  b2: float
  weight_decay: float
  clip: float
  multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    object.__setattr__(self, 'kind', Kind(self.kind))


def schedule(c: OptimConfig, steps: int) -> optax.Schedule:
  """Returns the learning rate by step; a short run warms up in half of its steps."""
  warmup = min(c.warmup, max(1, steps // 2))
  return optax.warmup_cosine_decay_schedule(
    0.0, c.lr, warmup, max(steps, 2), c.lr * c.final
  )


def frozen_mask(params: Any, patterns: Sequence[str]) -> Any:
  """Returns a tree with True at every parameter whose name matches one of the patterns.

  Args:
    patterns: the patterns of config.omni.freeze, such as 'decoder.*' or '*.scale'.

  Raises:
    UserError: for a pattern that matches no name.
  """
  names = list(named_leaves(params))
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      raise UserError(
        f'config.omni.freeze: no parameter matches {pattern!r}; there are '
        f'{", ".join(names)}'
      )

  def matches(path, _):
    name = leaf_name(path)
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

  return jax.tree_util.tree_map_with_path(matches, params)


def make_optimizer(
  c: OptimConfig,
  steps: int,
  roles: Any,
  *,
  freeze: Sequence[str] = (),
  rate: optax.Schedule | None = None,
) -> optax.GradientTransformation:
  """Returns the optimizer of a stage of `steps` steps.

  Args:
    roles: roles of the parameters, as `sharding.param_roles` returns them.
    freeze: patterns of names; parameters that match are neither updated nor decayed,
      and have no moments.
    rate: a learning rate by step, used instead of the config's schedule.
  """
  decays = functools.partial(decay_mask, roles=roles)
  scale_by_name = functools.partial(_scale_by_name, multipliers=c.multipliers)
  tx = optax.chain(
    optax.clip_by_global_norm(c.clip),
    _direction(c, roles),
    optax.add_decayed_weights(c.weight_decay, mask=decays),
    optax.stateless(scale_by_name),
    optax.scale_by_learning_rate(rate or schedule(c, steps)),
  )
  if not freeze:
    return tx

  def labels(params):
    mask = frozen_mask(params, freeze)
    return jax.tree.map(lambda is_frozen: 'frozen' if is_frozen else 'trained', mask)

  return optax.partition({'trained': tx, 'frozen': optax.set_to_zero()}, labels)


def _direction(c: OptimConfig, roles: Any) -> optax.GradientTransformation:
  """Returns the gradient transformation before decay and learning rate."""
  if c.kind == Kind.ADAMW:
    return optax.scale_by_adam(c.b1, c.b2)
  is_matrix = functools.partial(muon_mask, roles=roles)
  # A chain, so that a checkpoint names the moments as it did before.
  return optax.chain(
    muon(is_matrix, momentum=MUON_MOMENTUM, rms=MUON_RMS, b1=c.b1, b2=c.b2)
  )


def _scale_by_name(
  updates: Any, params: Any, *, multipliers: Mapping[str, float]
) -> Any:
  """Returns every update times the factor of the first prefix that its name has.

  Raises:
    UserError: for a prefix that no name has.
  """
  names = list(named_leaves(params))
  for prefix in multipliers:
    if not any(name.startswith(prefix) for name in names):
      beginnings = {'.'.join(name.split('.')[:2]) for name in names}
      raise UserError(
        f'config.optim.multipliers: no parameter begins with {prefix!r}; there are '
        f'{sorted(beginnings)}'
      )

  def scale(path, update):
    name = leaf_name(path)
    factors = (m for prefix, m in multipliers.items() if name.startswith(prefix))
    return update * next(factors, 1.0)

  return jax.tree_util.tree_map_with_path(scale, updates)


def decay_mask(params: Any, *, roles: Any) -> Any:
  """Returns a tree with True at every parameter that decays.

  Matrices, routers and tables decay. Norms, biases and single vectors do not, even
  those of stacked layers, which have two axes.
  """

  def decays(role, leaf):
    return role not in (Role.NORM, Role.BIAS) and jnp.ndim(leaf) > 1

  return _map_with_roles(decays, params, roles)


def muon_mask(params: Any, *, roles: Any) -> Any:
  """Returns a tree with True at every matrix, which Muon updates instead of AdamW."""
  return _map_with_roles(lambda role, _: role == Role.MATRIX, params, roles)


def _map_with_roles(
  function: Callable[[Role, Any], Any], params: Any, roles: Any
) -> Any:
  """Returns a tree like `params` with function(role, parameter) at every parameter.

  `params` may lack some of the parameters, as in a partition.
  """
  role_by_name = named_leaves(roles)

  def of_leaf(path, leaf):
    return function(role_by_name[leaf_name(path)], leaf)

  return jax.tree_util.tree_map_with_path(of_leaf, params)
