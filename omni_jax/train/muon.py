"""Muon (Jordan et al. 2024), which orthogonalizes all matrices of a shape together.

`optax.contrib.muon` gives the same updates and has the same state, but computes every
parameter separately and unrolls the iterations: more than half of the kernels of a
small model's step, which a GPU compiles one by one.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import optax
import optax.contrib

ITERATIONS = 5
EPS = 1e-8


def muon(
  is_matrix: Callable[[Any], Any], *, momentum: float, rms: float, b1: float, b2: float
) -> optax.GradientTransformation:
  """Returns Muon for matrices and AdamW for everything else, both at a rate of 1.

  Its updates point along the gradient. Weight decay is left to the caller.

  Args:
    is_matrix: returns a tree with True at every parameter whose last two axes are a
      matrix that Muon updates.
    momentum: decay of Muon's moment, which is Nesterov's.
    rms: root mean square of the updates of a matrix (arXiv 2502.16982).
    b1, b2: decay of Adam's moments.
  """

  def labels(params: Any) -> Any:
    mask = is_matrix(params)
    return jax.tree.map(lambda matrix: 'muon' if matrix else 'adam', mask)

  # Chains, so that a checkpoint names its moments as `optax.contrib.muon` does.
  return optax.partition(
    {
      'muon': optax.chain(_orthogonal_momentum(momentum, rms)),
      'adam': optax.chain(optax.scale_by_adam(b1, b2, nesterov=True)),
    },
    labels,
  )


def _orthogonal_momentum(decay: float, rms: float) -> optax.GradientTransformation:
  """Returns the transformation of gradients into orthogonal matrices of a given RMS."""
  reference = optax.contrib.scale_by_muon(beta=decay)

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    count = optax.safe_increment(state.count)
    moment = optax.tree.update_moment(grads, state.mu, decay, 1)
    ahead = optax.tree.bias_correction(moment, decay, optax.safe_increment(count))
    now = optax.tree.bias_correction(grads, decay, count)
    look_ahead = lambda m, g: decay * m + (1 - decay) * g
    direction = jax.tree.map(look_ahead, ahead, now)
    updates = orthogonalized(direction, state.ns_coeffs, rms)
    return updates, state._replace(count=count, mu=moment)

  return optax.GradientTransformation(reference.init, update)


def orthogonalized(tree: Any, coefficients: Float[Array, '3'], rms: float) -> Any:
  """Returns the matrices of a tree, made orthogonal and scaled to a root mean square.

  A leaf holds matrices in its last two axes. Those of one shape are computed in one
  batch; a tall matrix is transposed before and after.
  """
  leaves, structure = jax.tree.flatten(tree)
  numbers_by_shape: dict[tuple[int, ...], list[int]] = {}
  for number, leaf in enumerate(leaves):
    shape = tuple(sorted(leaf.shape[-2:]))
    numbers_by_shape.setdefault(shape, []).append(number)
  results = list(leaves)
  for shape, numbers in numbers_by_shape.items():
    batches = [_wide(leaves[number]).reshape(-1, *shape) for number in numbers]
    x_Nab = newton_schulz(jnp.concatenate(batches), coefficients)
    # The entries of an orthogonal matrix have a root mean square of 1 / √columns.
    x_Nab = rms * math.sqrt(shape[1]) * x_Nab
    first = 0
    for number, batch in zip(numbers, batches, strict=True):
      part = x_Nab[first : first + len(batch)]
      first += len(batch)
      results[number] = _as_it_was(part, leaves[number])
  return jax.tree.unflatten(structure, results)


def _is_tall(x: Array) -> bool:
  return x.shape[-2] > x.shape[-1]


def _wide(x: Array) -> Array:
  """Returns matrices with at least as many columns as rows."""
  return x.mT if _is_tall(x) else x


def _as_it_was(part_Nab: Array, leaf: Array) -> Array:
  """Returns wide matrices in the shape of the leaf that they come from."""
  shape = _wide(leaf).shape
  wide = part_Nab.reshape(shape)
  return wide.mT if _is_tall(leaf) else wide


def newton_schulz(
  x_Nab: Float[Array, 'N a b'], coefficients: Float[Array, '3']
) -> Float[Array, 'N a b']:
  """Returns nearly orthogonal matrices with the singular vectors of the given ones.

  Every iteration applies c0 s + c1 s³ + c2 s⁵ to the singular values.
  """
  c0, c1, c2 = coefficients.astype(x_Nab.dtype)
  norm_N11 = jnp.linalg.norm(x_Nab, axis=(1, 2), keepdims=True)

  def iteration(x_Nab: Array, _: None) -> tuple[Array, None]:
    gram_Naa = x_Nab @ x_Nab.mT
    polynomial_Naa = c1 * gram_Naa + c2 * gram_Naa @ gram_Naa
    return c0 * x_Nab + polynomial_Naa @ x_Nab, None

  start = x_Nab / (norm_N11 + EPS)
  return jax.lax.scan(iteration, start, length=ITERATIONS)[0]
