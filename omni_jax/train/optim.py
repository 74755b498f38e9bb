"""AdamW with warm-up and cosine decay, clipping, and learning-rate multipliers by name."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from omni_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Attributes:
    lr: peak learning rate, reached after `warmup` steps, cosine to `final` of it at the last step.
    weight_decay: on arrays of two and more dimensions (norms, biases and tables of one row stay free).
    clip: largest global gradient norm.
    multipliers: prefix of a parameter's name ('heads.image') -> factor on its updates.
  """
  lr: float = 2e-3
  warmup: int = 100
  final: float = 0.02
  b1: float = 0.9
  b2: float = 0.98
  weight_decay: float = 0.01
  clip: float = 1.0
  multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict)


def schedule(c: OptimConfig, steps: int) -> optax.Schedule:
  return optax.warmup_cosine_decay_schedule(0.0, c.lr, min(c.warmup, max(1, steps // 2)), max(steps, 2), c.lr * c.final)


def name_of(path: tuple[Any, ...]) -> str:
  """A leaf's path in a tree as dotted name."""
  return jax.tree_util.keystr(path, simple=True, separator='.')


def make_optimizer(c: OptimConfig, steps: int) -> optax.GradientTransformation:
  """The optimizer of a stage of `steps` steps."""
  def factors(params):
    leaves = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for prefix in c.multipliers:
      if not any(name.startswith(prefix) for name in leaves):
        raise UserError(f'config.optim.multipliers: no parameter begins with {prefix!r}; '
                        f'there are {sorted({".".join(n.split(".")[:2]) for n in leaves})}')
    def factor(path, _):
      return next((m for prefix, m in c.multipliers.items() if name_of(path).startswith(prefix)), 1.0)
    return jax.tree_util.tree_map_with_path(factor, params)

  def scaled(updates, params):
    return jax.tree.map(lambda u, f: u * f, updates, factors(params))

  return optax.chain(
      optax.clip_by_global_norm(c.clip),
      optax.scale_by_adam(c.b1, c.b2),
      optax.add_decayed_weights(c.weight_decay, mask=lambda p: jax.tree.map(lambda x: jnp.ndim(x) > 1, p)),
      optax.stateless(scaled),
      optax.scale_by_learning_rate(schedule(c, steps)))
