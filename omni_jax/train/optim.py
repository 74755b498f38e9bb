"""AdamW or Muon with warm-up and cosine decay, clipping, learning-rate multipliers and frozen parameters by name."""

from collections.abc import Mapping, Sequence
import dataclasses
import enum
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from omni_jax.errors import UserError
from omni_jax.sharding import name_of


class Kind(enum.StrEnum):
  ADAMW = 'adamw'
  MUON = 'muon'  # on the matrices between two hidden widths (Jordan et al. 2024), AdamW on everything else


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
  """True at every parameter whose name fits one of the patterns of config.omni.freeze ('decoder.*', '*.scale').

  Raises:
    UserError: for a pattern that fits no name.
  """
  names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      raise UserError(
        f'config.omni.freeze: no parameter is called {pattern!r}; there are {", ".join(names)}'
      )

  def fits(path, _):
    return any(fnmatch.fnmatchcase(name_of(path), pattern) for pattern in patterns)

  return jax.tree_util.tree_map_with_path(fits, params)


def make_optimizer(
  c: OptimConfig,
  steps: int,
  *,
  freeze: Sequence[str] = (),
  rate: optax.Schedule | None = None,
) -> optax.GradientTransformation:
  """The optimizer of a stage of `steps` steps.

  Args:
    freeze: patterns of names; what fits is neither updated nor decayed, and has no moments.
    rate: a learning rate by step instead of the config's schedule.
  """

  def factors(params):
    leaves = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for prefix in c.multipliers:
      if not any(name.startswith(prefix) for name in leaves):
        raise UserError(
          f'config.optim.multipliers: no parameter begins with {prefix!r}; '
          f'there are {sorted({".".join(n.split(".")[:2]) for n in leaves})}'
        )

    def factor(path, _):
      return next(
        (m for prefix, m in c.multipliers.items() if name_of(path).startswith(prefix)),
        1.0,
      )

    return jax.tree_util.tree_map_with_path(factor, params)

  def scaled(updates, params):
    return jax.tree.map(lambda u, f: u * f, updates, factors(params))

  if c.kind == Kind.MUON:
    muon = optax.contrib.muon(
      1.0,
      beta=0.95,
      adam_b1=c.b1,
      adam_b2=c.b2,
      consistent_rms=0.2,
      muon_weight_dimension_numbers=_matrices,
    )
    direction = optax.chain(
      muon, optax.scale(-1.0)
    )  # its own rate is 1, its sign that of an update
  else:
    direction = optax.scale_by_adam(c.b1, c.b2)
  tx = optax.chain(
    optax.clip_by_global_norm(c.clip),
    direction,
    optax.add_decayed_weights(c.weight_decay, mask=_decayed),
    optax.stateless(scaled),
    optax.scale_by_learning_rate(rate or schedule(c, steps)),
  )
  if not freeze:
    return tx

  def label(params):
    return jax.tree.map(
      lambda still: 'frozen' if still else 'trained', frozen(params, freeze)
    )

  return optax.partition({'trained': tx, 'frozen': optax.set_to_zero()}, label)


def _decayed(params):
  """Matrices and tables; the scales of stacked layers have two axes as well, but are none."""

  def decays(path, leaf):
    return jnp.ndim(leaf) > 1 and name_of(path).rpartition('.')[2] not in ('scale', 'b')

  return jax.tree_util.tree_map_with_path(decays, params)


def _matrices(params):
  """The last two axes of the weights of linear maps and experts; routers, tables and the vocabulary are not theirs."""

  def axes(path, leaf):
    name = name_of(path)
    hidden = name.endswith(('.w', '.gate', '.up', '.down')) and 'router' not in name
    hidden = hidden and not name.startswith('heads.text')
    return (
      optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)
      if hidden and leaf.ndim > 1
      else None
    )

  return jax.tree_util.tree_map_with_path(axes, params)
