"""AdamW or Muon with warm-up and cosine decay, clipping, learning-rate multipliers and frozen parameters by name."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import enum
import fnmatch
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from omni_jax.errors import UserError
from omni_jax.sharding import name_of, named_leaves, Role


class Kind(enum.StrEnum):
  ADAMW = 'adamw'
  MUON = 'muon'  # on matrices (Jordan et al. 2024), AdamW on everything else


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Attributes:
  kind: see Kind; Muon's updates are scaled to the size of AdamW's (0.2 root mean square), so lr means the same.
  lr: peak learning rate, reached after `warmup` steps, cosine to `final` of it at the last step.
  weight_decay: on matrices and tables (norms, biases and single rows stay free).
  clip: largest global gradient norm.
  multipliers: prefix of a parameter's name ('heads.image') -> factor on its updates.
  """

  kind: Kind | str = Kind.ADAMW
  lr: float = 2e-3
  warmup: int = 100
  final: float = 0.02
  b1: float = 0.9
  b2: float = 0.98
  weight_decay: float = 0.01
  clip: float = 1.0
  multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    object.__setattr__(self, 'kind', Kind(self.kind))


def schedule(c: OptimConfig, steps: int) -> optax.Schedule:
  return optax.warmup_cosine_decay_schedule(
    0.0, c.lr, min(c.warmup, max(1, steps // 2)), max(steps, 2), c.lr * c.final
  )


def frozen(params: Any, patterns: Sequence[str]) -> Any:
  """Returns True at every parameter whose name fits one of the patterns.

  Args:
    patterns: of config.omni.freeze, such as 'decoder.*' or '*.scale'.

  Raises:
    UserError: for a pattern that fits no name.
  """
  names = list(named_leaves(params))
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      raise UserError(
        f'config.omni.freeze: no parameter is called {pattern!r}; there are '
        f'{", ".join(names)}'
      )

  def fits(path, _):
    return any(fnmatch.fnmatchcase(name_of(path), pattern) for pattern in patterns)

  return jax.tree_util.tree_map_with_path(fits, params)


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
    roles: of the parameters, as `sharding.param_roles` returns them.
    freeze: patterns of names; what fits is neither updated nor decayed, and has no
      moments.
    rate: a learning rate by step instead of the config's schedule.
  """
  decay_mask = functools.partial(decayed, roles=roles)
  scale_by_name = functools.partial(_scaled, multipliers=c.multipliers)
  tx = optax.chain(
    optax.clip_by_global_norm(c.clip),
    _direction(c, roles),
    optax.add_decayed_weights(c.weight_decay, mask=decay_mask),
    optax.stateless(scale_by_name),
    optax.scale_by_learning_rate(rate or schedule(c, steps)),
  )
  if not freeze:
    return tx

  def label(params):
    return jax.tree.map(
      lambda still: 'frozen' if still else 'trained', frozen(params, freeze)
    )

  return optax.partition({'trained': tx, 'frozen': optax.set_to_zero()}, label)


def _direction(c: OptimConfig, roles: Any) -> optax.GradientTransformation:
  """Returns what turns gradients into updates, before decay and learning rate."""
  if c.kind == Kind.ADAMW:
    return optax.scale_by_adam(c.b1, c.b2)
  muon = optax.contrib.muon(
    1.0,
    beta=0.95,
    adam_b1=c.b1,
    adam_b2=c.b2,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=functools.partial(muon_dimensions, roles=roles),
  )
  # Its own rate is 1, its sign that of an update.
  return optax.chain(muon, optax.scale(-1.0))


def _scaled(updates: Any, params: Any, *, multipliers: Mapping[str, float]) -> Any:
  """Returns the updates times the factor of the first prefix that each name has.

  Raises:
    UserError: for a prefix that no name has.
  """
  names = list(named_leaves(params))
  for prefix in multipliers:
    if not any(name.startswith(prefix) for name in names):
      parts = sorted({'.'.join(name.split('.')[:2]) for name in names})
      raise UserError(
        f'config.optim.multipliers: no parameter begins with {prefix!r}; there are '
        f'{parts}'
      )

  def factor(name):
    fitting = (m for prefix, m in multipliers.items() if name.startswith(prefix))
    return next(fitting, 1.0)

  return jax.tree_util.tree_map_with_path(
    lambda path, update: update * factor(name_of(path)), updates
  )


def decayed(params: Any, *, roles: Any) -> Any:
  """Returns True at every parameter that decays: matrices, routers and tables.

  Norms, biases and single vectors stay free; those of stacked layers do, too, although
  they have two axes.
  """

  def decays(role, leaf):
    return role not in (Role.NORM, Role.BIAS) and jnp.ndim(leaf) > 1

  return _map_with_roles(decays, params, roles)


def muon_dimensions(params: Any, *, roles: Any) -> Any:
  """Returns the last two axes of every matrix; None for what Muon leaves to AdamW."""

  def axes(role, leaf):
    if role != Role.MATRIX:
      return None
    return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

  return _map_with_roles(axes, params, roles)


def _map_with_roles(
  function: Callable[[Role, Any], Any], params: Any, roles: Any
) -> Any:
  """Returns what the function makes of (role, parameter), in a tree like `params`.

  `params` may lack some of the parameters, as in a partition.
  """
  role_by_name = named_leaves(roles)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function(role_by_name[name_of(path)], leaf), params
  )
