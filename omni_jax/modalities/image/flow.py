"""Rectified flow (Liu et al. 2022): what is between noise and data, and the way from one to the other.

t = 0 is noise, t = 1 is data, in training and in sampling: x_t = (1 - t)·noise + t·data, velocity = data - noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from omni_jax.modalities.head_loss import UnitLoss
from omni_jax.nn.pool import counts
from omni_jax.types import Stream

PLACES = (
  1024  # more than a side of an item has pieces: a place is a number of that base
)


class Noise(NamedTuple):
  """What chance decides in a step about each item and piece of a stream; K samples of each."""

  noise_BKMY: Array
  t_BKN: Array
  chance_BKN: Array  # even in [0, 1), for whatever happens to a share of the items


def noised(data: Array, noise: Array, t: Array) -> Array:
  return (1 - t) * noise + t * data


def velocity(data: Array, noise: Array) -> Array:
  return data - noise


def item_keys(key_BN: Array, key: Array) -> Array:
  """Returns a random key for each item, of the step's key and the item's name."""
  return jax.vmap(jax.vmap(lambda name: jax.random.fold_in(key, name)))(key_BN)


def piece_noise(
  key: Array, place_M3: Int[Array, '*M 3'], samples: int, values: int
) -> Float[Array, '*M K Y']:
  """Returns normal noise for pieces.

  Args:
    key: of each piece's item, of the shape of `place_M3` without its last axis.
  """
  time, high, wide = jnp.moveaxis(place_M3, -1, 0)
  number = (time * PLACES + high) * PLACES + wide

  def draw(key: Array, number: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, number), (samples, values))

  flat = jax.vmap(draw)(key.reshape(-1), number.reshape(-1))
  return flat.reshape(*number.shape, samples, values)


def draw_noise(
  stream: Stream, key: Array, *, samples: int, values: int, shift: float
) -> Noise:
  """Returns noise, time (logit-normal, shifted) and chance of a stream.

  They depend on `key` (the step's), on the item's name and on the piece's place only, not on where it is packed.
  """

  def of_item(key: Array) -> tuple[Array, Array]:
    time_key, chance_key = jax.random.split(key)
    z = jax.random.normal(time_key, (samples,))
    return z, jax.random.uniform(chance_key, (samples,))

  key_BN = item_keys(stream.key_BN, key)
  z_BNK, chance_BNK = jax.vmap(jax.vmap(of_item))(key_BN)
  t_BNK = jax.nn.sigmoid(z_BNK)
  t_BNK = shift * t_BNK / (1 + (shift - 1) * t_BNK)
  item_BM = jnp.maximum(stream.item_BM - 1, 0)
  key_BM = jnp.take_along_axis(key_BN, item_BM, axis=1)
  noise_BMKY = piece_noise(key_BM, stream.place_BM3, samples, values)
  return Noise(
    jnp.moveaxis(noise_BMKY, 2, 1),
    jnp.moveaxis(t_BNK, 2, 1),
    jnp.moveaxis(chance_BNK, 2, 1),
  )


def flow_loss(error_BKMY: Float[Array, 'B K M Y'], stream: Stream) -> UnitLoss:
  """Returns the squared error of each piece, a mean over values and samples; an item's pieces count 1 together."""
  valid_BM = stream.write_at_BM >= 0
  per_item_BN = counts(jnp.where(valid_BM, stream.item_BM, 0), stream.form_BN3.shape[1])
  item_BM = jnp.maximum(stream.item_BM - 1, 0)
  count_BM = jnp.take_along_axis(per_item_BN, item_BM, axis=1)
  weight_BM = jnp.where(valid_BM, 1 / jnp.maximum(count_BM, 1), 0.0)
  error_BM = jnp.square(error_BKMY).mean(axis=3).mean(axis=1)
  return UnitLoss(
    jnp.where(valid_BM, error_BM, 0.0) * weight_BM, weight_BM, stream.write_at_BM
  )


def start_noise(
  key_U: Key[Array, 'U'], place_UM3: Int[Array, 'U M 3'], values: int
) -> Float[Array, 'U M Y']:
  """Returns where drawing begins; one key for each item."""
  key_UM = jnp.broadcast_to(key_U[:, None], place_UM3.shape[:2])
  return piece_noise(key_UM, place_UM3, 1, values)[:, :, 0]


def sample(
  velocity_fn: Callable[[Array, Array], Array], noise: Array, *, steps: int
) -> Array:
  """Euler from t = 0 to t = 1; `velocity_fn(x, t)` with scalar t."""

  def step(i, x):
    return x + velocity_fn(x, i / steps) / steps

  return jax.lax.fori_loop(0, steps, step, noise)


def time_features(t: Float[Array, '*U'], width: int) -> Float[Array, '*U W']:
  """Returns sinusoids of t in [0, 1], as in DDPM with t scaled to 1000."""
  frequency = 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
  angle = 1000 * t[..., None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
